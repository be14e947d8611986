import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from cli_runs import NO_PICTURES, SMALL, on_suite
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules import CoTraining
from data_modules.formats import CocoPanoptic
from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training
from dataseg.inference.mask_resampling import OriginalMasks
from dataseg.inference.postprocess import PostProcessor, SemanticOptions, semantic
from dataseg.inference.test_time_augmentation import image_views, segment, spans
from dataseg.inference.view_merging import View, merged_strips
from dataseg.network import MaskClassificationNetwork
from dataseg.structures import (
    Batch,
    ClassSpec,
    DatasetSpec,
    Proposals,
    Sample,
    SegmentMap,
    Task,
    TestTimeAugmentation,
    UserError,
    Vocabulary,
)
from dataseg.structures.geometry import ImageGeometry

ROOT = Path(__file__).resolve().parents[3]
CLASSES = 5
VOCABULARY = Vocabulary("v", tuple(ClassSpec(i, f"c{i}", i < 2, (f"c{i}",), (i, i, i)) for i in range(CLASSES)))
SEMANTIC = DatasetSpec(VOCABULARY, (Task.SEMANTIC,))


def spec(**views) -> DatasetSpec:
    return DatasetSpec(VOCABULARY, (Task.SEMANTIC,), TestTimeAugmentation(**views))


class Network:
    """Masks that follow the colours, smoothly, so that they turn with the image; remembers what it was shown."""

    def __init__(self, queries=7, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.class_logits = 2 * torch.randn(queries, CLASSES + 1, generator=generator)
        self.colors = torch.randn(queries, 3, generator=generator)
        self.seen, self.sizes = [], []

    def __call__(self, images, sizes):
        assert images.dtype == torch.uint8
        self.seen.append(images)
        self.sizes.append(sizes)
        cells = F.avg_pool2d(images.float() / 40 - 3, 4)
        masks = torch.einsum("qc,bchw->bqhw", self.colors, cells)
        return Proposals(self.class_logits.expand(len(images), -1, -1), masks)


def picture(rows, columns, seed=0):
    """Uint8 ``[3, rows, columns]``, smooth."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(2, rows // 6), max(2, columns // 6), generator=generator) * 255
    return F.interpolate(coarse, (rows, columns), mode="bilinear")[0].byte()


def batch_of(*images, originals=None):
    nothing = SegmentMap(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))
    originals = originals or [tuple(image.shape[1:]) for image in images]
    samples = [Sample(image, nothing, str(i), originals[i]) for i, image in enumerate(images)]
    return Batch.collate(samples, "toy", Task.SEMANTIC)


def classes_of(network, batch, dataset):
    results = segment(network, batch, dataset, PostProcessor())
    return [prediction.class_map() for prediction in results[Task.SEMANTIC]]


# ------------------------------------------------------------------------------------------------ plain views


def test_default_views_are_one_pass_over_the_batch_as_it_is():
    network = Network()
    batch = batch_of(picture(50, 70), picture(64, 40, seed=1), originals=[(90, 120), (33, 20)])
    results = segment(network, batch, SEMANTIC, PostProcessor())[Task.SEMANTIC]
    assert len(network.seen) == 1
    assert network.seen[0] is batch.images
    proposals = network(batch.images, batch.sizes)
    for i, result in enumerate(results):
        geometry = ImageGeometry((64, 96), batch.sizes[i], batch.original_sizes[i])
        expected = semantic(proposals.class_logits[i], proposals.mask_logits[i], geometry)
        assert torch.equal(result.ids, expected.ids)
        assert torch.equal(result.labels, expected.labels)
        assert result.size == batch.original_sizes[i]
        assert len(result.labels) > 1


@pytest.mark.parametrize("window", [77, 96, 500])
def test_a_window_that_covers_the_image_is_the_plain_view(window):
    batch = batch_of(picture(50, 77), originals=[(91, 143)])
    network = Network()
    plain, windowed = (
        segment(network, batch, SEMANTIC, PostProcessor()),
        segment(network, batch, spec(window=window), PostProcessor()),
    )
    assert torch.equal(windowed[Task.SEMANTIC][0].ids, plain[Task.SEMANTIC][0].ids)
    assert torch.equal(network.seen[0], network.seen[1])


def test_other_tasks_share_one_plain_pass_whatever_the_views():
    batch = batch_of(picture(50, 77))
    tasks = (Task.PANOPTIC, Task.SEMANTIC, Task.INSTANCE)
    network = Network()
    results = segment(network, batch, DatasetSpec(VOCABULARY, tasks, TestTimeAugmentation(flip=True)), PostProcessor())
    assert list(results) == list(tasks)
    assert len(network.seen) == 3  # the batch, the image, its mirror image
    alone = PostProcessor()(network(batch.images, batch.sizes), batch, VOCABULARY.is_thing, Task.PANOPTIC)
    assert torch.equal(results[Task.PANOPTIC][0].ids, alone[0].ids)


# ---------------------------------------------------------------------------------------- mirror images, scales


@pytest.mark.parametrize("views", [{}, {"scales": (0.5, 1.25)}, {"window": 40}, {"window": 40, "scales": (1.5,)}])
def test_flip_of_a_mirrored_image_mirrors(views):
    image = picture(61, 83)
    one, other = (
        classes_of(Network(), batch_of(x, originals=[(100, 131)]), spec(flip=True, **views))[0]
        for x in (image, image.flip(-1))
    )
    assert (one != one.flip(-1)).any()
    assert (one == other.flip(-1)).float().mean() > 0.999  # sums in another order


def test_a_mirrored_view_lands_where_it_was_seen():
    network = Network()
    batch = batch_of(picture(64, 96))
    straight, mirrored = image_views(network, batch, 0, TestTimeAugmentation(flip=True))
    assert (straight.geometry.mirrored, mirrored.geometry.mirrored) == (False, True)
    both = [OriginalMasks(view.propose()[1], view.geometry)[slice(0, 64)] for view in (straight, mirrored)]
    assert torch.equal(network.seen[1], network.seen[0].flip(-1))
    torch.testing.assert_close(both[0], both[1])


def test_scales_resize_the_image_and_pad_to_whole_cells():
    network, batch = Network(), batch_of(picture(50, 70), originals=[(100, 140)])
    classes = classes_of(network, batch, spec(scales=(0.5, 1.0, 2.0), flip=True))[0]
    assert classes.shape == (100, 140)
    assert [tuple(images.shape) for images in network.seen] == [
        (1, 3, 32, 64), (1, 3, 32, 64), (1, 3, 64, 96), (1, 3, 64, 96), (1, 3, 128, 160), (1, 3, 128, 160),
    ]  # fmt: skip
    half = network.seen[0][0]
    assert network.sizes[0] == [(25, 35)]
    exact = F.interpolate(batch.images[:, :, :50, :70].float(), (25, 35), mode="bilinear", antialias=True)[0]
    assert (half[:, :25, :35].float() - exact).abs().max() <= 0.5
    assert torch.equal(network.seen[2], batch.images)


def test_a_batch_is_its_images_one_by_one():
    images, originals = [picture(50, 70), picture(64, 40, seed=1)], [(90, 120), (33, 20)]
    dataset = spec(scales=(1.0, 1.5), flip=True, window=48)
    together = classes_of(Network(), batch_of(*images, originals=originals), dataset)
    for i, found in enumerate(together):
        assert torch.equal(found, classes_of(Network(), batch_of(images[i], originals=[originals[i]]), dataset)[0])


# ------------------------------------------------------------------------------------------------------ windows


def test_spans():
    assert spans(100, None, 0.5) == [(0, 100)]
    assert spans(100, 100, 0.5) == [(0, 100)]
    assert spans(100, 40, 0.0) == [(0, 40), (40, 80), (60, 100)]
    assert spans(683, 512, 1 / 3) == [(0, 512), (171, 683)]
    assert spans(1024, 512, 1 / 3) == [(0, 512), (341, 853), (512, 1024)]  # stride 341, as mmsegmentation has it
    assert spans(80, 40, 0.0) == [(0, 40), (40, 80)]


def sides(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(deadline=None, max_examples=60)
@given(
    size=sides(1, 150),
    original=sides(1, 180),
    window=st.integers(32, 100),
    overlap=st.floats(0, 0.9),
    flip=st.booleans(),
)
def test_weights_of_all_windows_sum_to_one_on_every_pixel(size, original, window, overlap, flip):
    batch = batch_of(picture(*size), originals=[original])
    views = image_views(
        Network(), batch, 0, TestTimeAugmentation(scales=(1.0, 1.5), flip=flip, window=window, overlap=overlap)
    )
    total = torch.zeros(original)
    for view in views:
        rows, columns = view.weights
        geometry = view.geometry
        total[geometry.rows, geometry.columns] += rows[geometry.rows, None] * columns[geometry.columns]
        assert max(geometry.size) <= window
        assert all(0 <= o <= f - s for o, f, s in zip(geometry.offset, geometry.frame, geometry.size, strict=True))
    torch.testing.assert_close(total, torch.ones(original))
    assert views[0].geometry.rows.start == 0


@settings(deadline=None, max_examples=60)
@given(data=st.data(), frame=sides(8, 90), original=sides(1, 150), mirrored=st.booleans())
def test_a_windows_masks_equal_the_whole_frames_inside_it(data, frame, original, mirrored):
    """One value a pixel, so that a window of the cells is known exactly; its outermost half pixels are its own."""
    start = tuple(data.draw(st.integers(0, n - 4)) for n in frame)
    size = tuple(data.draw(st.integers(4, n - s)) for n, s in zip(frame, start, strict=True))
    cells = torch.randn(2, *frame, generator=torch.Generator().manual_seed(0))
    cut = cells[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    window, whole = ImageGeometry(size, size, original, frame, start, mirrored), ImageGeometry(frame, frame, original)
    if window.rows.start == window.rows.stop or window.columns.start == window.columns.stop:
        return
    found = OriginalMasks(cut, window)[window.rows]
    expected = OriginalMasks(cells, whole)[slice(0, original[0])]
    expected = (expected.flip(-1) if mirrored else expected)[:, window.rows, window.columns]
    assert found.shape == expected.shape
    inner = []
    for axis, seen in ((0, window.rows), (1, window.columns)):
        pixel = torch.arange(seen.start, seen.stop)
        pixel = original[1] - 1 - pixel if mirrored and axis == 1 else pixel
        centre = (pixel + 0.5) * frame[axis] / original[axis] - 0.5 - start[axis]
        assert (-0.5 - 1e-4 <= centre).all()
        assert (centre < size[axis] - 0.5 + 1e-4).all()
        inner.append((centre >= 0) & (centre <= size[axis] - 1))
    inside = inner[0][:, None] & inner[1]
    torch.testing.assert_close(found[:, inside], expected[:, inside], atol=1e-4, rtol=1e-4)


class Constant:
    """The same proposals for whatever is shown."""

    def __init__(self):
        self.calls = 0
        self.class_logits = 2 * torch.randn(6, CLASSES + 1, generator=torch.Generator().manual_seed(1))

    def __call__(self, images, sizes):
        assert len(images) == 1, "windows go through the network one at a time"
        self.calls += 1
        masks = torch.linspace(-2, 2, 6)[None, :, None, None].expand(1, 6, images.shape[2] // 4, images.shape[3] // 4)
        return Proposals(self.class_logits[None], masks)


@pytest.mark.parametrize("merge", ["sum", "max"])
@pytest.mark.parametrize(
    "views", [TestTimeAugmentation(window=64), TestTimeAugmentation(window=64, flip=True, scales=(1.0, 0.75, 1.5))]
)
def test_windows_of_a_constant_prediction_are_the_plain_view(views, merge):
    network, batch = Constant(), batch_of(picture(64, 96), originals=[(80, 131)])
    options = SemanticOptions(merge)
    plain = PostProcessor(semantic=options)(
        network(batch.images, batch.sizes), batch, VOCABULARY.is_thing, Task.SEMANTIC
    )[0]
    found = segment(network, batch, DatasetSpec(VOCABULARY, (Task.SEMANTIC,), views), PostProcessor(options))
    assert torch.equal(found[Task.SEMANTIC][0].class_map(), plain.class_map())
    assert network.calls > 2
    geometry = ImageGeometry((64, 96), (64, 96), (80, 131))
    proposals = network(batch.images, batch.sizes)
    single = View(geometry, lambda: (proposals.class_logits[0], proposals.mask_logits[0]))
    expected = torch.cat([scores for _, scores in merged_strips([single], merge, "masks", 2**24)], 1)
    strips = list(merged_strips(image_views(network, batch, 0, views), merge, "masks", 10_000))
    assert [rows.start for rows, _ in strips][1:] == [rows.stop for rows, _ in strips][:-1]
    scores = torch.cat([scores for _, scores in strips], 1)
    assert scores.shape == (CLASSES, 80, 131)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected)


def test_scores_by_hand():
    """One query, two classes of probability 3/4 and 1/4, masks constant over a pass: 0.2, 0.6, 0.8, 0.4 in turn."""
    masks = iter([0.2, 0.6, 0.8, 0.4])
    shown = []

    def network(images, sizes):
        shown.append(tuple(images.shape[2:]))
        value = torch.tensor(next(masks)).logit()
        class_logits = torch.tensor([0.75, 0.25, 0.0]).log()
        return Proposals(class_logits[None, None], value.expand(1, 1, images.shape[2] // 4, images.shape[3] // 4))

    batch = batch_of(picture(64, 96))
    views = image_views(network, batch, 0, TestTimeAugmentation(window=64, flip=True, overlap=0.25))
    scores = torch.cat([scores for _, scores in merged_strips(views, "sum", "masks", 2**24)], 1)
    assert shown == [(64, 64)] * 4
    # columns 0-63 and 32-95 straight, then mirrored: columns 32-95 first
    expected = torch.empty(96)
    expected[:32] = (0.2 + 0.4) / 2
    expected[32:64] = ((0.2 + 0.6) / 2 + (0.8 + 0.4) / 2) / 2
    expected[64:] = (0.6 + 0.8) / 2
    torch.testing.assert_close(scores[0], 0.75 * expected.expand(64, 96))
    torch.testing.assert_close(scores[1], 0.25 * expected.expand(64, 96))


def test_windows_are_run_when_their_rows_are_due_and_forgotten_after():
    batch = batch_of(picture(128, 64))
    alive, order = set(), []

    class Logits(torch.Tensor):
        pass

    def open_view(k, view):
        def propose():
            class_logits, masks = view.propose()
            order.append(k)
            alive.add(k)
            kept = masks.clone().as_subclass(Logits)
            weakref.finalize(kept, alive.discard, k)
            return class_logits, kept

        return View(view.geometry, propose, view.weights)

    views = image_views(Network(), batch, 0, TestTimeAugmentation(window=32, overlap=0))
    most = 0
    for _ in merged_strips([open_view(k, view) for k, view in enumerate(views)], "sum", "masks", 64 * 7 * 16):
        most = max(most, len(alive))
    assert order == list(range(8))
    assert most <= 2


LARGE = """
import resource, torch
from dataseg.inference.test_time_augmentation import segment
from dataseg.inference.postprocess import PostProcessor
from dataseg.structures import *
torch.set_num_threads(1)
torch.manual_seed(0)
classes, calls = 459, []
names = tuple(ClassSpec(i, str(i), True, (str(i),), (0, 0, 0)) for i in range(classes))
spec = DatasetSpec(Vocabulary("v", names), (Task.SEMANTIC,), TestTimeAugmentation(window=512))
logits = torch.randn(1, 100, classes + 1) * 3
def network(images, sizes):
    calls.append(images.shape)
    return Proposals(logits, torch.randn(1, 100, images.shape[2] // 4, images.shape[3] // 4))
batch = Batch.collate([Sample(torch.zeros(3, 800, 1000, dtype=torch.uint8), SegmentMap(torch.zeros(1, 1).int(),
    torch.zeros(1).long()), "a", (4000, 5000))], "toy", Task.SEMANTIC)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = segment(network, batch, spec, PostProcessor())[Task.SEMANTIC][0]
print(len(calls), *found.size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_for_twenty_megapixels_and_459_classes():
    output = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, timeout=1800)
    calls, rows, columns, mebibytes = output.stdout.split()
    assert (int(calls), int(rows), int(columns)) == (6, 4000, 5000)
    assert float(mebibytes) < 1200


# -------------------------------------------------------------------------------------------- keys of a run


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 1.0)}, "scales"),
        ({"scales": (0.0,)}, "scales"),
        ({"scales": (float("nan"),)}, "scales"),
        ({"window": 0}, "window"),
        ({"overlap": 1.0}, "overlap"),
    ],
)
def test_impossible_views_are_refused(views, message):
    with pytest.raises(UserError, match=message):
        TestTimeAugmentation(**views)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    sizes = MiniSpec(seed=3, size=64, ade=(2, 3), coco=(2, 2), objects365=(2, 2))
    return ensure(tmp_path_factory.mktemp("data") / "mini", sizes, progress=False)


def validate(suite, runs, *more):
    co_training.run(
        [
            "validate",
            f"--config={ROOT / 'conf' / 'base.yaml'}",
            f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}",
            "--exp=mini_all",
            *on_suite(suite, runs),
            "--data.num_workers=0",
            NO_PICTURES,
            *SMALL,
            *more,
        ]
    )
    return json.loads((runs / "mini_all" / "test" / "metrics.json").read_text())


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """Of all images the network is shown."""
    seen, forward = [], MaskClassificationNetwork.forward

    def spy(self, images, classes, sizes):
        seen.append(tuple(images.shape))
        return forward(self, images, classes, sizes)

    monkeypatch.setattr(MaskClassificationNetwork, "forward", spy)
    return seen


def test_keys_of_the_command_line_reach_the_semantic_task_alone(suite, tmp_path, shapes):
    no_sanity = "--trainer.num_sanity_val_steps=0"
    plain = validate(suite, tmp_path / "plain", no_sanity)
    once = list(shapes)
    assert len(once) == 3 + 3 + 2 + 2
    shapes.clear()
    covered = validate(suite, tmp_path / "covered", no_sanity, "--data.test_time_augmentation.window=500")
    assert shapes == once
    assert {k: v for k, v in covered.items() if k.startswith("ade.")} == {
        k: v for k, v in plain.items() if k.startswith("ade.")
    }
    shapes.clear()
    options = ["--data.test_time_augmentation={scales: [1.0, 1.5], flip: true, window: 64}"]
    augmented = validate(suite, tmp_path / "augmented", no_sanity, *options)
    semantic_passes = len(shapes) - len(once[3:])
    assert shapes[semantic_passes:] == once[3:]
    assert set(shapes[:semantic_passes]) == {(1, 3, 64, 64)}  # the images' shorter side
    assert semantic_passes >= 3 * 2 * (1 + 4)  # at least one window at scale 1 and four at 1.5
    assert "ade.miou" in augmented
    conventions = augmented["conventions"]
    assert conventions["ade.semantic"]["views"] == "scales 1, 1.5, mirrored too, windows of 64 px with overlap 0.333"
    assert conventions["ade.semantic"]["postprocess"] == "merge sum, resize masks"
    assert conventions["o365.instance"]["postprocess"] == "max_instances 100, candidates all"
    assert "views" not in conventions["coco.panoptic"]
    assert conventions["coco.panoptic"]["resize"] == "shorter side 64 px, longer at most 256 px"


def test_views_without_a_semantic_task_are_a_mistake():
    with pytest.raises(UserError, match="semantic tasks only"):
        CoTraining(val={"coco": CocoPanoptic(split="val2017")}, test_time_augmentation=TestTimeAugmentation(flip=True))

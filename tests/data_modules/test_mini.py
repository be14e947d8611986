"""The mini suite: official layouts, consistent files, the same bytes for the same seed."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data_modules.formats import AdePanoptic, AdeSemantic, CocoPanoptic, Objects365Boxes, Objects365Instances
from data_modules.mini import Difficulty, MiniSpec, ensure, ensure_wanted, generate, is_complete, layouts, suite
from data_modules.mini.datasets import ADE, COCO, OBJECTS365, OPEN
from data_modules.mini.scenes import CLUTTER
from data_modules.mini.settings import LAYOUTS
from data_modules.mini.sprites import draw, shift_hue
from data_modules.mini.textures import STUFF, paint
from data_modules.mini.things import SHAPES
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, UserError, Vocabulary

SMALL = MiniSpec(size=96, ade=(4, 6), coco=(121, 4), objects365=(40, 20), open=6, difficulty=Difficulty(crowd=0.3))
SCENES = (
    "a84d1e2014089f41",
    "8ac0834d4c34c450",
    "971eed0e884314c0",
    "a6e25b43f32ec918",
    "c4f0d152243e46bc",
    "a63ccd3811155568",
    "46cca79deafb8d8f",
)
"""Digests of the first pictures' segments, by split; libraries may draw a colour differently, not a segment."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("mini") / "suite", SMALL, progress=False)


def read(path: Path):
    return json.loads(path.read_text())


def read_ids(path: Path) -> np.ndarray:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR).astype(np.int64)
    return bgr[..., 2] + 256 * bgr[..., 1] + 65536 * bgr[..., 0]


def read_gray(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image.ndim == 2
    assert image.dtype == np.uint8
    return image


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------------ determinism


def test_same_seed_same_bytes_and_another_seed_another_suite(tmp_path):
    spec = MiniSpec(size=64, ade=(2, 2), coco=(3, 2), objects365=(3, 2), open=2)
    first = contents(generate(tmp_path / "a", spec, progress=False))
    second = contents(generate(tmp_path / "b", spec, progress=False))
    other = contents(generate(tmp_path / "c", MiniSpec(**{**vars(spec), "seed": 1}), progress=False))
    assert first == second
    pictures = [name for name in first if name.endswith(".jpg")]
    assert len(pictures) == 16
    assert all(first[name] != other[name] for name in pictures)


def test_more_pictures_leave_the_first_ones_as_they_are(tmp_path):
    few = contents(
        generate(tmp_path / "a", MiniSpec(size=64, ade=(2, 1), coco=(1, 1), objects365=(1, 1), open=1), False)
    )
    many = contents(
        generate(tmp_path / "b", MiniSpec(size=64, ade=(3, 1), coco=(2, 1), objects365=(2, 1), open=1), False)
    )
    assert all(many[name] == data for name, data in few.items() if name.endswith((".jpg", ".png")))


# ----------------------------------------------------------------------------------------------------------- ADE20k


def test_ade_layout(root):
    base = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", 4), ("validation", "val", 6)):
        stems = [f"ADE_{short}_{n:08d}" for n in range(1, count + 1)]
        assert sorted(p.name for p in (base / "images" / split).iterdir()) == [f"{s}.jpg" for s in stems]
        assert sorted(p.name for p in (base / "annotations" / split).iterdir()) == [f"{s}.png" for s in stems]
        for stem in stems:
            image = cv2.imread(str(base / "images" / split / f"{stem}.jpg"))
            labels = read_gray(base / "annotations" / split / f"{stem}.png")
            assert image.shape[:2] == labels.shape
            assert labels.max() <= len(ADE.load_vocabulary())


def test_ade_panoptic_agrees_with_labels_and_instances(root):
    base = root / "ADEChallengeData2016"
    content = read(base / "ade20k_panoptic_val.json")
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    ordered_things = [c["id"] for c in content["categories"] if c["isthing"]]
    assert [c["id"] for c in content["categories"]] == list(range(20))
    assert len(content["images"]) == len(content["annotations"]) == 6
    for record in content["annotations"]:
        assert isinstance(record["image_id"], str)
        labels = read_gray(base / "annotations/validation" / record["file_name"])
        ids = read_ids(base / "ade20k_panoptic_val" / record["file_name"])
        instances = cv2.imread(str(base / "annotations_instance/validation" / record["file_name"]))[..., ::-1]
        assert set(np.unique(ids)) - {0} == {s["id"] for s in record["segments_info"]}
        assert ((ids == 0) == (labels == 0)).all()
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert (labels[mask] == segment["category_id"] + 1).all()
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == layouts.box_of(mask)
            if segment["category_id"] in things:
                assert len(np.unique(instances[mask], axis=0)) == 1
                assert ordered_things[instances[mask][0, 0] - 1] == segment["category_id"]
            else:
                assert (instances[mask] == 0).all()


def test_ade_stuff_is_one_segment_a_class(root):
    content = read(root / "ADEChallengeData2016/ade20k_panoptic_val.json")
    stuff = {c["id"] for c in content["categories"] if not c["isthing"]}
    for record in content["annotations"]:
        counts = Counter(s["category_id"] for s in record["segments_info"])
        assert all(counts[c] <= 1 for c in stuff)


# ------------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize(("split", "count"), [("train2017", 121), ("val2017", 4)])
def test_coco_json_agrees_with_its_pngs(root, split, count):
    content = read(root / f"coco/annotations/panoptic_{split}.json")
    is_thing = {c["id"]: c["isthing"] for c in content["categories"]}
    assert sorted(is_thing) != list(range(min(is_thing), min(is_thing) + len(is_thing)))  # gaps
    assert len(content["images"]) == len(content["annotations"]) == count
    for image, record in zip(content["images"], content["annotations"], strict=True):
        assert image["id"] == record["image_id"] == int(image["file_name"].removesuffix(".jpg"))
        ids = read_ids(root / f"coco/annotations/panoptic_{split}" / record["file_name"])
        assert ids.shape == (image["height"], image["width"])
        assert cv2.imread(str(root / "coco" / split / image["file_name"])).shape[:2] == ids.shape
        assert set(np.unique(ids)) - {0} == {s["id"] for s in record["segments_info"]}
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == layouts.box_of(mask)
            assert is_thing[segment["category_id"]] or not segment["iscrowd"]
        stuff = Counter(s["category_id"] for s in record["segments_info"] if not is_thing[s["category_id"]])
        assert all(n == 1 for n in stuff.values())


def test_coco_has_void_crowds_large_ids_and_an_image_without_segments(root):
    content = read(root / "coco/annotations/panoptic_train2017.json")
    segments = [s for a in content["annotations"] for s in a["segments_info"]]
    assert sum(s["iscrowd"] for s in segments) >= 5
    assert max(s["id"] for s in segments) >= 2**16
    assert [len(a["segments_info"]) for a in content["annotations"]].count(0) == 1
    files = [root / "coco/annotations/panoptic_train2017" / a["file_name"] for a in content["annotations"]]
    assert sum((read_ids(f) == 0).any() for f in files) > len(files) // 2


# ------------------------------------------------------------------------------------------------------- Objects365


def test_objects365_layout_and_records(root):
    for split in ("train", "val"):
        content = read(root / f"objects365/{split}/zhiyuan_objv2_{split}.json")
        assert [c["id"] for c in content["categories"]] == list(range(1, 17))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        for image in content["images"]:
            _, version, patch, name = image["file_name"].split("/")
            folder = root / "objects365" / (split if split == "train" else f"val/images/{version}")
            assert name.startswith(f"objects365_{version}_")
            assert cv2.imread(str(folder / patch / name)).shape[:2] == (image["height"], image["width"])
        assert not any("segmentation" in a for a in content["annotations"])


def test_objects365_has_boxes_out_of_bounds_and_duplicates(root):
    content = read(root / "objects365/train/zhiyuan_objv2_train.json")
    sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
    outside = 0
    for record in content["annotations"]:
        x, y, w, h = record["bbox"]
        outside += (
            x < -1 or y < -1 or x + w > sizes[record["image_id"]][0] + 1 or y + h > sizes[record["image_id"]][1] + 1
        )
    keys = Counter((a["image_id"], *a["bbox"], a["category_id"]) for a in content["annotations"])
    assert outside > 0
    assert max(keys.values()) == 2


def test_objects365_masks_lie_in_their_boxes(root):
    content = read(root / "objects365/o365_instance_seg_val.json")
    sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    kinds = Counter(type(a.get("segmentation")).__name__ for a in content["annotations"])
    assert kinds["NoneType"] > 0
    assert kinds["list"] > 5
    assert kinds["dict"] > 5
    for record in content["annotations"]:
        segmentation = record.get("segmentation")
        assert segmentation is None or not record["iscrowd"]
        if segmentation is None:
            continue
        rle = segmentation
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *sizes[record["image_id"]]))
        mask = coco_mask.decode(rle).astype(bool)
        x, y, w, h = layouts.box_of(mask)
        x0, y0, w0, h0 = record["bbox"]
        assert x >= x0 - 2
        assert y >= y0 - 2
        assert x + w <= x0 + w0 + 2
        assert y + h <= y0 + h0 + 2
        assert mask.sum() == pytest.approx(record["area"], rel=0.05)


@pytest.mark.parametrize("kind", ["dog", "house", "ball", "lamp"])
def test_polygons_reproduce_the_mask(kind):
    sprite = draw(SHAPES[kind], 40, np.random.default_rng(0), hue=0, tilt=0)
    mask = np.pad(sprite.alpha >= 0.5, 3)
    rle = coco_mask.merge(coco_mask.frPyObjects(layouts.polygons_of(mask), *mask.shape))
    again = coco_mask.decode(rle).astype(bool)
    assert (mask & again).sum() / (mask | again).sum() > 0.97


def test_polygons_cannot_say_holes():
    mask = np.ones((5, 5), dtype=bool)
    assert layouts.polygons_of(mask)
    mask[2, 2] = False
    assert layouts.polygons_of(mask) == []


# ------------------------------------------------------------------------------------------------------- mini-Open


def prompts_and_names(dataset) -> set[str]:
    return {text.casefold() for c in dataset.load_vocabulary().classes for text in (c.name, *c.prompts)}


def test_no_training_set_has_a_name_of_mini_open():
    assert not prompts_and_names(OPEN) & set.union(*(prompts_and_names(d) for d in (ADE, COCO, OBJECTS365)))


def test_mini_open_has_all_known_kinds_and_unknown_ones():
    known = set.union(*(set(d.kinds.values()) for d in (ADE, COCO, OBJECTS365)))
    assert known < set(OPEN.kinds.values())
    assert set(OPEN.kinds.values()) - known == set(CLUTTER), "what no training set names"


def test_mini_open_combines_what_no_training_set_does():
    def combinations(datasets):
        """Things with the stuff they stand in, and kinds of stuff that touch."""
        layouts = [LAYOUTS[name] for d in datasets for name in d.domain.layouts]
        things = {(band.stuff, thing) for bands in layouts for band in bands for thing in band.things}
        return things, {(a.stuff, b.stuff) for bands in layouts for a, b in pairwise(bands)}

    for seen, new in zip(combinations([ADE, COCO, OBJECTS365]), combinations([OPEN]), strict=True):
        assert len(new - seen) > len(new) / 2
    assert not set(OPEN.domain.layouts) & {name for d in (ADE, COCO, OBJECTS365) for name in d.domain.layouts}


def test_mini_open_shows_every_class():
    shown = Counter()
    for index in range(MiniSpec().open):
        _, scene = suite.make_scene(OPEN, MiniSpec(size=64), (6, index))
        shown.update(scene.regions[row].kind for row in np.unique(scene.ids) if row != VOID)
    assert set(shown) == set(OPEN.kinds.values())


def test_earlier_splits_keep_their_bytes(tmp_path):
    """Figures of the mini suite are compared across versions: a new split or layout must not change the pictures."""
    spec = MiniSpec(size=64)
    for number, (split, digest) in enumerate(zip(suite._splits(spec), SCENES, strict=True)):
        scenes = [suite.make_scene(split.dataset, spec, (number, index))[1] for index in range(3)]
        labels = b"".join(scene.ids.tobytes() + repr((scene.regions, scene.quality)).encode() for scene in scenes)
        assert hashlib.sha256(labels).hexdigest()[:16] == digest, split.name


# ----------------------------------------------------------------------------------------- vocabularies and pictures


def test_vocabularies_overlap_but_differ():
    ade, coco, o365 = (set(d.kinds.values()) for d in (ADE, COCO, OBJECTS365))
    assert len(ade & coco) >= 10
    assert len(ade & o365) >= 5
    assert len(coco & o365) >= 8
    assert ade - coco - o365
    assert coco - ade - o365
    assert o365 - ade - coco
    synonyms = {a for a, kind in ADE.kinds.items() if kind in coco} - set(COCO.kinds)
    assert {"car", "sofa", "person"} <= synonyms


@pytest.mark.parametrize("dataset", [ADE, COCO, OBJECTS365, OPEN], ids=lambda d: d.vocabulary)
def test_vocabulary_files_are_official(dataset):
    vocabulary = dataset.load_vocabulary()
    assert isinstance(vocabulary, Vocabulary)
    assert vocabulary.name == dataset.vocabulary
    assert set(dataset.kinds.values()) <= set(SHAPES) | set(STUFF)
    shown = {kind for name in dataset.domain.layouts for band in LAYOUTS[name] for kind in (band.stuff, *band.things)}
    assert set(dataset.kinds.values()) <= shown | set(CLUTTER)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_sprites_have_the_stated_shape(kind):
    sprite = draw(SHAPES[kind], 30, np.random.default_rng(0), hue=5, tilt=0)
    rows, columns = sprite.alpha.shape
    assert sprite.rgb.shape == (rows, columns, 3)
    assert sprite.rgb.dtype == sprite.alpha.dtype == np.float32
    assert abs(rows - 30) <= 5
    assert columns == pytest.approx(30 * SHAPES[kind].aspect, abs=5)
    assert 0 <= sprite.alpha.min()
    assert sprite.alpha.max() == 1


@pytest.mark.parametrize("kind", sorted(STUFF))
def test_stuff_has_the_stated_shape(kind):
    texture = paint(kind, np.random.default_rng(0), 20, 33)
    assert texture.shape == (20, 33, 3)
    assert texture.dtype == np.float32


def test_shift_hue_by_nothing_changes_nothing():
    rgb = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(np.float32)
    assert np.allclose(shift_hue(rgb, 0), rgb, atol=0.01)
    assert np.allclose(shift_hue(rgb, 360), rgb, atol=0.01)


@given(seed=st.integers(0, 10_000), index=st.integers(0, 10_000), number=st.sampled_from([0, 2, 4, 6]))
@settings(max_examples=25, deadline=None)
def test_any_scene_is_consistent(seed, index, number):
    dataset = {0: ADE, 2: COCO, 4: OBJECTS365, 6: OPEN}[number]
    spec = MiniSpec(seed=seed, size=64)
    _, scene = suite.make_scene(dataset, spec, (number, index))
    assert scene.rgb.dtype == np.uint8
    assert scene.rgb.shape == (*scene.ids.shape, 3)
    assert VOID <= scene.ids.min()
    assert scene.ids.max() < len(scene.regions)
    count = np.bincount(scene.ids.ravel() + 1)[1:]
    assert (count[count > 0] >= spec.difficulty.min_visible).all()
    assert dataset.crowds or not any(r.is_crowd for r in scene.regions)


# ---------------------------------------------------------------------------------------------------------- ensure


@pytest.fixture
def tiny():
    return MiniSpec(size=48, ade=(1, 1), coco=(1, 1), objects365=(1, 1), open=1)


def test_ensure_does_nothing_when_all_is_there(tmp_path, tiny):
    made = ensure(tmp_path / "mini", tiny, progress=False)
    times = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert is_complete(made, tiny)
    ensure(made, tiny, progress=False)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == times


def test_ensure_writes_nothing_beside_a_complete_suite(tmp_path, tiny, monkeypatch):
    made = generate(tmp_path / "mini", tiny, progress=False)
    monkeypatch.setattr(suite, "_lock", lambda root: pytest.fail("a read-only folder refuses the lock"))
    assert ensure(made, tiny) == made


@pytest.mark.parametrize("damage", ["file", "manifest", "version"])
def test_ensure_mends_a_damaged_suite(tmp_path, tiny, damage, monkeypatch):
    made = ensure(tmp_path / "mini", tiny, progress=False)
    whole = contents(made)
    if damage == "file":
        next(made.rglob("*.jpg")).unlink()
    elif damage == "manifest":
        content = read(made / "suite.json")
        (made / "suite.json").write_text(json.dumps(content)[:-5])
    else:
        monkeypatch.setattr(suite, "GENERATOR_VERSION", suite.GENERATOR_VERSION + 1)
    assert not is_complete(made, tiny)
    ensure(made, tiny, progress=False)
    assert is_complete(made, tiny)
    if damage != "version":
        assert contents(made) == whole


def test_ensure_replaces_a_suite_of_other_parameters(tmp_path, tiny):
    ensure(tmp_path / "mini", tiny, progress=False)
    other = MiniSpec(**{**vars(tiny), "seed": 5})
    ensure(tmp_path / "mini", other, progress=False)
    assert is_complete(tmp_path / "mini", other)
    assert not is_complete(tmp_path / "mini", tiny)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".mini.lock"] == ["mini"]


def test_foreign_folders_are_never_replaced(tmp_path, tiny):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"mini exists and is no mini suite.*suite\.json"):
        ensure(tmp_path / "mini", tiny, progress=False)
    assert (tmp_path / "mini" / "thesis.tex").read_text() == "years of work"


def test_a_mistyped_folder_is_not_made(tmp_path, tiny):
    with pytest.raises(UserError, match=r"nowhere: there is no such folder.*dataseg mini --out \S+/nowhere"):
        ensure_wanted(tmp_path / "nowhere", tiny)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    for name in ("empty", "mini_suite"):
        ensure_wanted(tmp_path / name, tiny)
        assert is_complete(tmp_path / name, tiny)


def test_an_interrupted_run_leaves_nothing(tmp_path, tiny, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layouts, "write_objects365", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "mini", tiny, progress=False)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".mini.lock"] == []


def test_several_at_once_make_one_suite(tmp_path, tiny, monkeypatch):
    made = []
    write = suite._write
    monkeypatch.setattr(suite, "_write", lambda *a: (made.append(1), write(*a)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure(tmp_path / "mini", tiny, progress=False), range(4)))
    assert made == [1]
    assert is_complete(tmp_path / "mini", tiny)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"size": 8}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="need seed >= 0 and size >= 32"):
        MiniSpec(**wrong)


# ------------------------------------------------------------------------------------------------------ our readers


def test_our_readers_read_it(root):
    readers = [
        (AdeSemantic(vocabulary="mini_ade"), 4),
        (AdeSemantic(split="validation", vocabulary="mini_ade"), 6),
        (AdePanoptic(vocabulary="mini_ade"), 6),
        (CocoPanoptic(vocabulary="mini_coco"), 121),
        (CocoPanoptic(split="val2017", vocabulary="mini_coco"), 4),
        (Objects365Boxes(vocabulary="mini_objects365"), 40),
        (Objects365Boxes(split="val", vocabulary="mini_objects365"), 20),
        (Objects365Instances(vocabulary="mini_objects365"), 20),
        (CocoPanoptic(root="open", split="val", vocabulary="mini_open"), 6),
    ]
    expected = {"map": SegmentMap, "boxes": Boxes, "masks": InstanceMasks}
    for reader, count in readers:
        reader.setup(root)
        assert len(reader) == count
        for index in range(min(count, 6)):
            image, target = reader.load(index)
            assert image.ndim == 3
            assert isinstance(target, expected[reader.gives])


def test_reader_mends_what_was_made_wrong_on_purpose(root):
    reader = Objects365Boxes(vocabulary="mini_objects365")
    reader.setup(root)
    assert sum(reader.counts.values()) > 0
    for index in range(len(reader)):
        image, target = reader.load(index)
        assert (target.xyxy[:, :2] >= 0).all()
        assert (target.xyxy[:, 2] <= image.shape[1]).all()
        assert (target.xyxy[:, 3] <= image.shape[0]).all()

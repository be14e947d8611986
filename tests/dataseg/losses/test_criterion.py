from dataclasses import replace

import pytest
import torch
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as theirs

from dataseg.losses import Criterion, NonFiniteCostError
from dataseg.losses.criterion import LOSS_STREAM, MATCHING_STREAM
from dataseg.losses.points import uniform_points
from dataseg.structures import VOID, Boxes, InstanceMasks, Proposals, SegmentMap

CPU = torch.device("cpu")
SIZE = (64, 48)
KEYS = ["class", "mask", "dice", "projection"]


def some_targets(toys, size=SIZE, classes=5):
    """One of each kind: map, boxes, none, RLE."""
    return [
        toys.map(size, 4, classes, seed=1),
        toys.boxes(size, 3, classes),
        toys.map(size, 0, classes),
        toys.instances(toys.map(size, 5, classes, seed=2)),
    ]


def having(batch, targets):
    return replace(batch, targets=targets)


def totals(losses):
    return {name: loss.item() for name, loss in losses.items()}


def only(proposals, images):
    return [Proposals(class_logits=p.class_logits[images], mask_logits=p.mask_logits[images]) for p in proposals]


class TheirPoints:
    """torch.rand for transformers' code: gives it our points, layer by layer, image by image."""

    def __init__(self, seeds, masks, layers, num_points):
        candidates, uniform = 3 * num_points, num_points - int(0.75 * num_points)
        matching = [uniform_points(s, MATCHING_STREAM, (num_points,), CPU)[None] for s in seeds]
        drawn = [uniform_points(s, LOSS_STREAM, (layers, candidates + uniform), CPU) for s in seeds]
        self.queue = []
        for layer in range(layers):
            self.queue += matching
            rows = torch.cat([d[layer].expand(m, -1, -1) for d, m in zip(drawn, masks, strict=True)])
            self.queue += [rows[:, :candidates], rows[:, candidates:]]

    def __call__(self, *shape, **_):
        points = self.queue.pop(0).contiguous()
        assert points.shape == shape
        return points


@pytest.mark.parametrize(("segments", "queries"), [((3, 6), 8), ((1, 12), 9), ((4, 0), 5)])
def test_equals_transformers(toys, monkeypatch, segments, queries):
    batch = toys.batch([SIZE] * 2)
    proposals = toys.proposals(batch, queries, classes=5, layers=3)
    targets = [toys.map(SIZE, k, 5, seed=i, void=False) for i, k in enumerate(segments)]
    masks = [toys.masks(t) if len(t) else torch.zeros(0, *SIZE) for t in targets]
    ours = Criterion(num_points=128)(proposals, having(batch, targets))

    config = Mask2FormerConfig(train_num_points=128, oversample_ratio=3.0, importance_sample_ratio=0.75)
    config.num_labels = 5
    official = theirs.Mask2FormerLoss(config, {})
    monkeypatch.setattr(theirs.torch, "rand", TheirPoints(batch.seeds, [min(k, queries) for k in segments], 3, 128))
    aux = [{"masks_queries_logits": p.mask_logits, "class_queries_logits": p.class_logits} for p in proposals[1:]]
    first = proposals[0]
    expected = official(first.mask_logits, first.class_logits, masks, [t.labels for t in targets], aux)
    sums = {"class": 0.0, "mask": 0.0, "dice": 0.0}
    names = {"loss_cross_entropy": ("class", 2.0), "loss_mask": ("mask", 5.0), "loss_dice": ("dice", 5.0)}
    for key, value in expected.items():
        name, weight = names["_".join(key.split("_")[:3]) if "entropy" in key else "_".join(key.split("_")[:2])]
        sums[name] = sums[name] + weight * value
    for name, value in sums.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    leaves = [tensor for p in proposals for tensor in (p.class_logits, p.mask_logits)]
    got = torch.autograd.grad(sum(ours.values()), leaves)
    for a, b in zip(got, torch.autograd.grad(sum(sums.values()), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_keys_shapes_types_and_order(toys):
    batch = toys.batch([SIZE] * 4)
    losses = Criterion(num_points=64)(toys.proposals(batch, 6, 5, layers=2), having(batch, some_targets(toys)))
    assert list(losses) == KEYS
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss > 0 for loss in losses.values())
    losses = Criterion(num_points=64, affinity_weight=1.0)(
        toys.proposals(batch, 6, 5), having(batch, some_targets(toys))
    )
    assert list(losses) == [*KEYS, "affinity"]
    assert losses["affinity"] > 0


@pytest.mark.parametrize("kind", ["map", "boxes", "instances"])
def test_zero_targets(toys, kind):
    batch = toys.batch([SIZE] * 2)
    none = torch.zeros(0, dtype=torch.int64)
    target = {
        "map": SegmentMap(torch.full(SIZE, VOID, dtype=torch.int32), none),
        "boxes": Boxes(torch.zeros(0, 4), none),
        "instances": InstanceMasks([], none, SIZE),
    }[kind]
    proposals = toys.proposals(batch, 6, 5, layers=2)
    losses = Criterion(num_points=64, affinity_weight=1.0)(proposals, having(batch, [target, target]))
    assert losses["class"] > 0
    assert all(losses[name].item() == 0 for name in (*KEYS[1:], "affinity"))
    sum(losses.values()).backward()
    for p in proposals:
        assert p.class_logits.grad.abs().sum() > 0
        assert torch.equal(p.mask_logits.grad, torch.zeros_like(p.mask_logits))


def test_graph_reaches_every_layer_whatever_the_targets(toys):
    batch = toys.batch([SIZE])
    for target in some_targets(toys):
        for options in ({}, {"box_supervision": "off"}, {"affinity_weight": 1.0}):
            proposals = toys.proposals(batch, 6, 5, layers=3)
            losses = Criterion(num_points=16, **options)(proposals, having(batch, [target]))
            assert all(loss.requires_grad for loss in losses.values())
            sum(losses.values()).backward()
            assert all(p.class_logits.grad is not None and p.mask_logits.grad is not None for p in proposals)


def test_map_equals_rle(toys):
    batch = toys.batch([SIZE])
    proposals = toys.proposals(batch, 8, 5, layers=2)
    target = toys.map(SIZE, 5, 5)
    from_map, from_rle = (
        Criterion(num_points=200)(proposals, having(batch, [t])) for t in (target, toys.instances(target))
    )
    assert totals(from_map) == pytest.approx(totals(from_rle), rel=1e-5)


def normalizers(criterion, proposals, batch):
    """What the losses' sums are divided by."""
    found = []
    criterion(proposals, batch, lambda own: found.append(own) or own)
    return found[0]


def four_at_once(toys):
    """Criterion, batch, targets, proposals and their logits; loss and gradients of the four samples together."""
    criterion = Criterion(num_points=100, affinity_weight=0.5)
    batch, targets = toys.batch([SIZE] * 4, seeds=[5, 6, 7, 8]), some_targets(toys)
    proposals = toys.proposals(batch, 6, 5, layers=2)
    leaves = [tensor for p in proposals for tensor in (p.class_logits, p.mask_logits)]
    whole = criterion(proposals, having(batch, targets))
    grads = torch.autograd.grad(sum(whole.values()), leaves)
    return criterion, batch, targets, proposals, leaves, whole, grads


def test_batched_equals_single_and_the_average_over_ranks(toys):
    """Four samples at once, one by one, and as two ranks whose normalisers are averaged: the same loss and gradient."""
    criterion, batch, targets, proposals, leaves, whole, grads = four_at_once(toys)
    for shares in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[2], [0, 1, 3]]):
        parts = []
        for share in shares:
            part = toys.batch([SIZE] * len(share), seeds=[batch.seeds[i] for i in share])
            part = replace(part, images=batch.images[share], targets=[targets[i] for i in share])
            parts.append((only(proposals, share), part))
        mean = torch.stack([normalizers(criterion, *part) for part in parts]).mean(0)
        parts = [criterion(*part, lambda own, mean=mean: mean) for part in parts]
        average = {name: sum(p[name] for p in parts) / len(shares) for name in whole}
        assert totals(average) == pytest.approx(totals(whole), rel=1e-5)
        for a, b in zip(torch.autograd.grad(sum(average.values()), leaves), grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shares", [[[0], [1], [2], [3]], [[0, 1], [2, 3]]])
def test_the_mean_over_accumulated_batches_is_one_large_batch(toys, shares):
    """However unevenly segments are spread over them: 4, 3, none and 5."""
    criterion, batch, targets, proposals, leaves, whole, grads = four_at_once(toys)
    parts = []
    for share in shares:
        part = toys.batch([SIZE] * len(share), seeds=[batch.seeds[i] for i in share])
        part = replace(part, images=batch.images[share], targets=[targets[i] for i in share], step_targets=targets)
        parts.append(criterion(only(proposals, share), part))
    average = {name: sum(p[name] for p in parts) / len(shares) for name in whole}
    assert totals(average) == pytest.approx(totals(whole), rel=1e-6)
    for a, b in zip(torch.autograd.grad(sum(average.values()), leaves), grads, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


def test_permuted_queries(toys):
    batch, targets = toys.batch([SIZE] * 4), some_targets(toys)
    proposals, order = toys.proposals(batch, 7, 5, layers=2), torch.randperm(7)
    permuted = [Proposals(p.class_logits[:, order], p.mask_logits[:, order]) for p in proposals]
    criterion = Criterion(num_points=100)
    expected = totals(criterion(proposals, having(batch, targets)))
    assert totals(criterion(permuted, having(batch, targets))) == pytest.approx(expected, rel=1e-5)


def perfect(target, size, queries, classes, swap=False):
    """Proposals that are sure of every segment at its place; segments must be aligned to 4 pixels."""
    masks = torch.full((1, queries, size[0] // 4, size[1] // 4), -40.0)
    logits = torch.full((1, queries, classes + 1), -40.0)
    logits[..., -1] = 40.0
    for k, label in enumerate(target.labels.tolist()):
        row = queries - 1 - k if swap else k
        logits[0, row, -1], logits[0, row, label] = -40.0, 40.0
        masks[0, row][(target.ids == k)[2::4, 2::4]] = 40.0
    return Proposals(logits.requires_grad_(), masks.requires_grad_())


@pytest.mark.parametrize("mask_loss", ["bce", "focal"])
def test_perfect_prediction_costs_next_to_nothing(toys, mask_loss):
    """Segments are 8 pixels of VOID apart: no bilinear edge of a 4-pixel grid is perfect on the boundary itself.

    Nor on the rim of the image, where samples fade to 0, as in Mask2Former.
    """
    ids = torch.full((64, 64), VOID, dtype=torch.int32)
    ids[1:-1, 1:28], ids[1:-1, 36:-1] = 0, 1
    target = SegmentMap(ids, torch.tensor([3, 1]))
    batch = toys.batch([(64, 64)])
    criterion = Criterion(num_points=500, mask_loss=mask_loss)
    losses = criterion([perfect(target, (64, 64), 6, 4, swap=True)], having(batch, [target]))
    assert totals(losses) == pytest.approx(dict.fromkeys(KEYS, 0.0), abs=1e-4)
    wrong = criterion([perfect(SegmentMap(ids.T.contiguous(), target.labels), (64, 64), 6, 4)], having(batch, [target]))
    assert wrong["mask"] > 1
    assert wrong["dice"] > 1


def test_perfect_boxes_cost_next_to_nothing(toys):
    ids = torch.zeros(64, 64, dtype=torch.int32)
    ids[:, 32:], ids[:16, 32:] = 1, VOID
    target = SegmentMap(ids, torch.tensor([3, 1]))
    boxes = Boxes(torch.tensor([[0.0, 0, 32, 64], [32, 16, 64, 64]]), target.labels)
    losses = Criterion()([perfect(target, (64, 64), 6, 4)], having(toys.batch([(64, 64)]), [boxes]))
    assert sum(losses.values()) < 1e-4


def test_void_has_no_influence(toys):
    ids = torch.zeros(64, 64, dtype=torch.int32)
    ids[:, 32:], ids[16:56, 16:56] = 1, VOID
    target = SegmentMap(ids, torch.tensor([3, 1]))
    batch = toys.batch([(64, 64)])
    proposals = toys.proposals(batch, 6, 4, layers=2)
    changed = [Proposals(p.class_logits, p.mask_logits.detach().clone()) for p in proposals]
    for p in changed:  # cells 4..13 are void; the bilinear support of valid points reaches one cell into them
        p.mask_logits[..., 5:13, 5:13] = 100 * torch.randn(8, 8)
    criterion = Criterion(num_points=500)
    before, after = (criterion(p, having(batch, [target])) for p in (proposals, changed))
    assert totals(before) == totals(after)
    sum(before.values()).backward()
    for p in proposals:
        assert p.mask_logits.grad[..., 5:13, 5:13].abs().sum() == 0
        assert p.mask_logits.grad.abs().sum() > 0


def test_void_padding_has_no_influence(toys):
    """Alone or padded beside a larger image: the same points, the same loss. Logits are 0 in the padding."""
    small, large = (32, 48), (64, 64)
    criterion = Criterion(num_points=300, padding="void")
    for target in (toys.map(small, 3, 4), toys.instances(toys.map(small, 3, 4)), toys.boxes(small, 3, 4)):
        alone = toys.proposals(toys.batch([small]), 5, 4)
        masks = torch.zeros(1, 5, 16, 16)
        masks[..., :8, :12] = alone[0].mask_logits.detach()
        padded = [Proposals(alone[0].class_logits, masks)]
        expected = totals(criterion(alone, having(toys.batch([small]), [target])))
        batch = having(toys.batch([small], divisor_size=large), [target])
        assert totals(criterion(padded, batch)) == pytest.approx(expected, rel=1e-4)
        if isinstance(target, Boxes):
            masks[..., 8:, :] = masks[..., 12:] = 50.0
            assert totals(criterion(padded, batch)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["map", "instances", "boxes"])
def test_padding_is_background_by_default(toys, kind):
    """As if the target had been drawn on the padded canvas, where nothing lies beyond the image."""
    small, large = (32, 48), (64, 64)
    target = toys.map(small, 3, 4, void=False)
    ids = torch.full(large, 3, dtype=torch.int32)  # a segment of its own, of which only the others are asked for
    ids[: small[0], : small[1]] = target.ids
    masks = torch.stack([ids == k for k in range(3)])
    canvas = InstanceMasks([toys.rle(m) for m in masks], target.labels, large)
    boxes = toys.boxes(small, 3, 4)
    cut, whole = {
        "map": (target, canvas), "instances": (toys.instances(target), canvas), "boxes": (boxes, boxes)
    }[kind]  # fmt: skip
    batch = toys.batch([small], divisor_size=large)
    proposals = toys.proposals(batch, 5, 4, layers=2)
    criterion = Criterion(num_points=300)
    expected = totals(criterion(proposals, having(replace(batch, sizes=[large]), [whole])))
    assert totals(criterion(proposals, having(batch, [cut]))) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        for p in proposals:
            p.mask_logits[..., 12:] = 50.0
    term = "projection" if kind == "boxes" else "dice"
    after = totals(criterion(proposals, having(batch, [cut])))[term]
    assert abs(after / expected[term] - 1) > 1e-3, "masks are compared in the padding too"


@pytest.mark.parametrize("padding", ["background", "void"])
def test_small_images_have_as_many_points(toys, padding):
    """Between draws of points the loss of an image of a tenth of the padded sides varies as little as any."""
    size = (64, 64)
    target, found = toys.map(size, 3, 4, void=False), []
    for seed in range(6):
        batch = having(toys.batch([size], seeds=[seed], divisor_size=(640, 640)), [target])
        with torch.no_grad():
            losses = Criterion(padding=padding)(toys.proposals(batch, 5, 4), batch)
        found.append(losses["mask"] + losses["dice"])
    values = torch.stack(found)
    assert values.std() / values.mean() < 0.02


def test_less_than_one_segment_a_rank_counts_as_one(toys):
    """Ranks with one segment and none, by hand: the official code clamps their mean, 1/2, at 1."""
    batch, target = toys.batch([SIZE]), toys.map(SIZE, 1, 5, void=False)
    proposals, criterion = toys.proposals(batch, 6, 5), Criterion(num_points=64)
    alone = criterion(proposals, having(batch, [target]))  # over 1 segment
    on_first = criterion(proposals, having(batch, [target]), lambda own: torch.tensor([0.5, own[1]]))
    for term in ("mask", "dice"):
        torch.testing.assert_close(on_first[term], alone[term])


def test_points_depend_on_the_seed_alone(toys):
    target, criterion = toys.map(SIZE, 4, 5), Criterion(num_points=50)
    batch = toys.batch([SIZE], seeds=[1])
    proposals = toys.proposals(batch, 6, 5)
    first = totals(criterion(proposals, having(batch, [target])))
    torch.manual_seed(99)
    assert totals(criterion(proposals, having(batch, [target]))) == first
    assert totals(criterion(proposals, having(toys.batch([SIZE], seeds=[2]), [target]))) != first


def test_gradients_are_finite_under_bfloat16_autocast(toys):
    batch, targets = toys.batch([SIZE] * 4), some_targets(toys)
    features = torch.randn(4, 6, 8, requires_grad=True)
    pixels = torch.randn(4, 8, 16, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks = torch.einsum("bqd,bdhw->bqhw", features, pixels)
        classes = features @ torch.randn(8, 6)
        assert masks.dtype == torch.bfloat16
        losses = Criterion(num_points=64, affinity_weight=1.0)([Proposals(classes, masks)] * 2, having(batch, targets))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert features.grad.isfinite().all()


def test_extreme_logits_stay_finite(toys):
    batch, targets = toys.batch([SIZE] * 4), some_targets(toys)
    proposals = [
        Proposals(*(1e4 * t.detach() for t in (p.class_logits, p.mask_logits))) for p in toys.proposals(batch, 6, 5)
    ]
    for p in proposals:
        p.class_logits.requires_grad_()
        p.mask_logits.requires_grad_()
    sum(Criterion(num_points=64, affinity_weight=1.0)(proposals, having(batch, targets)).values()).backward()
    assert all(t.grad.isfinite().all() for p in proposals for t in (p.class_logits, p.mask_logits))


def test_more_targets_than_queries(toys):
    batch = toys.batch([SIZE] * 2)
    targets = [toys.map(SIZE, 9, 5, void=False), toys.boxes(SIZE, 11, 5)]
    losses = Criterion(num_points=64)(toys.proposals(batch, 4, 5, layers=2), having(batch, targets))
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert normalizers(Criterion(), toys.proposals(batch, 4, 5), having(batch, targets)).tolist() == [20, 8]


def test_normalizers_count_segments_and_class_weights(toys):
    # 4 + 3 + 0 + 5 segments (crowd left out); 12 matched queries of 4 x 6, the others weigh 0.1
    batch = having(toys.batch([SIZE] * 4), some_targets(toys))
    values = normalizers(Criterion(), toys.proposals(batch, 6, 5), batch)
    assert values.shape == (2,)
    torch.testing.assert_close(values, torch.tensor([12.0, 12 + 0.1 * 12]))


def test_box_supervision_off_gives_masks_no_gradient(toys):
    batch = toys.batch([SIZE])
    proposals = toys.proposals(batch, 6, 5)
    target = toys.boxes(SIZE, 3, 5)
    losses = Criterion(box_supervision="off", affinity_weight=1.0)(proposals, having(batch, [target]))
    assert list(losses) == KEYS
    assert losses["projection"] == 0
    torch.testing.assert_close(losses["class"], Criterion()(proposals, having(batch, [target]))["class"])
    sum(losses.values()).backward()
    assert proposals[0].mask_logits.grad.abs().sum() == 0


def test_weights_scale_the_losses(toys):
    """Weights change matching too: one query and one target leave no choice."""
    batch = toys.batch([SIZE] * 2)
    targets = [toys.map(SIZE, 1, 3), toys.boxes(SIZE, 1, 3)]
    proposals = toys.proposals(batch, 1, 3)
    ones = Criterion(num_points=64, class_weight=1, mask_weight=1, dice_weight=1, projection_weight=1)
    batch = having(batch, targets)
    base, default = totals(ones(proposals, batch)), totals(Criterion(num_points=64)(proposals, batch))
    assert default == pytest.approx({n: w * base[n] for n, w in zip(KEYS, (2, 5, 5, 5), strict=True)})


def test_errors_name_the_image(toys):
    batch = toys.batch([SIZE] * 2)
    proposals = toys.proposals(batch, 6, 5)
    good = toys.map(SIZE, 3, 5)
    with pytest.raises(ValueError, match="image image-1: its target is 9 x 9"):
        Criterion()(proposals, having(batch, [good, toys.map((9, 9), 3, 5)]))
    with torch.no_grad():
        proposals[0].mask_logits[1] = float("nan")
    with pytest.raises(NonFiniteCostError, match="'image-1'"):
        Criterion()(proposals, having(batch, [good, good]))
    with pytest.raises(ValueError, match="oversample_ratio >= 1"):
        Criterion(oversample_ratio=0.5)

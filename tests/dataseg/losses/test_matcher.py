from itertools import permutations

import pytest
import torch
from transformers.models.mask2former import modeling_mask2former as theirs

from dataseg.losses.matcher import BoxTargets, HungarianMatcher, NonFiniteCostError, PointTargets
from dataseg.losses.points import sample_map
from dataseg.losses.terms import box_profiles

MATCHER = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, projection_weight=5.0)


def point_targets(target, points):
    return PointTargets(points, *sample_map(target.ids, len(target), points))


def pairs(matches, layer, image):
    start = sum(matches.counts[:image])
    chosen = slice(start, start + matches.counts[image])
    return list(zip(matches.queries[layer, chosen].tolist(), matches.segments[layer, chosen].tolist(), strict=True))


@pytest.mark.parametrize("segments", [1, 5, 12])  # 12: more targets than queries
def test_equals_transformers_on_the_same_points(toys, monkeypatch, segments):
    batch = toys.batch([(32, 48)] * 2)
    proposals = toys.proposals(batch, queries=9, classes=6, layers=3)
    targets = [toys.map((32, 48), segments, 6, seed=s, void=False) for s in range(2)]
    points = torch.rand(2, 64, 2)
    ours = MATCHER(
        proposals,
        [t.labels for t in targets],
        [point_targets(t, points[i]) for i, t in enumerate(targets)],
        batch.image_ids,
    )
    assert ours.queries.shape == ours.segments.shape == (3, 2 * min(segments, 9))
    assert ours.counts == [min(segments, 9)] * 2
    official = theirs.Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64)
    for layer, layer_proposals in enumerate(proposals):
        drawn = iter(points)
        monkeypatch.setattr(theirs.torch, "rand", lambda *shape, drawn=drawn, **_: next(drawn)[None])
        expected = official(
            layer_proposals.mask_logits,
            layer_proposals.class_logits,
            [toys.masks(t) for t in targets],
            [t.labels for t in targets],
        )
        for image, (queries, columns) in enumerate(expected):
            assert pairs(ours, layer, image) == list(zip(queries.tolist(), columns.tolist(), strict=True))


def test_cost_shapes_and_least_total(toys):
    batch = toys.batch([(16, 16)])
    proposals = toys.proposals(batch, queries=4, classes=3, layers=2)
    target = toys.map((16, 16), 3, 3)
    prepared = point_targets(target, torch.rand(50, 2))
    costs = MATCHER.costs(proposals, 0, target.labels, prepared).detach()
    assert costs.shape == (2, 4, 3)
    matches = MATCHER(proposals, [target.labels], [prepared], ["a"])
    for layer in range(2):
        best = min(sum(costs[layer, q, k] for k, q in enumerate(order)) for order in permutations(range(4), 3))
        assert sum(costs[layer, q, k] for q, k in pairs(matches, layer, 0)) == pytest.approx(float(best))


def mixed_inputs(toys):
    """A map, boxes, nothing, and a map again."""
    batch = toys.batch([(32, 32)] * 4)
    proposals = toys.proposals(batch, queries=7, classes=5, layers=2)
    maps = {i: toys.map((32, 32), 4, 5, seed=i) for i in (0, 3)}
    boxes = toys.boxes((32, 32), 3, 5)
    prepared = [
        point_targets(maps[0], torch.rand(40, 2)),
        BoxTargets(box_profiles(boxes.xyxy, (8, 8), (4.0, 4.0)), (8, 8)),
        None,
        point_targets(maps[3], torch.rand(40, 2)),
    ]
    labels = [maps[0].labels, boxes.labels, torch.zeros(0, dtype=torch.int64), maps[3].labels]
    return batch, proposals, labels, prepared


def test_batched_equals_single(toys):
    batch, proposals, labels, prepared = mixed_inputs(toys)
    together = MATCHER(proposals, labels, prepared, batch.image_ids)
    assert together.counts == [4, 3, 0, 4]
    for image in range(4):
        single = [
            type(p)(class_logits=p.class_logits[image, None], mask_logits=p.mask_logits[image, None]) for p in proposals
        ]
        alone = MATCHER(single, [labels[image]], [prepared[image]], ["x"])
        for layer in range(2):
            assert pairs(together, layer, image) == pairs(alone, layer, 0)


def test_permuted_queries(toys):
    batch, proposals, labels, prepared = mixed_inputs(toys)
    order = torch.randperm(7)
    permuted = [type(p)(class_logits=p.class_logits[:, order], mask_logits=p.mask_logits[:, order]) for p in proposals]
    before, after = (MATCHER(p, labels, prepared, batch.image_ids) for p in (proposals, permuted))
    for layer in range(2):
        for image in range(4):
            back = {(int(order[q]), k) for q, k in pairs(after, layer, image)}
            assert back == set(pairs(before, layer, image))


def test_no_targets_at_all(toys):
    batch = toys.batch([(16, 16)] * 2)
    empty = torch.zeros(0, dtype=torch.int64)
    matches = MATCHER(toys.proposals(batch, 3, 2, layers=2), [empty, empty], [None, None], batch.image_ids)
    assert matches.counts == [0, 0]
    assert matches.queries.shape == matches.segments.shape == (2, 0)
    assert matches.queries.dtype == torch.int64


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_costs_name_the_images(toys, poison):
    batch, proposals, labels, prepared = mixed_inputs(toys)
    with torch.no_grad():
        proposals[1].class_logits[1, 2, 0] = poison
        proposals[0].mask_logits[3, 5] = float("nan")
    with pytest.raises(NonFiniteCostError, match=r"non-finite matching cost .*'image-1', 'image-3'") as error:
        MATCHER(proposals, labels, prepared, batch.image_ids)
    assert isinstance(error.value, ValueError)
    assert error.value.image_ids == ["image-1", "image-3"]


def test_boxes_are_matched_by_class_and_projection(toys):
    """Two queries that fill a box each: each box gets its own, and the class decides between equal masks."""
    batch = toys.batch([(32, 32)])
    proposals = toys.proposals(batch, queries=3, classes=2)[0]
    xyxy = torch.tensor([[0.0, 0, 16, 16], [16, 16, 32, 32], [16, 16, 32, 32]])
    labels = torch.tensor([0, 0, 1])
    masks = torch.full((1, 3, 8, 8), -9.0)
    masks[0, 0, 4:, 4:] = masks[0, 1, :4, :4] = masks[0, 2, 4:, 4:] = 9.0
    classes = torch.zeros(1, 3, 3)
    classes[0, 0, 1] = classes[0, 2, 0] = 3.0
    proposals = [type(proposals)(class_logits=classes, mask_logits=masks)]
    target = BoxTargets(box_profiles(xyxy, (8, 8), (4.0, 4.0)), (8, 8))
    assert pairs(MATCHER(proposals, [labels], [target], ["a"]), 0, 0) == [(0, 2), (1, 0), (2, 1)]

from itertools import permutations

import pytest
import torch
from transformers.models.mask2former import modeling_mask2former as theirs

from dataseg.losses.matcher import BoxTargets, HungarianMatcher, NonFiniteCostError, PointTargets, Targets
from dataseg.losses.points import MaskTargets
from dataseg.losses.terms import box_profiles
from dataseg.structures import Boxes

MATCHER = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, projection_weight=5.0)


def labels_of(targets):
    return torch.nn.utils.rnn.pad_sequence([target.labels for target in targets], batch_first=True)


def of_maps(maps, points, images=None):
    """Points ``[B, P, 2]``."""
    counts = [len(target) for target in maps]
    masks = None
    if any(counts):
        size = tuple(maps[0].ids.shape)
        masks = PointTargets(points, *MaskTargets.of(maps, [size] * len(maps), size).at(points))
    return Targets(images or list(range(len(maps))), labels_of(maps), counts, masks)


def of_boxes(boxes, images=None):
    xyxy = torch.nn.utils.rnn.pad_sequence([target.xyxy for target in boxes], batch_first=True)
    profiles = box_profiles(xyxy, (8, 8), (4.0, 4.0), (7, 7))
    counts = [len(target.labels) for target in boxes]
    return Targets(images or list(range(len(boxes))), labels_of(boxes), counts, BoxTargets(profiles))


def pairs(matches, layer, image):
    """Of one group's matches and the image's position in it."""
    real = matches.real[image]
    found = matches.queries[layer, image, real].tolist(), matches.segments[layer, image, real].tolist()
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("segments", [1, 5, 12])  # 12: more targets than queries
def test_equals_transformers_on_the_same_points(toys, monkeypatch, segments):
    batch = toys.batch([(32, 48)] * 2)
    proposals = toys.proposals(batch, queries=9, classes=6, layers=3)
    targets = [toys.map((32, 48), segments, 6, seed=s, void=False) for s in range(2)]
    points = torch.rand(2, 64, 2)
    (ours,) = MATCHER(proposals, [of_maps(targets, points)], batch.image_ids)
    assert ours.queries.shape == ours.segments.shape == (3, 2, min(segments, 9))
    assert ours.real.shape == (2, min(segments, 9))
    assert ours.real.all()
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
    prepared = of_maps([target], torch.rand(1, 50, 2))
    costs = MATCHER.costs(proposals, prepared).detach()[0]
    assert costs.shape == (2, 4, 3)
    (matches,) = MATCHER(proposals, [prepared], ["a"])
    for layer in range(2):
        best = min(sum(costs[layer, q, k] for k, q in enumerate(order)) for order in permutations(range(4), 3))
        assert sum(costs[layer, q, k] for q, k in pairs(matches, layer, 0)) == pytest.approx(float(best))


def mixed_inputs(toys):
    """A map, boxes, nothing, and a larger map."""
    batch = toys.batch([(32, 32)] * 4)
    proposals = toys.proposals(batch, queries=7, classes=5, layers=2)
    maps = [toys.map((32, 32), count, 5, seed=seed) for seed, count in enumerate((4, 0, 6))]
    return batch, proposals, maps, torch.rand(3, 40, 2), toys.boxes((32, 32), 3, 5)


def test_batched_equals_single(toys):
    batch, proposals, maps, points, boxes = mixed_inputs(toys)
    together = MATCHER(proposals, [of_maps(maps, points, [0, 2, 3]), of_boxes([boxes], [1])], batch.image_ids)
    assert [matches.real.sum(1).tolist() for matches in together] == [[4, 0, 6], [3]]

    def alone(image, group):
        single = [
            type(p)(class_logits=p.class_logits[image, None], mask_logits=p.mask_logits[image, None]) for p in proposals
        ]
        return MATCHER(single, [group], ["x"])[0]

    for layer in range(2):
        for i, image in enumerate((0, 2, 3)):
            single = alone(image, of_maps([maps[i]], points[i, None]))
            assert pairs(together[0], layer, i) == pairs(single, layer, 0)
        assert pairs(together[1], layer, 0) == pairs(alone(1, of_boxes([boxes])), layer, 0)


def test_permuted_queries(toys):
    batch, proposals, maps, points, boxes = mixed_inputs(toys)
    order = torch.randperm(7)
    permuted = [type(p)(class_logits=p.class_logits[:, order], mask_logits=p.mask_logits[:, order]) for p in proposals]
    groups = [of_maps(maps, points, [0, 2, 3]), of_boxes([boxes], [1])]
    for before, after in zip(*(MATCHER(p, groups, batch.image_ids) for p in (proposals, permuted)), strict=True):
        for layer in range(2):
            for image in range(len(before.real)):
                back = {(int(order[q]), k) for q, k in pairs(after, layer, image)}
                assert back == set(pairs(before, layer, image))


def test_no_targets_at_all(toys):
    batch = toys.batch([(16, 16)] * 2)
    nothing = of_maps([toys.map((16, 16), 0, 2)] * 2, torch.rand(2, 5, 2))
    (matches,) = MATCHER(toys.proposals(batch, 3, 2, layers=2), [nothing], batch.image_ids)
    assert matches.queries.shape == matches.segments.shape == (2, 2, 0)
    assert matches.queries.dtype == torch.int64


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_costs_name_the_images(toys, poison):
    batch, proposals, maps, points, boxes = mixed_inputs(toys)
    with torch.no_grad():
        proposals[1].class_logits[1, 2, 0] = poison
        proposals[0].mask_logits[3, 5] = float("nan")
    with pytest.raises(NonFiniteCostError, match=r"non-finite matching cost .*'image-1', 'image-3'") as error:
        MATCHER(proposals, [of_maps(maps, points, [0, 2, 3]), of_boxes([boxes], [1])], batch.image_ids)
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
    (matches,) = MATCHER(proposals, [of_boxes([Boxes(xyxy, labels)])], ["a"])
    assert pairs(matches, 0, 0) == [(0, 2), (1, 0), (2, 1)]

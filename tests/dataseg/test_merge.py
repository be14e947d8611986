import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.merge import merge_groups, merge_predictions, merge_target, unmerged_target
from dataseg.merge_predictions import MERGED_EPS, merge_before_loss, merge_proposals, query_groups
from dataseg.structures import VOID, Boxes, InstanceMasks, Proposals, SegmentMap, Task

CLASSES = 5
TASKS = st.sampled_from(list(Task))
LABELS = st.lists(st.integers(0, CLASSES - 1), max_size=12)
THINGS = st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)


def naive_groups(labels, is_thing, task):
    """The table of the method, read aloud."""
    groups, merged_labels, of_class = [], [], {}
    for label in labels:
        if task is Task.INSTANCE and not is_thing[label]:
            groups.append(VOID)
            continue
        one_per_class = task is Task.SEMANTIC or not is_thing[label]
        if one_per_class and label in of_class:
            groups.append(of_class[label])
            continue
        of_class[label] = len(merged_labels)
        groups.append(len(merged_labels))
        merged_labels.append(label)
    return groups, merged_labels


@settings(deadline=None)
@given(labels=LABELS, is_thing=THINGS, task=TASKS)
def test_groups_equal_the_naive_rule(labels, is_thing, task):
    group, merged = merge_groups(torch.tensor(labels, dtype=torch.int64), torch.tensor(is_thing), task)
    assert group.dtype == merged.dtype == torch.int64
    assert group.shape == (len(labels),)
    assert (group.tolist(), merged.tolist()) == naive_groups(labels, is_thing, task)


def test_groups_of_an_example():
    labels, is_thing = torch.tensor([0, 1, 0, 1, 2]), torch.tensor([True, False, True])
    expected = {
        Task.SEMANTIC: ([0, 1, 0, 1, 2], [0, 1, 2]),
        Task.PANOPTIC: ([0, 1, 2, 1, 3], [0, 1, 0, 2]),
        Task.INSTANCE: ([0, VOID, 1, VOID, 2], [0, 0, 2]),
    }
    for task, (groups, merged) in expected.items():
        assert [x.tolist() for x in merge_groups(labels, is_thing, task)] == [groups, merged]


@settings(deadline=None)
@given(labels=LABELS, is_thing=THINGS, task=TASKS, dtype=st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_map_pixel_by_pixel(labels, is_thing, task, dtype):
    generator = torch.Generator().manual_seed(len(labels))
    ids = torch.randint(-1, max(len(labels), 1), (6, 7), generator=generator).clamp(max=len(labels) - 1).to(dtype)
    merged = merge_target(SegmentMap(ids, torch.tensor(labels, dtype=torch.int64)), torch.tensor(is_thing), task)
    groups, merged_labels = naive_groups(labels, is_thing, task)
    assert isinstance(merged, SegmentMap)
    assert merged.ids.dtype == dtype
    assert merged.ids.shape == (6, 7)
    assert merged.labels.tolist() == merged_labels
    assert merged.ids.tolist() == [[VOID if k == VOID else groups[k] for k in row] for row in ids.tolist()]


@settings(deadline=None)
@given(labels=LABELS, is_thing=THINGS, task=TASKS)
def test_merging_twice_changes_nothing(labels, is_thing, task):
    _, once = merge_groups(torch.tensor(labels, dtype=torch.int64), torch.tensor(is_thing), task)
    group, twice = merge_groups(once, torch.tensor(is_thing), task)
    assert torch.equal(once, twice)
    assert group.tolist() == list(range(len(once)))


def rle(k):
    return {"size": [2, 2], "counts": bytes([k])}


@pytest.mark.parametrize(("task", "kept"), [(Task.INSTANCE, [0, 2]), (Task.PANOPTIC, [0, 1, 2])])
def test_boxes_and_masks_lose_what_the_task_lacks(task, kept):
    is_thing = torch.tensor([True, False])
    labels = torch.tensor([0, 1, 0])
    boxes = merge_target(Boxes(torch.arange(12.0).view(3, 4), labels), is_thing, task)
    assert isinstance(boxes, Boxes)
    assert boxes.xyxy[:, 0].tolist() == [4.0 * k for k in kept]
    masks = merge_target(
        InstanceMasks(
            [rle(0), rle(1), None],
            labels,
            (2, 2),
            is_crowd=torch.tensor([True, False, False]),
            areas=torch.tensor([7.0, 8.0, 9.0]),
            boxes=torch.arange(12.0).view(3, 4),
        ),
        is_thing,
        task,
    )
    assert isinstance(masks, InstanceMasks)
    assert masks.rles == [[rle(0), rle(1), None][k] for k in kept]
    assert masks.labels.tolist() == [labels[k] for k in kept]
    assert masks.is_crowd.tolist() == [k == 0 for k in kept]
    assert masks.areas.tolist() == [7.0 + k for k in kept]
    assert masks.boxes[:, 0].tolist() == [4.0 * k for k in kept]
    assert masks.scores is None


def test_boxes_do_not_determine_a_semantic_target():
    none = torch.zeros(0, dtype=torch.int64)
    for target in (Boxes(torch.zeros(0, 4), none), InstanceMasks([], none, (2, 2))):
        with pytest.raises(ValueError, match="needs a label map, not"):
            merge_target(target, torch.tensor([True]), Task.SEMANTIC)


@settings(deadline=None, max_examples=40)
@given(queries=st.integers(0, 6), classes=st.integers(1, 4), mode=st.sampled_from(["sum", "max"]))
def test_predictions_equal_the_naive_rule(queries, classes, mode):
    generator = torch.Generator().manual_seed(queries)
    probs, masks = torch.rand(queries, classes, generator=generator), torch.rand(queries, 3, 5, generator=generator)
    merged = merge_predictions(probs, masks, mode)
    assert merged.shape == (classes, 3, 5)
    for c in range(classes):
        for y in range(3):
            for x in range(5):
                products = [float(probs[q, c] * masks[q, y, x]) for q in range(queries)]
                expected = sum(products) if mode == "sum" else max(products, default=0.0)
                assert merged[c, y, x].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_predictions_ignore_the_order_of_queries_and_have_gradients(mode):
    probs, masks, order = torch.rand(7, 3), torch.rand(7, 4, 4, requires_grad=True), torch.randperm(7)
    merged = merge_predictions(probs, masks, mode)
    torch.testing.assert_close(merge_predictions(probs[order], masks[order], mode), merged)
    merged.sum().backward()
    assert masks.grad.abs().sum() > 0


# ------------------------------------------------------------------------------- predictions, before the loss


def naive_representatives(class_logits_QC, is_thing, task):
    """For each query, the one of its class that is most sure, one query at a time."""
    probs = class_logits_QC.softmax(-1).tolist()
    labels = [row.index(max(row)) for row in probs]
    representatives = []
    for query, label in enumerate(labels):
        background = label == len(is_thing)
        merged = not background and (task is Task.SEMANTIC or (task is Task.PANOPTIC and not is_thing[label]))
        group = [q for q, other in enumerate(labels) if other == label] if merged else [query]
        representatives.append(max(group, key=lambda q: max(probs[q])))
    return representatives


@settings(deadline=None)
@given(queries=st.integers(1, 9), is_thing=THINGS, task=TASKS, seed=st.integers(0, 10**6))
def test_groups_of_queries_equal_a_loop(queries, is_thing, task, seed):
    logits = 2 * torch.randn(2, 3, queries, CLASSES + 1, generator=torch.Generator().manual_seed(seed))
    representatives = query_groups(logits, torch.tensor(is_thing), task)
    assert representatives.dtype == torch.int64
    assert representatives.shape == (2, 3, queries)
    for found, image in zip(representatives.flatten(0, 1), logits.flatten(0, 1), strict=True):
        assert found.tolist() == naive_representatives(image, is_thing, task)


@settings(deadline=None, max_examples=50)
@given(queries=st.integers(1, 7), mode=st.sampled_from(["sum", "max"]), seed=st.integers(0, 10**6))
def test_merged_masks_equal_a_loop(queries, mode, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, queries, CLASSES + 1, generator=generator)
    masks = 3 * torch.randn(2, queries, 3, 2, generator=generator)
    representatives = query_groups(logits, torch.zeros(CLASSES, dtype=torch.bool), Task.SEMANTIC)
    merged = merge_proposals(Proposals(logits, masks), representatives, mode)
    assert merged.mask_logits.shape == masks.shape
    assert torch.equal(merged.class_logits, logits)
    for b in range(2):
        for q in range(queries):
            members = [r for r in range(queries) if representatives[b, r] == q]
            if len(members) < 2:
                assert torch.equal(merged.mask_logits[b, q], masks[b, q])
                continue
            probs = masks[b, members].sigmoid()
            wanted = probs.sum(0).clamp(max=1 - MERGED_EPS) if mode == "sum" else probs.amax(0)
            torch.testing.assert_close(merged.mask_logits[b, q].sigmoid(), wanted)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_gradients_of_a_merged_mask(mode):
    """Three queries of one class and one of another; at the second pixel the sum is clamped."""
    classes = torch.tensor([[[5.0, 0, 0], [3.0, 0, 0], [0, 4.0, 0], [1.0, 0, 0]]])
    masks = torch.tensor([[-3.0, 2.0], [-2.0, 1.0], [1.0, 1.0], [-40.0, 0.0]]).view(1, 4, 1, 2).requires_grad_()
    representatives = query_groups(classes, torch.zeros(2, dtype=torch.bool), Task.SEMANTIC)
    assert representatives.tolist() == [[0, 0, 2, 0]]
    merge_proposals(Proposals(classes, masks), representatives, mode).mask_logits[0, [0, 2]].sum().backward()
    found, probs = masks.grad[0, :, 0].T, masks.detach()[0, :, 0].sigmoid().T
    assert found[:, 2].tolist() == [1, 1]  # alone
    members = [0, 1, 3]
    share = probs[:, members] / probs[:, members].sum(1, keepdim=True)
    highest = torch.tensor([[0.0, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(found[:, members], share if mode == "sum" else highest)


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_merged_masks_are_finite_whatever_the_logits(mode, scale):
    masks = (scale * torch.randn(2, 9, 4, 4)).to(torch.bfloat16).requires_grad_()
    classes = torch.zeros(2, 9, CLASSES + 1)
    classes[..., 0] = 1  # nobody is surest: all are as sure as each other
    representatives = query_groups(classes, torch.zeros(CLASSES, dtype=torch.bool), Task.SEMANTIC)
    assert len(representatives.unique()) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge_proposals(Proposals(classes, masks), representatives, mode).mask_logits
    assert merged.dtype == torch.float32
    assert merged.isfinite().all()
    merged.sum().backward()
    assert masks.grad.isfinite().all()


def test_only_images_with_maps_are_merged_and_only_where_the_task_merges():
    proposals = [Proposals(torch.ones(2, 3, CLASSES + 1).cumsum(1), torch.randn(2, 3, 4, 4)) for _ in range(2)]
    for p in proposals:
        p.class_logits[..., 1] += 1
    ids, one = torch.zeros(4, 4, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    targets = [SegmentMap(ids, one), Boxes(torch.zeros(1, 4), one)]
    stuff = torch.zeros(CLASSES, dtype=torch.bool)
    merged, representatives = merge_before_loss(proposals, targets, stuff, Task.PANOPTIC)
    assert representatives[:, 1].tolist() == [[0, 1, 2]] * 2
    assert (representatives[:, 0] == representatives[:, 0, :1]).all()
    for before, after in zip(proposals, merged, strict=True):
        assert torch.equal(after.mask_logits[1], before.mask_logits[1])
        assert not torch.equal(after.mask_logits[0], before.mask_logits[0])
    for task, these in ((Task.INSTANCE, targets), (Task.PANOPTIC, targets[1:] * 2)):
        assert merge_before_loss(proposals, these, stuff, task) == (proposals, None)


def test_unmerged_targets_lose_only_what_the_task_lacks():
    is_thing, labels = torch.tensor([True, False]), torch.tensor([1, 0, 1])
    target = SegmentMap(torch.tensor([[0, 1], [2, VOID]]), labels)
    assert unmerged_target(target, is_thing, Task.PANOPTIC) is target
    dropped = unmerged_target(target, is_thing, Task.INSTANCE)
    assert (dropped.ids.tolist(), dropped.labels.tolist()) == ([[VOID, 0], [VOID, VOID]], [0])
    with pytest.raises(ValueError, match="needs a label map"):
        unmerged_target(Boxes(torch.zeros(0, 4), labels[:0]), is_thing, Task.SEMANTIC)

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.merge import merge_groups, merge_predictions, merge_target
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Task

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

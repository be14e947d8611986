"""The table of tasks and metrics, against what the metrics really compute."""

import re

import pytest
import torch
from pycocotools import mask as coco_mask

from dataseg.metrics.by_task import BY_TASK, column_of, metric_for, primary_column, primary_score, task_of
from dataseg.structures import ClassSpec, InstanceMasks, SegmentMap, Task, Vocabulary

VOCABULARY = Vocabulary(
    "two", (ClassSpec(1, "sky", False, ("sky",), (0, 0, 255)), ClassSpec(2, "cat", True, ("cat",), (255, 0, 0)))
)
IDS = torch.tensor([[0, 0, 1, 1]] * 4, dtype=torch.int16)
RLES = [coco_mask.encode((IDS == k).numpy().astype("uint8", order="F")) for k in (0, 1)]
SEGMENTS = {
    SegmentMap: SegmentMap(IDS, torch.tensor([0, 1])),
    InstanceMasks: InstanceMasks(RLES, torch.tensor([0, 1]), (4, 4), scores=torch.ones(2)),
}


@pytest.mark.parametrize("areas", ["stored", "recounted", "both"])
@pytest.mark.parametrize("task", Task)
def test_the_table_names_what_its_metric_computes(task, areas):
    row = BY_TASK[task]
    metric = metric_for(task, VOCABULARY, areas=areas, convention="all_classes")
    metric.update(SEGMENTS[row.segments], SEGMENTS[row.segments], "image")
    scores, columns = metric.compute(), metric.per_class()
    primary = primary_score(task, metric)
    assert float(scores[primary]) == pytest.approx(1)
    assert float(columns[primary_column(task, metric)].nanmean()) == pytest.approx(1)
    assert all(task_of(name) is task for name in scores)
    assert all([t for t in Task if re.match(BY_TASK[t].scores, name)] == [task] for name in scores)
    assert column_of(primary) == primary_column(task, metric)


def test_every_task_has_a_metric():
    assert set(BY_TASK) == set(Task)
    assert task_of("score") is None

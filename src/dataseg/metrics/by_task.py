"""Which metric scores a task, and which of its scores stands for a dataset: the one place that says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypedDict, Unpack

from dataseg.metrics.base import ImageMetric
from dataseg.metrics.mask_average_precision import MaskAveragePrecision
from dataseg.metrics.mean_iou import Convention, MeanIoU
from dataseg.metrics.panoptic_quality import AreaMode, PanopticQuality
from dataseg.structures import InstanceMasks, SegmentMap, Task, Vocabulary


@dataclass(frozen=True)
class TaskMetric:
    """How a task is scored.

    Attributes:
        metric: its constructor takes the vocabulary, the dataset's name, and ``options`` by name.
        primary: the score that stands for a dataset; `ImageMetric.suffix` may follow it.
        column: of `ImageMetric.per_class`, the values that the primary score averages; likewise.
        scores: regular expression that the names of this metric's scores begin with, and those of no other.
        segments: type of prediction and ground truth that the metric compares.
        options: names of `MetricOptions` that this metric knows.
    """

    metric: type[ImageMetric]
    primary: str
    column: str
    scores: str
    segments: type[SegmentMap] | type[InstanceMasks] = SegmentMap
    options: tuple[str, ...] = ()


BY_TASK = {
    Task.SEMANTIC: TaskMetric(
        MeanIoU, "miou", "iou", "miou|.+_accuracy|fwiou|coverage", options=("convention", "allow_one_class")
    ),
    Task.PANOPTIC: TaskMetric(PanopticQuality, "pq", "pq", "pq|sq|rq", options=("areas",)),
    Task.INSTANCE: TaskMetric(MaskAveragePrecision, "mask_ap", "mask_ap", "mask_", segments=InstanceMasks),
}


class MetricOptions(TypedDict, total=False):
    """Arguments of the metrics' constructors, which document them."""

    convention: Convention
    allow_one_class: bool
    areas: AreaMode


def metric_for(task: Task, vocabulary: Vocabulary, dataset: str = "", **options: Unpack[MetricOptions]) -> ImageMetric:
    """A new metric; options of other tasks' metrics are not used."""
    row = BY_TASK[task]
    return row.metric(vocabulary, dataset, **{name: value for name, value in options.items() if name in row.options})


def primary_score(task: Task, metric: ImageMetric) -> str:
    """Key of the primary score in what ``metric`` computes."""
    return BY_TASK[task].primary + metric.suffix


def primary_column(task: Task, metric: ImageMetric) -> str:
    """Key of the primary score's values by class in what ``metric.per_class`` gives."""
    return BY_TASK[task].column + metric.suffix


def task_of(score: str) -> Task | None:
    """The task that has a score of this name, e.g. "pq_things" -> panoptic."""
    return next((task for task, row in BY_TASK.items() if re.match(row.scores, score)), None)


def column_of(score: str) -> str:
    """Key of a score's values by class, where there are any: "miou" -> "iou"; most have the score's own name."""
    return next((row.column for row in BY_TASK.values() if row.primary == score), score)

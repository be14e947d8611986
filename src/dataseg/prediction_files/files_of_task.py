"""The official files of each task: what is read to score predictions, what is written; the one place that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataseg.metrics.mean_iou import Convention
from dataseg.metrics.panoptic_quality import AreaMode
from dataseg.prediction_files.files import vocabulary_of
from dataseg.prediction_files.instances import InstanceResults, InstanceTruth
from dataseg.prediction_files.maps import LabelFiles, PanopticFiles
from dataseg.prediction_files.writers import InstanceWriter, LabelWriter, PanopticWriter
from dataseg.structures import Segments, Task, UserError, Vocabulary

Writer = PanopticWriter | InstanceWriter | LabelWriter


@dataclass
class Inputs:
    """What is compared.

    Attributes:
        gt: JSON file (panoptic, instance) or folder of label maps (semantic).
        pred: likewise.
        vocabulary: None = the categories that the ground truth lists (semantic label maps list none).
        gt_folder: of panoptic PNGs; None = named like the JSON file.
        pred_folder: likewise.
        gt_shift: added to class ids of the ground truth before they are looked up in the vocabulary.
        pred_shift: likewise of the predictions.
        gt_ignore: values of label maps that have no label.
        pred_ignore: values of label maps that predict nothing.
        areas: see `PanopticQuality`.
        convention: see `MeanIoU`.
    """

    gt: Path
    pred: Path
    vocabulary: Vocabulary | None = None
    gt_folder: Path | None = None
    pred_folder: Path | None = None
    gt_shift: int = 0
    pred_shift: int = 0
    gt_ignore: tuple[int, ...] = ()
    pred_ignore: tuple[int, ...] = ()
    areas: AreaMode = "stored"
    convention: Convention = "detectron2"


Prepared = tuple[Vocabulary, list[str], Callable[[str], tuple[Segments, Segments]], Sequence[str]]


def _prepare_panoptic(inputs: Inputs) -> Prepared:
    vocabulary = inputs.vocabulary or vocabulary_of(inputs.gt)
    truth = PanopticFiles(inputs.gt, vocabulary, inputs.gt_folder, is_truth=True, id_shift=inputs.gt_shift)
    results = PanopticFiles(inputs.pred, vocabulary, inputs.pred_folder, id_shift=inputs.pred_shift)
    return vocabulary, truth.image_ids, lambda i: (results.load(i), truth.load(i)), results.image_ids


def _prepare_instance(inputs: Inputs) -> Prepared:
    vocabulary = inputs.vocabulary or vocabulary_of(inputs.gt)
    truth = InstanceTruth(inputs.gt, vocabulary, inputs.gt_shift)
    results = InstanceResults(inputs.pred, vocabulary, truth.sizes, inputs.pred_shift)
    return vocabulary, truth.image_ids, lambda i: (results.load(i), truth.load(i)), list(results.records)


def _prepare_semantic(inputs: Inputs) -> Prepared:
    if inputs.vocabulary is None:
        raise UserError(
            f"{inputs.gt}: label maps do not say their classes; name a file, e.g."
            " --vocabulary data_modules/vocabularies/ade20k_150.json"
        )
    truth = LabelFiles(inputs.gt, inputs.vocabulary, inputs.gt_ignore, inputs.gt_shift)
    results = LabelFiles(inputs.pred, inputs.vocabulary, inputs.pred_ignore, inputs.pred_shift)
    return inputs.vocabulary, truth.image_ids, lambda i: (results.load(i), truth.load(i)), results.image_ids


class TaskFiles(NamedTuple):
    """The files of a task.

    Attributes:
        prepare: opens ground truth and predictions: classes, ids of the images, what loads (prediction, target) of an
            image, and ids of the predictions.
        writer: of predictions.
        suffix: of the one file that is written, if there is one.
    """

    prepare: Callable[[Inputs], Prepared]
    writer: type[Writer]
    suffix: str = ".json"


FILES_OF_TASK = {
    Task.PANOPTIC: TaskFiles(_prepare_panoptic, PanopticWriter),
    Task.INSTANCE: TaskFiles(_prepare_instance, InstanceWriter),
    Task.SEMANTIC: TaskFiles(_prepare_semantic, LabelWriter, suffix=""),
}


def writer_for(task: Task, path: Path | str, vocabulary: Vocabulary, id_shift: int = 0) -> Writer:
    """The writer of a task; ``path`` without a suffix, ``.json`` is added where the format has one file."""
    files = FILES_OF_TASK[task]
    return files.writer(f"{path}{files.suffix}", vocabulary, id_shift)

"""Evaluates every validation dataset by its own tasks while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from dataseg.metrics import ImageMetric
from dataseg.metrics.by_task import metric_for, primary_score
from dataseg.metrics.mean_iou import Convention
from dataseg.metrics.panoptic_quality import AreaMode
from dataseg.structures import Batch, DatasetSpec, Segments, Task, UserError
from dataseg.training.module import CoTrainedSegmenter

TAG = "metrics/"
"""Stands before a score's name in loggers, so that TensorBoard groups them."""


class Evaluation(pl.Callback):
    """mIoU, PQ and mask AP of each validation dataset in percent, as ``<dataset>.<score>``.

    ``score``, the mean of the datasets' primary scores, is among them: checkpoints are compared by it. Callbacks find
    all in ``trainer.callback_metrics``, loggers get those that are defined as ``metrics/<dataset>.<score>``.

    Args:
        iou_convention: which classes mIoU is averaged over; see `dataseg.metrics.MeanIoU`.
        panoptic_areas: areas of panoptic ground truth, as its file states them or recounted in its map (ADE20k's
            differ); see `dataseg.metrics.PanopticQuality`. A dataset that recounts them itself stays recounted.
        allow_one_class: score semantic ground truth of a single class, which otherwise is taken for a mistake.

    Attributes:
        results: scores of the newest validation, percent, by ``<dataset>.<score>``; NaN where undefined.
        primary: keys of ``results`` that stand for their dataset.
        per_class: columns ``[C]`` by (dataset, task); fractions and counts.
        confusion: pixels, int64 ``[C, C + 1]``, of each dataset with a semantic task.
        metrics: by (dataset, task), with the state of the newest validation.
    """

    def __init__(
        self,
        iou_convention: Convention = "detectron2",
        panoptic_areas: AreaMode = "stored",
        allow_one_class: bool = False,
    ) -> None:
        self.iou_convention: Convention = iou_convention
        self.panoptic_areas: AreaMode = panoptic_areas
        self.allow_one_class = allow_one_class
        self.metrics: dict[tuple[str, Task], ImageMetric] = {}
        self.results: dict[str, float] = {}
        self.primary: list[str] = []
        self.per_class: dict[tuple[str, Task], dict[str, Tensor]] = {}
        self.confusion: dict[str, Tensor] = {}

    def _metric(self, dataset: str, spec: DatasetSpec, task: Task) -> ImageMetric:
        return metric_for(
            task,
            spec.vocabulary,
            dataset,
            convention=self.iou_convention,
            allow_one_class=self.allow_one_class,
            areas="recounted" if spec.areas == "recounted" else self.panoptic_areas,
        )

    @staticmethod
    def of(trainer: pl.Trainer) -> Evaluation:
        """The one of a trainer's callbacks; others read its results in ``on_validation_end``.

        Raises:
            UserError: there is none, or more than one.
        """
        found = [c for c in trainer.callbacks if isinstance(c, Evaluation)]  # type: ignore[attr-defined]
        if len(found) != 1:
            raise UserError(f"trainer.callbacks needs one callbacks.Evaluation, found {len(found)}")
        return found[0]

    def names(self) -> list[str]:
        """Keys that ``results`` will have; known once a validation has begun, the sanity check's too."""
        return ["score", *(f"{dataset}.{name}" for (dataset, _), m in self.metrics.items() for name in m.compute())]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        specs = cast(CoTrainedSegmenter, pl_module).datasets
        if not self.metrics:
            wanted = [(dataset, task) for dataset, spec in specs.items() for task in spec.tasks]
            self.metrics = {(dataset, task): self._metric(dataset, specs[dataset], task) for dataset, task in wanted}
        for metric in self.metrics.values():
            metric.to(pl_module.device)
            metric.reset()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        predictions = cast(Mapping[str, list[Segments]], outputs)
        for name, segments in predictions.items():
            metric = self.metrics[batch.dataset, Task(name)]
            for prediction, target, image_id, is_padding in zip(
                segments, batch.targets, batch.image_ids, batch.is_padding, strict=True
            ):
                if not is_padding:
                    metric.update(prediction, target, image_id)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:  # a few images of each dataset: scores would mean nothing
            return
        self.results, self.primary = {}, []
        for (dataset, task), metric in self.metrics.items():
            for name, value in metric.compute().items():
                self.results[f"{dataset}.{name}"] = 100 * float(value)
            self.primary.append(f"{dataset}.{primary_score(task, metric)}")
            self.per_class[dataset, task] = metric.per_class()  # here, on every rank: it may synchronise
            confusion = metric.confusion_matrix()
            if confusion is not None:
                self.confusion[dataset] = confusion
        defined = [self.results[key] for key in self.primary if math.isfinite(self.results[key])]
        self.results["score"] = sum(defined) / max(1, len(defined))
        self._publish(trainer)

    def _publish(self, trainer: pl.Trainer) -> None:
        """Not by Lightning's ``log``: it wants to reduce over ranks what every rank has, and has one name for all."""
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in self.results.items()})
        defined = {TAG + key: value for key, value in self.results.items() if math.isfinite(value)}
        for logger in trainer.loggers:
            logger.log_metrics(defined, step=trainer.global_step)
            logger.save()

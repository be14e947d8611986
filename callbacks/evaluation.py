"""Evaluates every validation data set by its own tasks while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from dataseg.metrics import MaskAveragePrecision, MeanIoU, PanopticQuality
from dataseg.metrics.mean_iou import Convention
from dataseg.module import CoTrainedSegmenter
from dataseg.structures import Batch, DatasetSpec, Segments, Task

Metric = MeanIoU | PanopticQuality | MaskAveragePrecision

PRIMARY = {Task.SEMANTIC: "miou", Task.PANOPTIC: "pq", Task.INSTANCE: "mask_ap"}
"""The figure of each task that stands for a data set in `score` and in the final table."""


class Evaluation(pl.Callback):
    """mIoU, PQ and mask AP of each validation data set, logged as ``<data set>.<metric>`` in percent.

    ``score``, the mean of the data sets' primary figures, is logged too: checkpoints are compared by it.

    Args:
        iou_convention: which classes mIoU is averaged over; see `dataseg.metrics.MeanIoU`.

    Attributes:
        results: figures of the newest validation, percent, by ``<data set>.<metric>``; not a number where undefined.
        primary: keys of ``results`` that stand for their data set.
        metrics: by (data set, task), with the state of the newest validation.
    """

    def __init__(self, iou_convention: Convention = "detectron2") -> None:
        self.iou_convention: Convention = iou_convention
        self.metrics: dict[tuple[str, Task], Metric] = {}
        self.results: dict[str, float] = {}
        self.primary: list[str] = []

    def _metric(self, dataset: str, spec: DatasetSpec, task: Task) -> Metric:
        match task:
            case Task.SEMANTIC:
                return MeanIoU(spec.vocabulary, dataset=dataset, convention=self.iou_convention)
            case Task.PANOPTIC:
                return PanopticQuality(spec.vocabulary, dataset=dataset)
            case Task.INSTANCE:
                return MaskAveragePrecision(spec.vocabulary, dataset=dataset)

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
                    metric.update(prediction, target, image_id)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:  # a few images of each set: figures would mean nothing
            return
        self.results, self.primary = {}, []
        for (dataset, task), metric in self.metrics.items():
            for name, value in metric.compute().items():
                self.results[f"{dataset}.{name}"] = 100 * float(value)
            self.primary.append(f"{dataset}.{PRIMARY[task]}")
        defined = [self.results[key] for key in self.primary if self.results[key] == self.results[key]]
        self.results["score"] = sum(defined) / max(1, len(defined))
        pl_module.log_dict({key: torch.tensor(value) for key, value in self.results.items()}, rank_zero_only=True)

    def per_class(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Figures in percent by ``<data set>.<task>``, metric and class name; None where undefined."""
        table: dict[str, dict[str, dict[str, float | None]]] = {}
        for (dataset, task), metric in self.metrics.items():
            columns: dict[str, Tensor] = metric.per_class()
            table[f"{dataset}.{task}"] = {
                name: {c: _percent(v) for c, v in zip(metric.vocabulary.names, values.tolist(), strict=True)}
                for name, values in columns.items()
            }
        return table


def _percent(value: float) -> float | None:
    return None if value != value else 100 * value

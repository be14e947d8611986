"""Panels of image | ground truth | prediction for each validation data set and task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.drawing import Picture, draw, enlarge
from dataseg.module import CoTrainedSegmenter
from dataseg.structures import Batch, InstanceMasks, SegmentMap, Segments, Target, Task


class Panels(pl.Callback):
    """Writes the first images of each validation data set to TensorBoard as ``<data set>.<task>/<image id>``.

    Args:
        images: how many of each data set, on rank 0.
        max_side: longer side of one picture at most, pixels; small images are enlarged towards it.
        min_score: instances of a lower score are left out of the picture.
    """

    def __init__(self, images: int = 4, max_side: int = 480, min_score: float = 0.4) -> None:
        self.images = images
        self.max_side = max_side
        self.min_score = min_score
        self._shown: Counter[tuple[str, Task]] = Counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logger = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
            return
        for name, predictions in cast(Mapping[str, list[Segments]], outputs).items():
            task = Task(name)
            for i, prediction in enumerate(predictions):
                if self._shown[batch.dataset, task] >= self.images:
                    break
                self._shown[batch.dataset, task] += 1
                picture = self._panel(cast(CoTrainedSegmenter, pl_module), batch, i, prediction, task)
                title = f"{batch.dataset}.{task}/{batch.image_ids[i]}"
                logger.experiment.add_image(title, picture, trainer.global_step, dataformats="HWC")

    def _panel(self, module: CoTrainedSegmenter, batch: Batch, index: int, prediction: Segments, task: Task) -> Picture:
        vocabulary = module.datasets[batch.dataset].vocabulary
        rows, columns = batch.sizes[index]
        image = batch.images[index, :, :rows, :columns].permute(1, 2, 0).cpu().numpy()
        height, width = batch.original_sizes[index]
        image = cast(Picture, cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
        truth = batch.targets[index].to("cpu")
        if task is Task.SEMANTIC:
            truth = _by_class(cast(SegmentMap, truth), len(vocabulary))
        shown = self._confident(prediction.to("cpu"))
        zoom = max(1, self.max_side // max(height, width))
        drawn = [draw(image, segments, vocabulary, zoom=zoom) for segments in (truth, shown)]
        gap = np.full((height * zoom, 4, 3), 255, np.uint8)
        panel = np.concatenate([enlarge(image, zoom), gap, drawn[0], gap, drawn[1]], axis=1)
        scale = self.max_side / max(height, width)
        if scale < 1:
            panel = cv2.resize(panel, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return cast(Picture, panel)

    def _confident(self, prediction: Segments) -> Segments:
        if not isinstance(prediction, InstanceMasks) or prediction.scores is None:
            return prediction
        keep = torch.nonzero(prediction.scores >= self.min_score)[:, 0].tolist()
        return InstanceMasks(
            rles=[prediction.rles[k] for k in keep],
            labels=prediction.labels[keep],
            size=prediction.size,
            scores=prediction.scores[keep],
        )


def _by_class(truth: SegmentMap, count: int) -> Target:
    """The semantic view of a map: one segment a class."""
    return SegmentMap(ids=truth.class_map(), labels=torch.arange(count))

"""Panels of image | ground truth | prediction for each validation dataset and task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch

from callbacks.tensorboard.writer import log_picture
from dataseg.experiments.report.tensorboard_events import PICTURES
from dataseg.structures import VOID, Batch, SegmentMap, Segments, Target, Task
from dataseg.training.module import CoTrainedSegmenter
from dataseg.visualization.legend import panel, present, text_size
from dataseg.visualization.overlay import MIN_SCORE, Picture, confident, draw, resize_map, resize_picture, shown_size


class Panels(pl.Callback):
    """Writes the first images of each validation dataset to TensorBoard as ``pictures.<dataset>.<task>/<image id>``.

    Args:
        images: how many of each dataset, on rank 0.
        max_side: longer side of one picture at most, pixels; small images are enlarged towards it.
        min_score: instances of a lower score are left out of the picture.
    """

    def __init__(self, images: int = 4, max_side: int = 480, min_score: float = MIN_SCORE) -> None:
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
        if trainer.sanity_checking or not trainer.is_global_zero or not trainer.loggers:
            return
        for name, predictions in cast(Mapping[str, list[Segments]], outputs).items():
            task = Task(name)
            for i, prediction in enumerate(predictions):
                if self._shown[batch.dataset, task] >= self.images:
                    break
                self._shown[batch.dataset, task] += 1
                picture = self._panel(cast(CoTrainedSegmenter, pl_module), batch, i, prediction, task)
                title = f"{PICTURES}{batch.dataset}.{task}/{batch.image_ids[i]}"
                log_picture(trainer, title, picture)

    def _panel(self, module: CoTrainedSegmenter, batch: Batch, index: int, prediction: Segments, task: Task) -> Picture:
        vocabulary = module.datasets[batch.dataset].vocabulary
        rows, columns = batch.sizes[index]
        image = batch.images[index, :, :rows, :columns].permute(1, 2, 0).cpu().numpy()
        size = shown_size(*batch.original_sizes[index], self.max_side)
        image = resize_picture(cast(Picture, image), size)
        truth = batch.targets[index].to("cpu")
        if isinstance(truth, SegmentMap):
            truth = resize_map(truth, size)  # first: what follows takes time for every pixel
        if task is Task.SEMANTIC:
            truth = _by_class(cast(SegmentMap, truth), len(vocabulary))
        shown = confident(prediction.to("cpu"), self.min_score)
        if isinstance(shown, SegmentMap):
            shown = resize_map(shown, size)
        text = text_size(size[1], count=3)
        pictures = {
            "image": image,
            "ground truth": draw(image, truth, vocabulary, text_size=text),
            "prediction": draw(image, shown, vocabulary, is_prediction=True, text_size=text),
        }
        nothing = isinstance(shown, SegmentMap) and bool((shown.ids == VOID).any())
        return panel(pictures, present((truth, shown), vocabulary), vocabulary, nothing)


def _by_class(truth: SegmentMap, count: int) -> Target:
    """The semantic view of a map: one segment a class."""
    return SegmentMap(ids=truth.class_map(), labels=torch.arange(count))

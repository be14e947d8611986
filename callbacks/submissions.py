"""Predictions of each validation dataset as files in the official submission formats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn

from dataseg.checkpoint.run_folder import RunFolder
from dataseg.prediction_files import Writer, writer_for
from dataseg.structures import Batch, Segments, Task, UserError
from dataseg.training.module import CoTrainedSegmenter

log = logging.getLogger(__name__)


class Submissions(pl.Callback):
    """Writes predictions while a checkpoint is evaluated; a run in training writes none.

    ``<folder>/<dataset>/panoptic.json`` and ``panoptic/*.png`` (COCO panoptic), ``instance.json`` (COCO results) and
    ``semantic/*.png`` (ADE20K label maps), with official ids; see `dataseg.prediction_files`.

    Args:
        folder: default: ``submissions`` beside the run's ``metrics.json``. Files of the same names are replaced.
        id_shifts: by dataset, added to every official id: -1 for ADE20K's panoptic JSON, which counts from 0.
    """

    def __init__(self, folder: Path | None = None, id_shifts: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.id_shifts = id_shifts or {}
        self._writers: dict[tuple[str, Task], Writer] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log.warning("callbacks.Submissions writes nothing while training: give it to make eval")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._writers = {}
        if trainer.state.fn == TrainerFn.FITTING:
            return
        folder = self.folder or (None if trainer.log_dir is None else RunFolder.of(trainer).submissions)
        if folder is None:
            raise UserError(
                "callbacks.Submissions needs a folder, as this run has no logger and so no folder of its own"
            )
        evaluated = {name: spec for name, spec in cast(CoTrainedSegmenter, pl_module).datasets.items() if spec.tasks}
        unknown = sorted(set(self.id_shifts) - set(evaluated))
        if unknown:
            raise UserError(f"callbacks.Submissions: id_shifts names {unknown}, evaluated are {sorted(evaluated)}")
        self._writers = {
            (name, task): writer_for(task, folder / name / task, spec.vocabulary, self.id_shifts.get(name, 0))
            for name, spec in evaluated.items()
            for task in spec.tasks
        }

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._writers:
            return
        for task, predictions in cast(Mapping[str, list[Segments]], outputs).items():
            writer = self._writers[batch.dataset, Task(task)]
            for prediction, image_id, is_padding in zip(predictions, batch.image_ids, batch.is_padding, strict=True):
                if not is_padding:
                    writer.add(prediction, image_id)  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for writer in self._writers.values():
            records = _gather(writer.records)
            if records is not None:
                log.info("predictions: %s", writer.finish(records))


def _gather(records: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Those of all ranks on rank 0, None elsewhere."""
    if not (dist.is_available() and dist.is_initialized()):
        return records
    rank = dist.get_rank()
    parts: list[Any] | None = [None] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(records, parts)
    return None if parts is None else [record for part in parts for record in part]

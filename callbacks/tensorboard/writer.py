"""The TensorBoard file of a run."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def board(trainer: pl.Trainer) -> SummaryWriter | None:
    """Where pictures and texts of this run go: on rank 0, if its first logger is TensorBoard's."""
    logger = trainer.logger
    if not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
        return None
    writer: SummaryWriter = logger.experiment
    return writer

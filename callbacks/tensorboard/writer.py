"""Where pictures and settings of a run go: its TensorBoard file, and other loggers as far as they take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from dataseg.visualization.overlay import Picture


def board(trainer: pl.Trainer) -> SummaryWriter | None:
    """TensorBoard's file on rank 0, if the run's first logger is TensorBoard's."""
    logger = trainer.logger
    if not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
        return None
    writer: SummaryWriter = logger.experiment
    return writer


def log_by_dataset(trainer: pl.Trainer, name: str, values: Mapping[str, float]) -> None:
    """Draw a value of several datasets in one chart of TensorBoard, ``datasets/<name>``.

    TensorBoard colours curves by run, so each has a run of its own: ``<run>/datasets_<name>_<key of values>``.
    """
    writer = board(trainer)
    if writer is not None:
        writer.add_scalars(f"datasets/{name}", dict(values), trainer.global_step)


def log_picture(trainer: pl.Trainer, tag: str, picture: Picture) -> None:
    """Give a picture, uint8 ``[H, W, 3]``, to every logger that takes pictures: TensorBoard, MLflow, W&B and the like.

    Args:
        tag: name, of which slashes make groups.
    """
    step = trainer.global_step
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, key=tag, step=step)
        elif hasattr(logger, "log_image"):
            logger.log_image(tag, [picture], step=step)


def log_settings(trainer: pl.Trainer, settings: Mapping[str, Any]) -> None:
    """Give settings by name to every logger but TensorBoard's, whose table is written when the run has ended."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(settings))

"""An exponential moving average of the weights, which is what is evaluated, saved and exported."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EMAWeightAveraging

from dataseg.structures import UserError
from dataseg.training.sharding import FullySharded


class WeightAverage(EMAWeightAveraging):
    """Lightning's EMA of the weights, so that a resumed run equals one that never stopped.

    Validation sees the average, and a checkpoint's ``state_dict`` is the average; the weights that training goes on
    from stand beside it. Buffers are not averaged: the average has the network's newest ones.

    Args:
        decay: share of the old average that each update keeps, in [0, 1).
        every_n_steps: optimisation steps between updates.
        start: optimisation steps before the first update.
    """

    def __init__(self, decay: float = 0.999, every_n_steps: int = 1, start: int = 0) -> None:
        if not 0 <= decay < 1 or every_n_steps < 1 or start < 0:
            raise UserError(
                "callbacks.WeightAverage: need decay in [0, 1), every_n_steps >= 1 and start >= 0, got"
                f" {decay}, {every_n_steps} and {start}"
            )
        super().__init__(
            use_buffers=False, decay=decay, update_every_n_steps=every_n_steps, update_starting_at_step=start
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, FullySharded):
            raise UserError("callbacks.WeightAverage needs whole weights in every process: take STRATEGY=ddp, not fsdp")
        with warnings.catch_warnings():  # of sharded modules, which were just refused
            warnings.filterwarnings("ignore", message=".*overrides the configure_model")
            super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # Lightning has not moved the module to its device yet
            self._average_model.to(trainer.strategy.root_device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Not yet: `Checkpoints` may still have to save the weights that training would go on from."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the module with the average."""
        super().on_train_end(trainer, pl_module)


def require_average(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Refuse to train on from a checkpoint of averaged weights without averaging.

    Raises:
        UserError: the checkpoint's weights are an average, and no callback of the trainer takes one.
    """
    averages = any(isinstance(c, EMAWeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if "current_model_state" in checkpoint and not averages:
        raise UserError(
            "the checkpoint is of a run that averages its weights: go on with WITH=ema too, or start a new run from"
            " the average by model.weights"
        )

"""Losses by dataset and term."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from callbacks.tensorboard.writer import log_by_dataset


class LossCurves(pl.Callback):
    """Logs ``loss/<dataset>/<term>`` and ``.../total``: means over the dataset's steps since the last log.

    Not Lightning's ``self.log``: that repeats a dataset's last value at steps on which it took no part.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def state_dict(self) -> dict[str, Any]:
        return {"values": {key: torch.stack(_together(values)) for key, values in self._values.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._values.update({key: list(values) for key, values in state_dict["values"].items()})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for dataset, terms in outputs["terms"].items():
            for name, value in terms.items():
                self._values[f"loss/{dataset}/{name}"].append(value)
            self._values[f"loss/{dataset}/total"].append(torch.stack(list(terms.values())).sum())
        if is_logged(trainer, batch_idx):
            means = {key: float(torch.stack(_together(values)).mean()) for key, values in self._values.items()}
            self._values.clear()
            for logger in trainer.loggers:
                logger.log_metrics(means, step=trainer.global_step)
            totals = {key.split("/")[1]: mean for key, mean in means.items() if key.endswith("/total")}
            log_by_dataset(trainer, "loss", totals)


def is_logged(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether a batch was the last of a step that ``log_every_n_steps`` falls on."""
    ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return ends_step and trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined, no-any-return]


def _together(values: list[Tensor]) -> list[Tensor]:
    """On one device: what was restored from a checkpoint may lie elsewhere."""
    return [value.to(values[-1].device) for value in values]

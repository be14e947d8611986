"""Images per second, waiting for data, and the sampling ratio that really came about."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import lightning.pytorch as pl

from callbacks.loss_logger import is_logged
from dataseg.structures import UNREADABLE

log = logging.getLogger(__name__)

SLOW_DATA = 0.3, 3
"""Waiting for data for more than this share of the time, in so many logging steps in a row, is warned of."""


class Throughput(pl.Callback):
    """Logs ``throughput/images_per_second``, ``throughput/data_wait`` and ``sampling/<dataset>``.

    * images per second: over all ranks, measured between two logging steps.
    * data wait: share of that time, in [0, 1], that this rank spent waiting for its next batch.
    * sampling: share of this run's images that came from the dataset, in [0, 1].
    * preparation/dropped/<dataset>/<reason>: running count of what was dropped, e.g. segments emptied by the crop.
    """

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._since = (0.0, 0)  # time, images at the newest logging step
        self._waited = 0.0
        self._slow = 0  # logging steps in a row
        self._step_ended: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = (time.perf_counter(), sum(self._images.values()))
        self._step_ended = None

    def state_dict(self) -> dict[str, Any]:
        return {"images": dict(self._images), "dropped": dict(self._dropped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._images, self._dropped = Counter(state_dict["images"]), Counter(state_dict["dropped"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._step_ended is not None:
            self._waited += time.perf_counter() - self._step_ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, part in batch.items():
            if part is not None:
                self._images[name] += len(part) * trainer.world_size
                counts = {key: n for key, n in part.counts.items() if not key.startswith(UNREADABLE)}
                self._dropped.update({f"dropped/{name}/{reason}": n for reason, n in counts.items()})
        if is_logged(trainer, batch_idx):
            self._log(trainer)
        self._step_ended = time.perf_counter()

    def _log(self, trainer: pl.Trainer) -> None:
        now, total = time.perf_counter(), sum(self._images.values())
        elapsed = max(now - self._since[0], 1e-9)
        report = {f"sampling/{name}": count / total for name, count in self._images.items()}
        report["throughput/images_per_second"] = (total - self._since[1]) / elapsed
        report["throughput/data_wait"] = wait = min(1.0, self._waited / elapsed)
        self._warn(wait)
        report |= {f"preparation/{key}": float(count) for key, count in self._dropped.items()}
        for logger in trainer.loggers:
            logger.log_metrics(report, step=trainer.global_step)
        self._since, self._waited = (now, total), 0.0

    def _warn(self, wait: float) -> None:
        share, times = SLOW_DATA
        self._slow = self._slow + 1 if wait > share else 0
        if self._slow == times:
            log.warning(
                "%.0f %% of the time is spent waiting for data: raise data.num_workers, or make the images smaller",
                100 * wait,
            )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training time: take it out of both clocks."""
        pause = time.perf_counter() - self._paused
        self._since = (self._since[0] + pause, self._since[1])
        if self._step_ended is not None:
            self._step_ended += pause

"""Images per second, waiting for data, and the sampling ratio that really came about."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import lightning.pytorch as pl


class Throughput(pl.Callback):
    """Logs ``throughput/images_per_second``, ``throughput/data_wait`` and ``sampling/<data set>``.

    * images per second: over all ranks, measured between two logging steps.
    * data wait: share of that time, in [0, 1], that this rank spent waiting for its next batch.
    * sampling: share of this run's images that came from the data set, in [0, 1].
    * dropped/<data set>/<reason>: running count of what preparation dropped, e.g. segments emptied by the crop.
    """

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._since = (0.0, 0)  # time, images at the newest logging step
        self._waited = 0.0
        self._step_ended: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = (time.perf_counter(), 0)
        self._images.clear()
        self._step_ended = None

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
                self._dropped.update({f"dropped/{name}/{reason}": n for reason, n in part.counts.items()})
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer)
        self._step_ended = time.perf_counter()

    def _log(self, trainer: pl.Trainer) -> None:
        now, total = time.perf_counter(), sum(self._images.values())
        elapsed = max(now - self._since[0], 1e-9)
        report = {f"sampling/{name}": count / total for name, count in self._images.items()}
        report["throughput/images_per_second"] = (total - self._since[1]) / elapsed
        report["throughput/data_wait"] = min(1.0, self._waited / elapsed)
        report |= {key: float(count) for key, count in self._dropped.items()}
        for logger in trainer.loggers:
            logger.log_metrics(report, step=trainer.global_step)
        self._since, self._waited = (now, total), 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training time: take it out of both clocks."""
        pause = time.perf_counter() - self._paused
        self._since = (self._since[0] + pause, self._since[1])
        if self._step_ended is not None:
            self._step_ended += pause

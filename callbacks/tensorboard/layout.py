"""TensorBoard for comparing runs: a layout of the curves, and each finished run's settings beside its scores."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import yaml

from callbacks.evaluation import TAG, Evaluation
from callbacks.tensorboard import hparams
from callbacks.tensorboard.writer import board, log_by_dataset, log_settings
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.metrics.by_task import BY_TASK
from dataseg.structures import DatasetSpec
from dataseg.training.module import CoTrainedSegmenter

Layout = dict[str, dict[str, list[Any]]]


class Dashboard(pl.Callback):
    """Lays out TensorBoard's Custom Scalars tab, and adds the finished run to its HParams tab.

    Losses, metrics and the course of the run lie in a category each: first charts of all datasets together, then one
    for each dataset (and task) with all its terms or scores. TensorBoard joins the layouts of the runs it shows;
    charts of the same dataset are the same for every run.

    ``datasets/loss`` and ``datasets/score`` (the primary ones) are charts with a colour for each dataset.

    A row of the HParams tab holds the experiment (the folder above the run's), `hparams.SETTINGS` from the run's
    ``config.yaml`` and the newest ``score`` and primary scores. A run that goes on replaces its row. Runs started in
    Python, which have no ``config.yaml``, get none. Other loggers get the settings when the run starts.
    """

    def __init__(self) -> None:
        self._is_laid_out = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._is_laid_out = False
        folder = trainer.log_dir  # asked on every rank: the first one sends it to the others
        settings = _settings(Path(folder)) if folder is not None and trainer.is_global_zero else None
        if settings is not None:
            log_settings(trainer, settings)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        if self._is_laid_out:
            return
        self._is_laid_out = True  # with the first batch, which names every dataset that is trained on
        writer = board(trainer)
        if writer is not None:
            writer.add_custom_scalars(layout(batch, cast(CoTrainedSegmenter, pl_module).datasets))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            evaluation = Evaluation.of(trainer)
            scores = {key: evaluation.results[key] for key in evaluation.primary}
            log_by_dataset(trainer, "score", {key: value for key, value in scores.items() if math.isfinite(value)})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer, folder = board(trainer), trainer.log_dir
        settings = None if writer is None or folder is None else _settings(Path(folder))
        if settings is None or folder is None:
            return
        scores = [TAG + key for key in ("score", *Evaluation.of(trainer).primary)]
        hparams.write(Path(folder).resolve(), settings, scores)


def _settings(folder: Path) -> dict[str, hparams.Cell] | None:
    config = RunFolder(folder).config
    if not config.is_file():
        return None
    settings = hparams.row(yaml.safe_load(config.read_text(encoding="utf-8")))
    return {hparams.EXPERIMENT: folder.resolve().parent.name, **settings}


def layout(trained: Iterable[str], datasets: Mapping[str, DatasetSpec]) -> Layout:
    """Charts by category and title, as `SummaryWriter.add_custom_scalars` takes them: regular expressions of tags.

    Args:
        trained: datasets that have a loss.
        datasets: with the tasks that each is evaluated on.
    """
    losses = {"total": "^loss/.+/total$", **{name: f"^loss/{re.escape(name)}/" for name in trained}}
    metrics = {
        "score": f"^{TAG}score$",
        "primary scores": rf"^{TAG}.+\.({'|'.join(row.primary for row in BY_TASK.values())})(_stored|_recounted)?$",
    }
    for name, spec in datasets.items():
        metrics |= {f"{name}, {task}": rf"^{TAG}{re.escape(name)}\.({BY_TASK[task].scores})" for task in spec.tasks}
    course = {
        "sampling ratios": "^sampling/",
        "images per second": "^throughput/images_per_second$",
        "share of time spent waiting for data": "^throughput/data_wait$",
        "learning rates": "^lr-",
    }
    return {
        category: {title: ["Multiline", [tags]] for title, tags in charts.items()}
        for category, charts in {"losses": losses, "metrics": metrics, "course of the run": course}.items()
    }

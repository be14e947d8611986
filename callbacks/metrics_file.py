"""What programs read of a run, ``metrics.json`` and ``progress.json``, and the table at the end."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from callbacks.evaluation import Evaluation
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.io.atomic import write_text
from dataseg.io.json_files import write_json
from dataseg.structures import DatasetSpec, Task
from dataseg.visualization.class_tables import scores_of_class

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 1.0
"""``progress.json`` is written this often at most."""


class RunRecord(pl.Callback):
    """Writes ``<run>/metrics.json`` after every validation; prints the table of all scores when the run ends.

    The file holds every score of the newest validation at its top level, ``<dataset>.<score>`` in percent (null
    where undefined), and beside them ``run`` (step of the weights, checkpoint they were loaded from, seed, versions),
    ``conventions`` (averaging and crowd rule, hash of the class names, text model, MERGE, post-processing), ``data``
    (images of each dataset, and what reading dropped, mended or did not find), ``history`` (the primary scores by
    step), ``per_class`` (percent, and counts) and ``confusion`` (pixels: a row for each ground-truth class, a column
    for each predicted one, the last for none). ``<run>/progress.json`` tells the step of a run in training.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float | None]] = []
        self._loaded_step = 0
        self._file: Path | None = None
        self._progress: Path | None = None
        self._progress_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loaded_step = int(checkpoint["global_step"])

    def _weights(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Origin of the evaluated weights: this run's step, resumed or not, or the checkpoint that was loaded."""
        if trainer.state.fn == TrainerFn.FITTING:
            return {"step": trainer.global_step, "checkpoint": None}
        path = trainer.ckpt_path
        return {"step": self._loaded_step, "checkpoint": None if path is None else str(path)}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir  # asked on every rank: the first one sends it to the others
        self._progress = None if folder is None or not trainer.is_global_zero else RunFolder(Path(folder)).progress

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is None or time.monotonic() - self._progress_at < PROGRESS_SECONDS:
            return
        self._progress_at = time.monotonic()
        try:
            write_json(self._progress, {"step": trainer.global_step})
        except OSError as error:  # a full disk, mostly: it is for the checkpoints to end the run
            log.warning("%s cannot be written any more: %s", self._progress, error)
            self._progress = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        evaluation = Evaluation.of(trainer)
        results = {key: _defined(value) for key, value in evaluation.results.items()}
        if trainer.state.fn == TrainerFn.FITTING:
            primary = {key: results[key] for key in [*evaluation.primary, "score"]}
            self.history.append({"step": trainer.global_step, **primary})
        if trainer.is_global_zero and self._file is not None:
            content = {
                **results,
                "run": _describe(trainer, pl_module) | self._weights(trainer),
                "conventions": _conventions(evaluation, pl_module),
                "data": getattr(getattr(trainer, "datamodule", None), "counts", {}),
                "history": self.history,
                "per_class": _per_class(evaluation),
                "confusion": {dataset: matrix.tolist() for dataset, matrix in evaluation.confusion.items()},
            }
            _write(self._file, content)
        if trainer.state.fn != TrainerFn.FITTING:
            self._print_table(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = trainer.log_dir  # asked on every rank, as above
        self._file = None if folder is None else RunFolder(Path(folder)).metrics

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._print_table(trainer)

    def _print_table(self, trainer: pl.Trainer) -> None:
        evaluation = Evaluation.of(trainer)
        if not trainer.is_global_zero or not evaluation.results:
            return
        table = Table(title=f"step {self._weights(trainer)['step']} (percent)")
        table.add_column("dataset", no_wrap=True)
        table.add_column("score", no_wrap=True)
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("more, all in metrics.json")
        for (dataset, task), primary in zip(evaluation.metrics, evaluation.primary, strict=True):
            keys = [f"{dataset}.{name}" for name in evaluation.metrics[dataset, task].compute()]
            more = [key for key in keys if key != primary and math.isfinite(evaluation.results[key])]
            rest = "  ".join(f"{key.partition('.')[2]} {evaluation.results[key]:.1f}" for key in more)
            table.add_row(
                dataset,
                primary.partition(".")[2],
                _percent(evaluation.results[primary]),
                Text(rest, no_wrap=True, overflow="ellipsis"),
            )
        table.add_row("all", "score", _percent(evaluation.results["score"]), "")
        console = Console()
        console.print(table)
        if self._file is not None:
            console.print(f"metrics: {self._file}", soft_wrap=True)


def _percent(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "undefined"


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    return {
        "max_steps": trainer.max_steps,
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "world_size": trainer.world_size,
        "parameters": sum(p.numel() for p in pl_module.parameters()),
        "versions": {"torch": torch.__version__, "lightning": version("lightning")},
    }


def _conventions(evaluation: Evaluation, pl_module: Any) -> dict[str, dict[str, str]]:
    return {
        f"{dataset}.{task}": {**metric.convention, **_model(pl_module, pl_module.datasets[dataset], task)}
        for (dataset, task), metric in evaluation.metrics.items()
    }


def _model(pl_module: Any, spec: DatasetSpec, task: Task) -> dict[str, str]:
    """How the network sees an image, and what is made of its proposals."""
    options = asdict(getattr(pl_module.postprocess, task))
    return {
        "text": pl_module.text_provenance,
        "resize": spec.resize,
        **({"views": str(spec.views)} if task is Task.SEMANTIC else {}),
        "merge": pl_module.merge,
        "postprocess": ", ".join(f"{name} {value}" for name, value in options.items()),
    }


def _per_class(evaluation: Evaluation) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        f"{dataset}.{task}": scores_of_class(columns, evaluation.metrics[dataset, task].vocabulary.names)
        for (dataset, task), columns in evaluation.per_class.items()
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    """One line for each key."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_text(path, f"{{\n{lines}\n}}\n")

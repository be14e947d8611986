"""Per-class tables and confusion matrices in TensorBoard."""

from __future__ import annotations

import lightning.pytorch as pl

from callbacks.evaluation import Evaluation
from callbacks.tensorboard.writer import board, log_picture
from dataseg.metrics.by_task import primary_column
from dataseg.structures import Task
from dataseg.visualization.class_tables import (
    confusion_markdown,
    confusion_picture,
    per_class_markdown,
    per_class_picture,
)


class ClassTables(pl.Callback):
    """Writes ``tables/classes.<dataset>.<task>`` and ``tables/confusion.<dataset>``, each as text and as picture."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not trainer.loggers:
            return
        writer = board(trainer)
        evaluation = Evaluation.of(trainer)
        step = trainer.global_step
        for (dataset, task), columns in evaluation.per_class.items():
            metric = evaluation.metrics[dataset, task]
            names = metric.vocabulary.names
            picture = per_class_picture(columns, names, sort_by=primary_column(task, metric))
            log_picture(trainer, f"tables/classes.{dataset}.{task}", picture)
            if writer is not None:
                writer.add_text(f"tables/classes.{dataset}.{task}", per_class_markdown(columns, names), step)
        for dataset, matrix in evaluation.confusion.items():
            names = evaluation.metrics[dataset, Task.SEMANTIC].vocabulary.names
            log_picture(trainer, f"tables/confusion.{dataset}", confusion_picture(matrix, names))
            if writer is not None:
                writer.add_text(f"tables/confusion.{dataset}", confusion_markdown(matrix, names), step)

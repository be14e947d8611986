"""Per-class tables and confusion matrices in TensorBoard."""

from __future__ import annotations

import lightning.pytorch as pl

from callbacks.evaluation import Evaluation
from callbacks.tensorboard.writer import board
from dataseg.metrics.by_task import primary_column
from dataseg.structures import Task
from dataseg.visualization.class_tables import (
    confusion_markdown,
    confusion_picture,
    per_class_markdown,
    per_class_picture,
)


class ClassTables(pl.Callback):
    """Writes ``classes/<dataset>.<task>`` and ``confusion/<dataset>`` after each validation, as text and picture."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = None if trainer.sanity_checking else board(trainer)
        if writer is None:
            return
        evaluation = Evaluation.of(trainer)
        step = trainer.global_step
        for (dataset, task), columns in evaluation.per_class.items():
            metric = evaluation.metrics[dataset, task]
            names = metric.vocabulary.names
            writer.add_text(f"classes/{dataset}.{task}", per_class_markdown(columns, names), step)
            picture = per_class_picture(columns, names, sort_by=primary_column(task, metric))
            writer.add_image(f"classes/{dataset}.{task}", picture, step, dataformats="HWC")
        for dataset, matrix in evaluation.confusion.items():
            names = evaluation.metrics[dataset, Task.SEMANTIC].vocabulary.names
            writer.add_text(f"confusion/{dataset}", confusion_markdown(matrix, names), step)
            writer.add_image(f"confusion/{dataset}", confusion_picture(matrix, names), step, dataformats="HWC")

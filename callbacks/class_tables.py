"""Per-class tables and confusion matrices in TensorBoard."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.evaluation import PRIMARY, Evaluation
from dataseg.metrics.tables import confusion_markdown, confusion_picture, per_class_markdown, per_class_picture
from dataseg.structures import Task


class ClassTables(pl.Callback):
    """Writes ``classes/<data set>.<task>`` and ``confusion/<data set>`` after each validation, as text and picture."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(logger, TensorBoardLogger):
            return
        evaluation = Evaluation.of(trainer)
        board, step = logger.experiment, trainer.global_step
        for (dataset, task), columns in evaluation.per_class.items():
            names = evaluation.metrics[dataset, task].vocabulary.names
            main = "iou" if task is Task.SEMANTIC else PRIMARY[task]
            board.add_text(f"classes/{dataset}.{task}", per_class_markdown(columns, names), step)
            picture = per_class_picture(columns, names, sort_by=main)
            board.add_image(f"classes/{dataset}.{task}", picture, step, dataformats="HWC")
        for dataset, matrix in evaluation.confusion.items():
            names = evaluation.metrics[dataset, Task.SEMANTIC].vocabulary.names
            board.add_text(f"confusion/{dataset}", confusion_markdown(matrix, names), step)
            board.add_image(f"confusion/{dataset}", confusion_picture(matrix, names), step, dataformats="HWC")

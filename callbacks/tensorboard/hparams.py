"""The row of a run in TensorBoard's HParams tab: settings that ablations vary, beside the run's scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

Cell = str | float

SUFFIX = ".hparams"
"""Ends the name of the event file that holds the row."""

EXPERIMENT = "experiment"
SHOWN_FIRST = (EXPERIMENT, "max_steps", "mixed", "ratios", "seed_everything")
"""TensorBoard shows five columns until others are ticked."""

SETTINGS = (
    "seed_everything",
    "trainer.max_steps",
    "trainer.precision",
    "data.ratios",
    "data.ratio_exponent",
    "data.mixed",
    "data.batch_size",
    "data.train_transform.image_size",
    "data.train_transform.scale_range",
    "model.merge",
    "model.classifier",
    "model.background",
    "model.weights",
    "model.network.backbone.name",
    "model.network.num_queries",
    "model.text.templates",
    "model.criterion.padding",
    "model.criterion.box_supervision",
    "model.criterion.projection_weight",
    "model.criterion.affinity_weight",
    "model.optimization.lr",
    "model.optimization.schedule",
    "model.optimization.decayed",
    "model.postprocess.semantic.merge",
)
"""What ablations vary, as it is written on the command line: ``class_path`` and ``init_args`` are passed over."""


def row(config: Mapping[str, Any]) -> dict[str, Cell]:
    """`SETTINGS` of a resolved configuration, by their names without the first word."""
    return {name.partition(".")[2] or name: _cell(_value(config, name.split("."))) for name in SETTINGS}


def _value(config: Any, keys: list[str]) -> Any:
    """None where a component of another class, or none at all, has no such setting."""
    for key in keys:
        arguments = config.get("init_args", config) if isinstance(config, Mapping) else {}
        config = arguments.get(key)
    return config


def _cell(value: Any) -> Cell:
    """Numbers as they are; all else in words, on one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(str(_cell(item)) for item in value)
    return value if isinstance(value, int | float) else str(value)


def write(folder: Path, values: Mapping[str, Cell], scores: Iterable[str]) -> None:
    """Replace a run's row.

    It is a file of its own: of two rows in one file TensorBoard would go on showing the first.

    Args:
        folder: of the run.
        values: by name of the setting; every run should have the same ones, as TensorBoard takes the columns from any.
        scores: tags of scalars; TensorBoard shows their newest values.
    """
    for old in folder.glob(f"*{SUFFIX}"):
        old.unlink()
    experiment, start, end = hparams(dict(values), dict.fromkeys(scores))  # type: ignore[no-untyped-call]
    data = experiment.value[0].metadata.plugin_data
    columns = HParamsPluginData.FromString(data.content)
    for column in columns.experiment.hparam_infos:
        column.differs = column.name in SHOWN_FIRST  # TensorBoard sorts these before the others
    data.content = columns.SerializeToString()
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        for summary in (experiment, start, end):
            writer.file_writer.add_summary(summary)

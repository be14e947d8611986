"""The row of a run in TensorBoard's HParams tab: settings that ablations vary, beside the run's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter

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
    "data.image_size",
    "data.scale_range",
    "model.merge",
    "model.classifier",
    "model.background",
    "model.weights",
    "model.network.backbone.name",
    "model.network.num_queries",
    "model.text.templates",
    "model.criterion.box_supervision",
    "model.criterion.projection_weight",
    "model.criterion.affinity_weight",
    "model.optimization.lr",
    "model.optimization.schedule",
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


def write(folder: Path, values: Mapping[str, Cell], figures: Iterable[str]) -> None:
    """Put a run's row in the place of an earlier one.

    It is a file of its own: of two rows in one file TensorBoard would go on showing the first.

    Args:
        folder: of the run.
        values: by name of the setting; every run should have the same ones, as TensorBoard takes the columns from any.
        figures: tags of scalars; TensorBoard shows their newest values.
    """
    for old in folder.glob(f"*{SUFFIX}"):
        old.unlink()
    start, end = SessionStartInfo(), SessionEndInfo(status=STATUS_SUCCESS)
    for name, value in values.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        for tag, content in (
            (metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=_columns(values, figures))),
            (metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
            (metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
        ):
            described = metadata.create_summary_metadata(content)
            value_pb = Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)
            writer.file_writer.add_summary(Summary(value=[value_pb]))


def _columns(values: Mapping[str, Cell], figures: Iterable[str]) -> Experiment:
    settings = [
        HParamInfo(
            name=name,
            type=DATA_TYPE_STRING if isinstance(value, str) else DATA_TYPE_FLOAT64,
            differs=name in SHOWN_FIRST,  # these come first
        )
        for name, value in values.items()
    ]
    return Experiment(hparam_infos=settings, metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in figures])

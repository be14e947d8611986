"""Settings of ``data`` that version 0.1 called otherwise: configurations of its runs and exported models are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataseg.structures import UserError

RENAMED = {
    "image_size": "train_transform.image_size",
    "scale_range": "train_transform.scale_range",
    "flip": "train_transform.flip",
    "color_jitter": "train_transform.color_jitter",
    "augmentation": "train_transform.augmentation",
    "eval_size": "eval_transform.size",
    "eval_max_size": "eval_transform.max_size",
    "eval_scales": "test_time_augmentation.scales",
    "eval_flip": "test_time_augmentation.flip",
    "eval_window": "test_time_augmentation.window",
    "eval_overlap": "test_time_augmentation.overlap",
}
"""Arguments of `data_modules.CoTraining`: old name -> today's (``augmentation`` is only a likely guess)."""


def with_current_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose ``data`` has today's names; what has them already is left as it is."""
    data = config.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("init_args"), Mapping):
        return dict(config)
    arguments = {name: value for name, value in data["init_args"].items() if name not in RENAMED}
    for name, value in data["init_args"].items():
        if name in RENAMED:
            group, _, key = RENAMED[name].partition(".")
            arguments[group] = {**(arguments.get(group) or {}), key: value}
    return {**config, "data": {**data, "init_args": arguments}}


def refuse_old_names(names: Mapping[str, Any], where: str) -> None:
    """Name the new name of an argument of ``data``.

    Raises:
        UserError: one of ``names`` has another name today; starts with ``where``.
    """
    old = next((name for name in names if name in RENAMED), None)
    if old is not None:
        raise UserError(f"{where}: data.{old} is called data.{RENAMED[old]} now")

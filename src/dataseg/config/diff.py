"""In which keys the resolved configurations of several runs differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

ABSENT = object()
"""A key that a configuration lacks."""

ABOUT_THE_RUN = frozenset(
    {
        "seed_everything",
        "exp",
        "run",
        "runs",
        "resume",
        "ckpt_path",
        "extends",
        "trainer.default_root_dir",
        "trainer.logger",
        "data.root",
        "data.cache",
    }
)
"""Names and locations, which say nothing about the experiment."""


def differences(configs: Sequence[Mapping[str, Any]], ignored: Collection[str] = ABOUT_THE_RUN) -> dict[str, list[str]]:
    """Texts of the values by key, only of keys that differ; ``init_args`` is left out of keys.

    Args:
        configs: at least one.
        ignored: keys that are not looked at, nor anything below them.
    """
    found: dict[str, list[str]] = {}
    _compare("", list(configs), ignored, found)
    return found


def _compare(key: str, values: Sequence[Any], ignored: Collection[str], found: dict[str, list[str]]) -> None:
    if key in ignored or all(value == values[0] for value in values):
        return
    named = [_by_class(value) for value in values]
    if not all(isinstance(value, Mapping) for value in named) or _classes_differ(named):
        found[key] = [_text(value) for value in values]
        return
    for part in dict.fromkeys(part for value in named for part in value):
        inner = key if part == "init_args" else f"{key}.{part}" if key else str(part)
        _compare(inner, [value.get(part, ABSENT) for value in named], ignored, found)


def _by_class(value: Any) -> Any:
    """A list of classes with arguments, such as callbacks, as a mapping."""
    is_classes = isinstance(value, list) and value and all(isinstance(v, Mapping) and "class_path" in v for v in value)
    return {entry["class_path"].rpartition(".")[2]: entry for entry in value} if is_classes else value


def _classes_differ(values: Sequence[Mapping[str, Any]]) -> bool:
    return len({value.get("class_path") for value in values}) > 1


def _text(value: Any) -> str:
    if value is ABSENT:
        return "\N{EN DASH}"
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = value.get("init_args") or {}
        return f"{value['class_path']}({', '.join(f'{k}={_text(v)}' for k, v in arguments.items())})"
    return value if isinstance(value, str) else json.dumps(value, default=str).replace('"', "")

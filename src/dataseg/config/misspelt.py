"""Settings that nothing knows: what is told of them in place of jsonargparse's page."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Collection
from typing import Any, get_args, get_type_hints

_UNKNOWN = (
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'",
    r"Option '(?P<name>[\w.]+)' is not accepted",
    r"unrecognized arguments: --(?P<name>[\w.]+)",
)


def explain(message: str, keys: Collection[str]) -> str:
    """One line: which setting is not known and which is meant, else what jsonargparse says without its page.

    Args:
        message: jsonargparse's.
        keys: of all settings outside of classes that a configuration chooses.
    """
    unknown = next(filter(None, (re.search(pattern, message) for pattern in _UNKNOWN)), None)
    if unknown is None:
        return " ".join(message.split())[:600]
    name = ".".join(filter(None, (unknown.groupdict().get("group"), unknown["name"])))
    before = message[: unknown.start()]
    classes, owner = re.findall(r"class_path '([\w.]+)'", before), re.search(r'Parser key "([\w.]+)"', before)
    if not classes:
        near = difflib.get_close_matches(name, keys, n=1)
        return f"there is no setting {name}{_meant(near)}"
    prefix, wrong, known = _first_unknown(_imported(classes[-1]), name.split("."))
    near = [".".join([*prefix, key]) for key in difflib.get_close_matches(wrong, known, n=1)]
    where = f"{owner[1]}, a {classes[-1]}," if owner and len(classes) == 1 else classes[-1]
    passed_on = "" if prefix or not _passes_on(_imported(classes[-1])) else "; what it passes on stands in dict_kwargs"
    return f"{where} has no setting {name}{_meant(near)} It has {', '.join(sorted(known))}{passed_on}"


def _passes_on(kind: Any) -> bool:
    """Whether it takes any keyword, for a library behind it: jsonargparse wants those apart from its own arguments."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())


def _meant(near: list[str]) -> str:
    return f": did you mean {near[0]}?" if near else "."


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _first_unknown(kind: Any, path: list[str]) -> tuple[list[str], str, list[str]]:
    """The arguments of classes that a path leads through, the first name that is none, and those that there are."""
    for depth, name in enumerate(path):
        known = [parameter for parameter in inspect.signature(kind).parameters if parameter not in ("args", "kwargs")]
        hint = get_type_hints(kind.__init__).get(name)
        inner = next((k for k in (hint, *get_args(hint)) if isinstance(k, type) and k is not type(None)), None)
        if name not in known or inner is None or depth == len(path) - 1:
            break
        kind = inner
    return path[:depth], name, known

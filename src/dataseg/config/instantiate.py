"""Objects built from sections of one's own configuration, which may name any class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from dataseg.structures import UserError


def instantiate(base: type, section: Mapping[str, Any], where: str) -> Any:
    """What a section of a configuration describes: ``class_path`` and ``init_args``, or the arguments of ``base``.

    Raises:
        UserError: no such class or argument; starts with ``where``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--section", type=base)
    try:
        return parser.instantiate(parser.parse_object({"section": dict(section)})).section
    except ArgumentError as error:
        reason = " ".join(str(error).split())[:600]
        raise UserError(f"{where} cannot be built: {reason}. Was it written by another version?") from error


def without_downloads(section: Any) -> Any:
    """The same, with ``pretrained`` false wherever it is: all weights are in a checkpoint."""
    if isinstance(section, Mapping):
        return {k: False if k == "pretrained" else without_downloads(v) for k, v in section.items()}
    return section

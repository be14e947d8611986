"""JSON files, read with errors that name file and record, written whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dataseg.io.atomic import write_text
from dataseg.io.text_files import read_text
from dataseg.structures import UserError


def read_json(path: Path) -> Any:
    """Any JSON file.

    Raises:
        UserError: missing or malformed.
    """
    try:
        return json.loads(read_text(path))
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error


def records_of(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise UserError(f"{path}: no list of records under {key!r}")
    return found


def field_of(record: dict[str, Any], key: str, where: str) -> Any:
    if key not in record:
        raise UserError(f"{where} has no {key!r}")
    return record[key]


def finite(value: Any) -> float | None:
    """A value as a finite number; text of one, as some tools write it, is read too. None: it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def number_of(record: dict[str, Any], key: str, where: str) -> float:
    """A finite number, see `finite`.

    Raises:
        UserError: anything else.
    """
    value = field_of(record, key, where)
    number = finite(value)
    if number is None:
        raise UserError(f"{where}: {key} {value!r:.60} is not a finite number")
    return number


def integer_of(record: dict[str, Any], key: str, where: str) -> int:
    """A whole number, see `number_of`.

    Raises:
        UserError: anything else.
    """
    number = number_of(record, key, where)
    if number % 1:
        raise UserError(f"{where}: {key} {number:g} is not a whole number")
    return int(number)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent))

"""JSON and image files, read with errors that name file and record, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dataseg.structures import ClassSpec, UserError, Vocabulary


def read_json(path: Path) -> Any:
    """Any JSON file.

    Raises:
        UserError: missing or malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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


def vocabulary_of(path: Path) -> Vocabulary:
    """The vocabulary that an annotation file states in its ``categories``; classes are things unless it says not.

    Raises:
        UserError: there are none.
    """
    classes = []
    for position, record in enumerate(records_of(read_json(path), "categories", path)):
        where = f"{path}, category {position}"
        name = str(field_of(record, "name", where))
        number, is_thing = int(field_of(record, "id", where)), bool(record.get("isthing", 1))
        classes.append(ClassSpec(number, name, is_thing, (name.strip() or str(number),), (0, 0, 0)))
    if not classes:
        raise UserError(f"{path} lists no category: say the classes with --vocabulary")
    try:
        return Vocabulary(path.stem, tuple(classes))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def open_pixels(path: Path) -> NDArray[Any]:
    """Pixels of a PNG or TIFF, ``[H, W]`` or ``[H, W, channels]``; palette files give their indices.

    Raises:
        UserError: missing or broken.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def shift_hint(shift: int) -> str:
    return "" if shift else " (ids that start elsewhere: --gt-shift, --pred-shift)"


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Under a temporary name first, so that a broken run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    part.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    part.replace(path)


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Uint8 ``[H, W]`` or ``[H, W, 3]``, or uint16 ``[H, W]``; under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    Image.fromarray(pixels).save(part, format="PNG", compress_level=1)
    part.replace(path)

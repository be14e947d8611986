"""Fields of COCO annotation records, read by one rule for training, evaluation and scoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dataseg.io.json_files import finite
from dataseg.io.rle import RLE
from dataseg.structures import UserError


def id_of(value: Any) -> Any:
    """An id as the file states it; the text of a whole number, as some tools write it, is that number."""
    if isinstance(value, str) and value.isdecimal() and str(int(value)) == value:
        return int(value)
    return value


def crowd_of(record: Mapping[str, Any]) -> bool:
    """``iscrowd``, which some tools write as text; absent or null = no crowd.

    Raises:
        UserError: not a number.
    """
    value = record.get("iscrowd")
    try:
        return bool(int(value or 0))
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"iscrowd must be 0 or 1, got {value!r}") from None


def box_of(record: Mapping[str, Any], rle: RLE | None = None) -> tuple[float, float, float, float]:
    """``bbox``: x, y, width and height in pixels; the mask's own where the record states none, or one without extent.

    Raises:
        UserError: no box and no mask, or not four finite numbers.
    """
    stated = record.get("bbox")
    if not stated and rle is None:
        raise UserError("bbox is missing")
    if stated:
        try:
            x, y, width, height = map(float, stated)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"bbox must be [x, y, width, height] in pixels, got {stated!r:.60}") from None
        if not np.isfinite([x, y, width, height]).all():
            raise UserError(f"its box is not finite: bbox {stated!r:.60}: leave it out to have the mask's")
        if rle is None or (width > 0 and height > 0):
            return x, y, width, height
    x, y, width, height = coco_mask.toBbox(rle).tolist()
    return x, y, width, height


def area_of(record: Mapping[str, Any], rle: RLE | None, box_area: float) -> float:
    """``area`` in pixels, which decides the size class; the mask's own where it is absent, null or 0.

    Args:
        record: the annotation.
        rle: its mask.
        box_area: stands in where there is neither an area nor a mask.

    Raises:
        UserError: not a finite number.
    """
    stated = record.get("area")
    if not stated:
        return box_area if rle is None else float(coco_mask.area(rle))
    area = finite(stated)
    if area is None:
        raise UserError(f"its area is not finite: area {stated!r:.60}: leave it out to have the mask's")
    return area


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts file and record before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error

"""COCO masks: one checked reader of what annotation and result files state, for training, evaluation and scoring.

Run lengths go down the columns, first column first. pycocotools rasterises, but trusts its input: counts that do not
fit their image are read past their end, coordinates far outside it end the process. So all is checked before.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dataseg.structures import UserError

RLE: TypeAlias = dict[str, Any]
"""A compressed COCO mask: ``{"size": [H, W], "counts": bytes}``."""

REACH = 10
"""Polygons may reach this many times the image's longer side out of it; beyond, they are refused."""

_WANTED = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or {'size': [rows, columns], 'counts': run lengths}"
_DEPTH = 6  # lists within lists
_LEFT_OUT = "points_and_lines_beside_polygons"
_WRITTEN_BY = "write them with pycocotools.mask.encode"
_AS_BYTES = "which pycocotools gives as bytes: write counts.decode() into the file"


def rle_of(segmentation: Any, rows: int, columns: int, counts: dict[str, int] | None = None) -> RLE | None:
    """A record's ``segmentation`` as compressed RLE, rasterised as pycocotools does.

    Beside COCO's own forms (polygons, plain and compressed counts), those are read that have one meaning: points as
    pairs or as {x, y} records, a flat list of coordinates, other nesting, ``all_points_x`` and ``all_points_y``, JSON
    as text, an RLE in a list, whole numbers as floats. Points and lines beside polygons are left out: they hold no
    pixel.

    Args:
        segmentation: as the file states it.
        rows: of the image.
        columns: of the image.
        counts: what was left out is added to it.

    Returns:
        None if no mask is stated: missing, empty, or without counts. A mask without a pixel is returned as such.

    Raises:
        UserError: anything else; says what was found and what is wanted.
    """
    if isinstance(segmentation, str) and segmentation:
        try:
            segmentation = json.loads(segmentation)
        except (ValueError, RecursionError):
            raise _malformed(segmentation) from None
    if isinstance(segmentation, list) and len(segmentation) == 1 and isinstance(segmentation[0], dict):
        segmentation = segmentation[0] if "counts" in segmentation[0] else segmentation
    if not segmentation and segmentation in (None, [], {}, ""):
        return None
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return _from_counts(segmentation, rows, columns)
    stated = _polygons(segmentation)
    polygons = [polygon for polygon in stated if _is_area(polygon, rows, columns)]
    if counts is not None and len(polygons) < len(stated):
        counts[_LEFT_OUT] = counts.get(_LEFT_OUT, 0) + len(stated) - len(polygons)
    if not polygons:
        raise UserError(f"segmentation {_short(segmentation)}: no polygon has three points; wanted: {_WANTED}")
    ends = np.concatenate(polygons)
    if 0 <= ends.min() and ends.max() <= 1 < min(rows, columns):
        raise UserError(
            f"segmentation {_short(segmentation)}: all coordinates lie between 0 and 1, as shares of the image do;"
            f" wanted: {_WANTED}: multiply x by the width {columns} and y by the height {rows}"
        )
    return dict(coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in polygons], rows, columns)))


def mask_of(segmentation: Any, rows: int, columns: int, counts: dict[str, int] | None = None) -> RLE | None:
    """`rle_of` for ground truth: None also if the mask has no pixel, as such an instance cannot be found."""
    rle = rle_of(segmentation, rows, columns, counts)
    return rle if rle is not None and coco_mask.area(rle) else None


def encode_mask(mask_HW: NDArray[Any]) -> RLE:
    """A mask, bool or 0 and 1, ``[H, W]``, as compressed RLE."""
    return dict(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)))


def rle_to_json(rle: RLE) -> RLE:
    """A compressed RLE as result files hold it, its counts as text."""
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def _polygons(node: Any, depth: int = 0) -> list[NDArray[np.float64]]:
    """Coordinates x1, y1, x2, y2, ... of each polygon, at whatever nesting."""
    if depth == _DEPTH:
        raise _malformed(node)
    if isinstance(node, dict) and {"all_points_x", "all_points_y"} <= node.keys():
        xs, ys = node["all_points_x"], node["all_points_y"]
        node = (
            [list(point) for point in zip(xs, ys, strict=False)]
            if isinstance(xs, list) and isinstance(ys, list)
            else None
        )
    if isinstance(node, list) and node and all(isinstance(p, dict) and {"x", "y"} <= p.keys() for p in node):
        node = [[point["x"], point["y"]] for point in node]
    if not isinstance(node, list) or not node:
        raise _malformed(node)
    try:
        numbers = np.array(node, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):  # entries of different lengths
        return [polygon for entry in node for polygon in _polygons(entry, depth + 1)]
    if numbers.ndim == 1:
        return [numbers]
    if numbers.ndim == 2 and numbers.shape[1] == 2 and len(numbers) >= 3:
        return [numbers.ravel()]
    return [polygon for entry in node for polygon in _polygons(entry, depth + 1)]


def _is_area(polygon: NDArray[np.float64], rows: int, columns: int) -> bool:
    if len(polygon) % 2:
        raise UserError(f"a polygon of {len(polygon)} numbers, which is odd; wanted: {_WANTED}")
    if not np.isfinite(polygon).all():
        raise UserError("a polygon has coordinates that are not finite numbers")
    if np.abs(polygon).max() > (REACH + 1) * max(rows, columns):
        raise UserError(
            f"a polygon reaches to {polygon[np.abs(polygon).argmax()]:g}, far outside its image of {rows} x {columns}"
            f" (rows x columns); wanted: {_WANTED}"
        )
    return len(polygon) >= 6


def _from_counts(segmentation: RLE, rows: int, columns: int) -> RLE | None:
    counts, size = segmentation["counts"], segmentation.get("size")
    if counts is None or len(counts if isinstance(counts, str | list | bytes) else "x") == 0:
        return None
    if size is None or list(size if isinstance(size, list | tuple) else ()) != [rows, columns]:
        hint = ": rows come first" if size == [columns, rows] else f": write 'size': [{rows}, {columns}]"
        stated = "without a size" if size is None else f"of size {_short(size)}"
        raise UserError(f"run lengths {stated} in an image of {rows} x {columns} (rows x columns){hint}")
    whole = {"size": [rows, columns]}
    if isinstance(counts, list):
        return dict(coco_mask.frPyObjects({**whole, "counts": _whole_numbers(counts, rows * columns)}, rows, columns))
    if not isinstance(counts, str | bytes):
        raise UserError(f"counts {_short(counts)}; wanted: a list of run lengths, or compressed counts as text")
    compressed = counts.encode() if isinstance(counts, str) else counts
    try:
        check_run_lengths(compressed, rows * columns)
    except UserError as error:
        if compressed[:2] in (b"b'", b'b"'):
            raise UserError(f"counts {_short(counts)}: the text of a Python bytes object, {_AS_BYTES}") from None
        if _fits(_from_base64(compressed), rows * columns):
            raise UserError(f"counts {_short(counts)}: base64 of compressed counts, {_AS_BYTES}") from None
        raise error
    return {**whole, "counts": compressed}


def _whole_numbers(counts: list[Any], pixels: int) -> list[int]:
    try:
        numbers = np.array(counts)
    except ValueError:
        numbers = np.array(None)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or (numbers % 1 != 0).any():  # NaN too
        raise UserError(f"counts {_short(counts)} are not all whole numbers")
    if numbers.min() < 0 or numbers.max() > pixels or numbers.sum() != pixels:  # a sum can overflow
        is_bytes = 0 <= numbers.min() and numbers.max() < 256
        if is_bytes and _fits(bytes(numbers.astype(np.uint8)), pixels):
            raise UserError(f"counts {_short(counts)}: byte values of compressed counts, {_AS_BYTES}")
        raise UserError(f"run lengths that add up to {numbers.sum():g} pixels, not {pixels}: {_WRITTEN_BY}")
    whole: list[int] = numbers.astype(np.int64).tolist()
    return whole


def _fits(counts: bytes, pixels: int) -> bool:
    try:
        check_run_lengths(counts, pixels)
    except UserError:
        return False
    return True


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def check_run_lengths(counts: bytes, pixels: int) -> None:
    """Whether compressed run lengths can be decoded and cover the image; pycocotools would read past their end.

    Raises:
        UserError: they do not.
    """
    values = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((values & 32) == 0)
    if not len(ends) or ends[-1] != len(values) - 1 or values.min() < 0 or values.max() > 63:
        raise UserError(f"compressed run lengths {_short(counts)} cannot be decoded: {_WRITTEN_BY}")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise UserError(f"compressed run lengths {_short(counts)} cannot be decoded: {_WRITTEN_BY}")
    changes = np.add.reduceat((values & 31) << (5 * place), starts)
    changes -= ((values[ends] & 16) != 0) * (np.int64(1) << (5 * (place[ends] + 1)))  # sign extension
    runs = changes.copy()
    for parity in (1, 2):  # from the fourth on, each is the difference to the last but one
        runs[parity::2] = np.cumsum(changes[parity::2])
    if runs.min() < 0 or runs.sum() != pixels:
        raise UserError(f"run lengths that add up to {runs.sum()} pixels, not {pixels}: {_WRITTEN_BY}")


def _malformed(found: Any) -> UserError:
    return UserError(f"segmentation {_short(found)}; wanted: {_WANTED}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

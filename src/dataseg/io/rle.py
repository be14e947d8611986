"""Masks to COCO run lengths, several times faster than encoding them one by one with pycocotools, equal to the byte.

Legend: K = masks, H, W = rows, columns. Run lengths go down the columns, first column first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools import mask as mask_tools
from torch import Tensor

from dataseg.structures import UserError

CHUNK_BYTES = 1 << 21
"""Masks are taken in chunks of about this size, which stay in the processor's cache; at least one at a time."""


def encode_masks(masks_KHW: Tensor) -> list[dict[str, Any]]:
    """Compressed COCO RLEs (``{"size": [H, W], "counts": bytes}``) of bool masks ``[K, H, W]``.

    Only the pixels where a column changes its value are looked at one by one; on a GPU only these leave it.
    """
    if masks_KHW.ndim != 3 or masks_KHW.dtype != torch.bool:
        raise ValueError(f"encode_masks takes bool [K, H, W], got {masks_KHW.dtype} {list(masks_KHW.shape)}")
    _, rows, columns = masks_KHW.shape
    chunk = max(1, CHUNK_BYTES // max(1, (rows + 1) * columns))
    rles = [
        {"size": [rows, columns], "counts": runs.tolist()}
        for masks in torch.split(masks_KHW, chunk)
        for runs in _runs(masks, rows * columns)
    ]
    encoded: list[dict[str, Any]] = mask_tools.frPyObjects(rles, rows, columns) if rles else []
    return encoded


def _runs(masks: Tensor, pixels: int) -> Iterator[NDArray[np.int64]]:
    """Lengths of the runs of each mask, zeros first."""
    mask, place = _changes_on_cpu(masks) if masks.is_cpu else _changes_on_gpu(masks)
    key = np.sort(mask * (pixels + 1) + place)
    # A run that ends with its column and one that starts with the next column are one: both changes go.
    twice = key[1:] == key[:-1]
    single = np.ones(len(key), dtype=bool)
    single[1:] &= ~twice
    single[:-1] &= ~twice
    mask, place = np.divmod(key[single], pixels + 1)
    bounds = np.searchsorted(mask, np.arange(len(masks) + 1))
    for first, end in pairwise(bounds.tolist()):
        runs = np.diff(place[first:end], prepend=0, append=pixels)
        yield runs if len(runs) == 1 or runs[-1] else runs[:-1]


def _changes_on_cpu(masks: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mask and place in column order, ``0..H * W``, of each change down a column, its two ends included."""
    masks_KHW = masks.numpy().view(np.uint8)
    count, rows, columns = masks_KHW.shape
    size = count * (rows + 1) * columns
    padded = np.zeros(-(-size // 8) * 8, dtype=np.uint8)
    changed = padded[:size].reshape(count, rows + 1, columns)
    changed[:, 0] = masks_KHW[:, 0]
    np.bitwise_xor(masks_KHW[:, 1:], masks_KHW[:, :-1], out=changed[:, 1:-1])
    changed[:, -1] = masks_KHW[:, -1]
    words = padded.view(np.uint64)  # eight pixels at once: nearly all are unchanged
    occupied = np.flatnonzero(words != 0)
    word, byte = words[occupied].view(np.uint8).reshape(-1, 8).nonzero()
    mask, rest = np.divmod(occupied[word] * 8 + byte, (rows + 1) * columns)
    row, column = np.divmod(rest, columns)
    return mask, column * rows + row


def _changes_on_gpu(masks: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`_changes_on_cpu` for any device."""
    edge = masks.new_zeros(len(masks), 1, masks.shape[2])
    padded = torch.cat([edge, masks, edge], dim=1)
    mask, row, column = (padded[:, 1:] ^ padded[:, :-1]).nonzero(as_tuple=True)
    return mask.cpu().numpy(), (column * masks.shape[1] + row).cpu().numpy()


def rle_to_json(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE as result files hold it, its counts as text."""
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def rle_of(segmentation: Any, rows: int, columns: int) -> dict[str, Any] | None:
    """A COCO annotation's ``segmentation`` as compressed RLE, rasterised as pycocotools does; None if it gives no mask.

    Args:
        segmentation: polygons, plain or compressed run lengths; missing, empty or without counts = no mask.
        rows: of the image.
        columns: of the image.

    Raises:
        ValueError: malformed, or run lengths of another size.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        if not all(isinstance(p, list) and len(p) >= 4 and len(p) % 2 == 0 for p in segmentation):
            raise ValueError("polygons are lists of at least two x, y pairs each")
        if not np.isfinite(np.concatenate([np.asarray(p, dtype=float) for p in segmentation])).all():
            raise ValueError("a polygon has coordinates that are not finite numbers")
        polygons: dict[str, Any] = mask_tools.merge(mask_tools.frPyObjects(segmentation, rows, columns))
        return polygons
    if not isinstance(segmentation, dict):
        raise ValueError(f"neither polygons nor run lengths, but {type(segmentation).__name__}")
    if not segmentation.get("counts"):
        return None
    if list(segmentation.get("size", ())) != [rows, columns]:
        raise ValueError(f"run lengths of size {segmentation.get('size')} in an image of {rows} x {columns}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if min(counts) < 0 or sum(counts) != rows * columns:
            raise ValueError(f"run lengths that add up to {sum(counts)} pixels, not {rows * columns}")
        plain: dict[str, Any] = mask_tools.frPyObjects(segmentation, rows, columns)
        return plain
    return {"size": [rows, columns], "counts": counts.encode() if isinstance(counts, str) else bytes(counts)}


def to_rle(segmentation: Any, rows: int, columns: int) -> bytes:
    """Polygons, plain or compressed run lengths -> compressed run lengths; empty if no mask or no pixel is given.

    Raises:
        UserError: run lengths of another size.
    """
    if not segmentation:
        return b""
    if isinstance(segmentation, dict):
        if not segmentation.get("counts"):
            return b""
        if list(segmentation["size"]) != [rows, columns]:
            raise UserError(f"run lengths of size {segmentation['size']} in an image of {rows} x {columns}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if min(counts) < 0 or sum(counts) != rows * columns:
                raise UserError(f"run lengths that add up to {sum(counts)}, not {rows * columns}")
            return _unless_empty(coco_mask.frPyObjects(segmentation, rows, columns))
        compressed = counts.encode() if isinstance(counts, str) else bytes(counts)
        check_run_lengths(compressed, rows * columns)
        return _unless_empty({"size": [rows, columns], "counts": compressed})
    polygons = [p for p in segmentation if len(p) >= 6]
    if not polygons:
        return b""
    for polygon in polygons:
        if len(polygon) % 2 or not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
            raise UserError(f"a polygon of {len(polygon)} numbers, or with one that is not finite")
    return _unless_empty(coco_mask.merge(coco_mask.frPyObjects(polygons, rows, columns)))


def _unless_empty(rle: Any) -> bytes:
    return bytes(rle["counts"]) if coco_mask.area(rle) > 0 else b""


def check_run_lengths(counts: bytes, pixels: int) -> None:
    """Whether compressed run lengths can be decoded and cover the image; pycocotools would read past their end.

    Raises:
        UserError: they do not.
    """
    values = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((values & 32) == 0)
    if not len(ends) or ends[-1] != len(values) - 1 or values.min() < 0 or values.max() > 63:
        raise UserError("compressed run lengths that cannot be decoded")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise UserError("compressed run lengths that cannot be decoded")
    changes = np.add.reduceat((values & 31) << (5 * place), starts)
    changes -= ((values[ends] & 16) != 0) * (np.int64(1) << (5 * (place[ends] + 1)))  # sign extension
    runs = changes.copy()
    for parity in (1, 2):  # from the fourth on, each is the difference to the last but one
        runs[parity::2] = np.cumsum(changes[parity::2])
    if runs.min() < 0 or runs.sum() != pixels:
        raise UserError(f"run lengths that add up to {runs.sum()}, not {pixels}")

"""Mask logits at the image's original size, read by rows: masks of the whole image never exist at once.

Shape legend: ``Q`` = queries, ``h, w`` = rows and columns of the mask logits, ``H, W`` = rows and columns of the
original image, ``r, c`` = those of them that are read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from dataseg.structures.geometry import ImageGeometry

MAX_STRIP_ROWS = 64


class OriginalMasks:
    """Mask logits of one geometry at the original size, by rows.

    Equal to resizing to the padded input, cropping the padding and resizing to the original size, all bilinear:
    these act on rows and columns separately, and on rows they are one banded matrix. A window's own border is
    treated as an image's.

    Args:
        mask_logits_Qhw: float ``[Q, h, w]``.
        geometry: sizes.
    """

    def __init__(self, mask_logits_Qhw: Tensor, geometry: ImageGeometry) -> None:
        self.logits_Qhw = mask_logits_Qhw
        self.geometry = geometry
        identity_1hh = torch.eye(mask_logits_Qhw.shape[1], device=mask_logits_Qhw.device)[None]
        self._weights_rh = self._resize(identity_1hh, axis=0)[0].T.contiguous()
        # the taps of row y lie near y * h / H: look for them on the host, once
        self._first, self._last = _band(self._weights_rh)

    def __getitem__(self, rows: slice) -> Tensor:
        """Float32 ``[Q, r, c]`` of original ``rows``, which must be among the geometry's, and of all its columns."""
        start, stop = (row - self.geometry.rows.start for row in (rows.start, rows.stop))
        low, high = min(self._first[start:stop]), max(self._last[start:stop]) + 1
        with torch.autocast(device_type=self.logits_Qhw.device.type, enabled=False):
            strip_Qrw = torch.matmul(self._weights_rh[start:stop, low:high], self.logits_Qhw[:, low:high].float())
            strip_Qrc = self._resize(strip_Qrw[None], axis=1)[0]
        return strip_Qrc.flip(-1) if self.geometry.mirrored else strip_Qrc

    def _resize(self, values: Tensor, axis: int) -> Tensor:
        """Last dimension, ``[1, n, cells]`` or ``[1, Q, r, cells]``: from cells to an axis's seen original pixels."""
        geometry = self.geometry
        size, offset = geometry.size[axis], geometry.offset[axis]
        behind = (geometry.frame or geometry.size)[axis] - offset - size
        values = _interpolate(values, geometry.padded[axis])[..., :size]
        if offset or behind:  # what is outside the window repeats its border and is cut off again
            values = functional.pad(values, (offset, behind, 0, 0)[: 2 * values.ndim - 4], mode="replicate")
        start, stop = geometry.seen(axis)
        return _interpolate(values, geometry.output[axis])[..., start:stop]


def strip_rows(row_elements: int, strip_elements: int) -> int:
    """Rows of a strip, at least one: as many as fit the bound, if one has ``row_elements`` numbers."""
    return max(1, min(MAX_STRIP_ROWS, strip_elements // max(1, row_elements)))


def _interpolate(values: Tensor, length: int) -> Tensor:
    """Resize the last dimension linearly; ``[1, any, n]`` or ``[1, any, any, n]``."""
    if values.shape[-1] == length:
        return values
    if values.ndim == 3:
        return functional.interpolate(values, length, mode="linear")
    return functional.interpolate(values, (values.shape[2], length), mode="bilinear")


def _band(weights_rh: Tensor) -> tuple[list[int], list[int]]:
    """First and last cell with a weight, per row."""
    used_rh = weights_rh != 0
    first, last = used_rh.int().argmax(1), used_rh.shape[1] - 1 - used_rh.flip(1).int().argmax(1)
    return first.tolist(), last.tolist()


def strips(geometry: ImageGeometry, mask_logits_Qhw: Tensor, strip_elements: int) -> Iterator[tuple[slice, Tensor]]:
    """Mask logits at the original size, strip by strip: rows, and float32 ``[Q, r, c]`` of all visible columns.

    Args:
        mask_logits_Qhw: float ``[Q, h, w]``.
        strip_elements: bound on Q * r * W.
    """
    masks = OriginalMasks(mask_logits_Qhw, geometry)
    step = strip_rows(len(mask_logits_Qhw) * geometry.output[1], strip_elements)
    for start in range(geometry.rows.start, geometry.rows.stop, step):
        rows = slice(start, min(start + step, geometry.rows.stop))
        yield rows, masks[rows]

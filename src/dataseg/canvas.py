"""Mask logits at the image's original size, read by rows: masks of the whole image never exist at once.

Shape legend: ``Q`` = queries, ``h, w`` = rows and columns of the mask logits, ``H, W`` = rows and columns of the
original image, ``r, c`` = those of them that are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_STRIP_ROWS = 64


@dataclass(frozen=True)
class Canvas:
    """How an image came into the network, and the size its segments are wanted at; all (rows, columns) in pixels.

    The network's image is all of the evaluation image, or a window of it, and that as it is or mirrored.

    Attributes:
        padded: of the network's input.
        size: of the image in its top left corner.
        original: of the image on disk.
        frame: of the evaluation image that ``size`` is a window of; None = all of it.
        offset: of the window's first pixel in the frame.
        mirrored: the frame is the evaluation image with its columns reversed.
    """

    padded: tuple[int, int]
    size: tuple[int, int]
    original: tuple[int, int]
    frame: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)
    mirrored: bool = False

    @property
    def rows(self) -> slice:
        """Rows of the original image whose centres lie in the window."""
        return slice(*self.seen(0))

    @property
    def columns(self) -> slice:
        """Columns of the original image whose centres lie in the window."""
        start, stop = self.seen(1)
        return slice(self.original[1] - stop, self.original[1] - start) if self.mirrored else slice(start, stop)

    def seen(self, axis: int) -> tuple[int, int]:
        """First original pixel in the window and the first behind it; of the mirrored image if it is."""
        length, original = (self.frame or self.size)[axis], self.original[axis]
        ends = self.offset[axis], self.offset[axis] + self.size[axis]
        start, stop = (
            -((length - 2 * end * original) // (2 * length)) for end in ends
        )  # round(end / scale), half down
        return start, stop

    def strips(self, mask_logits_Qhw: Tensor, strip_elements: int) -> Iterator[tuple[slice, Tensor]]:
        """Mask logits at the original size, strip by strip: rows, and float32 ``[Q, r, c]`` of all `columns`.

        Args:
            mask_logits_Qhw: float ``[Q, h, w]``.
            strip_elements: bound on Q * r * W.
        """
        masks = OriginalMasks(mask_logits_Qhw, self)
        step = strip_rows(len(mask_logits_Qhw) * self.original[1], strip_elements)
        for start in range(self.rows.start, self.rows.stop, step):
            rows = slice(start, min(start + step, self.rows.stop))
            yield rows, masks[rows]


class OriginalMasks:
    """Mask logits of one canvas at the original size, by rows.

    Equal to resizing to the padded input, cropping the padding and resizing to the original size, all bilinear:
    these act on rows and columns separately, and on rows they are one banded matrix. A window's own border is
    treated as an image's.

    Args:
        mask_logits_Qhw: float ``[Q, h, w]``.
        canvas: sizes.
    """

    def __init__(self, mask_logits_Qhw: Tensor, canvas: Canvas) -> None:
        self.logits_Qhw = mask_logits_Qhw
        self.canvas = canvas
        identity_1hh = torch.eye(mask_logits_Qhw.shape[1], device=mask_logits_Qhw.device)[None]
        self._weights_rh = self._resize(identity_1hh, axis=0)[0].T.contiguous()
        # the taps of row y lie near y * h / H: look for them on the host, once
        self._first, self._last = _band(self._weights_rh)

    def __getitem__(self, rows: slice) -> Tensor:
        """Float32 ``[Q, r, c]`` of original ``rows``, which must be among the canvas's, and of all its columns."""
        start, stop = (row - self.canvas.rows.start for row in (rows.start, rows.stop))
        low, high = min(self._first[start:stop]), max(self._last[start:stop]) + 1
        with torch.autocast(device_type=self.logits_Qhw.device.type, enabled=False):
            strip_Qrw = torch.matmul(self._weights_rh[start:stop, low:high], self.logits_Qhw[:, low:high].float())
            strip_Qrc = self._resize(strip_Qrw[None], axis=1)[0]
        return strip_Qrc.flip(-1) if self.canvas.mirrored else strip_Qrc

    def _resize(self, values: Tensor, axis: int) -> Tensor:
        """Last dimension, ``[1, n, cells]`` or ``[1, Q, r, cells]``: from cells to an axis's seen original pixels."""
        canvas = self.canvas
        size, offset = canvas.size[axis], canvas.offset[axis]
        behind = (canvas.frame or canvas.size)[axis] - offset - size
        values = _interpolate(values, canvas.padded[axis])[..., :size]
        if offset or behind:  # what is outside the window repeats its border and is cut off again
            values = functional.pad(values, (offset, behind, 0, 0)[: 2 * values.ndim - 4], mode="replicate")
        start, stop = canvas.seen(axis)
        return _interpolate(values, canvas.original[axis])[..., start:stop]


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

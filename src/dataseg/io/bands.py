"""Images of many bands, of fractions or of more than 8 bits: which bands are seen, which values are black and white.

Shape legend: H, W = rows, columns; N = bands of the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray

from dataseg.structures import UserError

T = TypeVar("T")

TIFF_STARTS = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
"""First bytes of TIFF and BigTIFF files."""


@dataclass(frozen=True)
class Bands:
    """An explicit choice, where a file does not say how it is to be looked at.

    Args:
        select: bands of red, green and blue, or the one band of a grey picture, counted from 1.
        value_range: the value that becomes 0 and the one that becomes 255. Values beyond are cut off; NaN becomes 0.

    Raises:
        UserError: other than one or three bands, or no range.
    """

    select: Sequence[int]
    value_range: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.value_range
        if len(self.select) not in (1, 3) or min(self.select) < 1:
            raise UserError(f"bands: select is {list(self.select)}; wanted are one or three bands, counted from 1")
        if not (np.isfinite([low, high]).all() and low < high):
            raise UserError(f"bands: value_range is {low}, {high}; wanted are the darkest and the brightest value")

    def rgb(self, values: NDArray[Any], what: str) -> NDArray[np.uint8]:
        """``[H, W, N]`` of any type -> uint8 ``[H, W, 3]``.

        Raises:
            UserError: a band is selected that the file does not have; ``what`` names it.
        """
        if max(self.select) > values.shape[2]:
            raise UserError(f"{what} has {values.shape[2]} bands; bands.select is {list(self.select)}")
        low, high = self.value_range
        chosen = (values[..., [band - 1 for band in self.select]].astype(np.float32) - low) * (255 / (high - low))
        grey = np.rint(np.nan_to_num(chosen, nan=0.0).clip(0, 255)).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3)))


def is_tiff(content: bytes) -> bool:
    """Whether a file begins as TIFF and BigTIFF files do."""
    return content.startswith(TIFF_STARTS)


def tiff_size(content: bytes, what: str) -> tuple[int, int]:
    """(H, W) of a TIFF file's first image, pixels.

    Raises:
        UserError: it cannot be read; ``what`` names it.
    """
    return _with_tiff(content, what, lambda image: (image.sizes["height"], image.sizes["width"]))


def read_tiff(content: bytes, what: str) -> NDArray[Any]:
    """All bands of a TIFF file's first image, ``[H, W, N]``; pages of one size and type are bands.

    Raises:
        UserError: as `tiff_size`, or it has more than bands, rows and columns.
    """
    axes, values = _with_tiff(content, what, lambda image: (image.axes, image.asarray()))
    others = [axis for axis in range(len(axes)) if axes[axis] not in "YX"]
    if len(others) > 1:
        raise UserError(f"{what} has the axes {axes} of {list(values.shape)}; wanted are rows, columns and bands")
    return np.moveaxis(values, others[0], -1) if others else values[..., None]


def _with_tiff(content: bytes, what: str, use: Callable[[tifffile.TiffPageSeries], T]) -> T:
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            return use(file.series[0])
    except MemoryError:
        raise
    except Exception as error:  # of a damaged file, tifffile raises many types
        raise UserError(f"{what} is not a readable image ({error})") from error

"""Maps as runs of equal pixels: work on values then follows the number of runs, a hundredth of the pixels."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Runs(NamedTuple):
    """A map ``[H, W]`` as R runs of one value each, row after row.

    Attributes:
        values: of each run, ``[R]``, of the map's type.
        lengths: in pixels, int64 ``[R]``, positive.
        shape: (H, W).
    """

    values: NDArray[Any]
    lengths: NDArray[np.int64]
    shape: tuple[int, int]

    @classmethod
    def of(cls, map_HW: NDArray[Any]) -> Self:
        flat = map_HW.ravel()
        inner = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        starts = np.concatenate([np.zeros(min(1, len(flat)), dtype=np.int64), inner])
        return cls(flat[starts], np.diff(starts, append=len(flat)), (map_HW.shape[0], map_HW.shape[1]))

    def pixels(self, count: int) -> NDArray[np.int64]:
        """Pixels of each of the values ``0..count-1``, int64 ``[count]``, in a map that has no others but -1 (void)."""
        return np.bincount(self.values + 1, self.lengths, count + 1)[1:].astype(np.int64)

    def filled(self, values_R: NDArray[Any]) -> NDArray[Any]:
        """The map with other values, contiguous ``[H, W]``."""
        return np.repeat(values_R, self.lengths).reshape(self.shape)

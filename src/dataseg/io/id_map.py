"""Maps as runs of equal pixels: work on values then follows the number of runs, a hundredth of the pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from dataseg.io.images import MAX_LABELS
from dataseg.structures import VOID, UserError

UNKNOWN = VOID - 1
"""Of a table of labels: a value that no class has."""


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


def rows_of_colors(colors_HW: NDArray[np.uint32], ids_K: NDArray[np.int64]) -> NDArray[Any]:
    """Colour codes -> rows of ``ids_K``, ``[H, W]``, values ``0..K-1`` or `VOID` (colour 0).

    int16, or int32 for 32,768 ids and more. The highest byte of a code is ignored.

    Raises:
        UserError: a colour that is not among the ids.
    """
    runs = Runs.of(colors_HW)
    colors = runs.values & np.uint32((1 << 24) - 1)
    order = np.argsort(ids_K)
    known = np.concatenate([[0], ids_K[order]]).astype(np.uint32)  # colour 0 is void
    place = np.searchsorted(known[1:], colors, side="right")  # 0 where the colour is below all ids
    unknown = known[place] != colors
    if unknown.any():
        wrong = np.unique(colors[unknown]).tolist()
        raise UserError(f"the PNG has segment ids {wrong[:5]} that the JSON does not list ({len(wrong)} in all)")
    dtype = np.int16 if len(ids_K) < 1 << 15 else np.int32
    return runs.filled(np.concatenate([[VOID], order]).astype(dtype)[place])


class UnknownLabelError(ValueError):
    """Values of a label map that no class has, ascending."""

    def __init__(self, values: list[int]) -> None:
        self.values = values
        super().__init__(f"values {values}")


def label_table(
    index_of: Mapping[int, int], ignore: int | Sequence[int] = 0, rest: int | None = None
) -> NDArray[np.int32]:
    """Value of a label map -> label, `VOID` for ``ignore`` unless it is a class's; int32 ``[largest value + 1]``.

    Values that no class has are ``rest``, in a table of all values; None: `UNKNOWN`.
    """
    ignored = [ignore] if isinstance(ignore, int) else list(ignore)
    if rest is None:
        table = np.full(max([0, *index_of, *ignored]) + 1, UNKNOWN, dtype=np.int32)
    else:
        table = np.full(MAX_LABELS, rest, dtype=np.int32)
    table[ignored] = VOID
    for value, label in index_of.items():
        table[value] = label
    return table


def rows_of_labels(
    values_HW: NDArray[np.integer], table: NDArray[np.int32]
) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """A label map -> rows ``0..K-1`` or `VOID`, int16 ``[H, W]``, and the label of each row, int64 ``[K]``, ascending.

    Raises:
        UnknownLabelError: values without a class.
    """
    runs = Runs.of(values_HW)
    present = np.flatnonzero(np.bincount(runs.values, minlength=len(table)))
    unknown = present[(present >= len(table)) | (table[np.minimum(present, len(table) - 1)] == UNKNOWN)]
    if len(unknown):
        raise UnknownLabelError(unknown.tolist())
    labels = np.unique(table[present])
    labels = labels[labels != VOID]
    row_of = np.full(len(table), VOID, dtype=np.int16)
    known = present[table[present] != VOID]
    row_of[known] = np.searchsorted(labels, table[known])
    return runs.filled(row_of[runs.values]), labels.astype(np.int64)

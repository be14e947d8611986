"""The index of a data set: one row per image, a run of rows per image for its segments; NumPy columns only.

Workers share it copy-on-write: no Python object per record, so reference counts do not touch its pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataseg.structures import UserError


class Packed:
    """A column of byte strings of any length, in one buffer."""

    def __init__(self, values: Iterable[bytes]) -> None:
        values = list(values)
        self._ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(values), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._buffer[self._ends[index] : self._ends[index + 1]].tobytes()


class ImageRow(NamedTuple):
    """What the annotation file says of one image; ``size`` is (H, W)."""

    id: str
    file_name: str
    size: tuple[int, int]
    labels_name: str


class Index:
    """Images and their segments.

    Args:
        ids: image ids, as text.
        file_names: image files.
        sizes: int32 ``[N, 2]``, (H, W).
        rows: int64 ``[N]``, how many segments each image has.
        columns: per-segment columns, each with ``rows.sum()`` entries, grouped by image in the order of ``ids``.
        labels_names: label files (panoptic PNGs), where there are any.
    """

    def __init__(
        self,
        ids: Sequence[str],
        file_names: Sequence[str],
        sizes: NDArray[np.int32],
        rows: NDArray[np.int64],
        columns: Mapping[str, NDArray[Any] | Packed],
        labels_names: Sequence[str] | None = None,
    ) -> None:
        self._ids = Packed(str(i).encode() for i in ids)
        self._file_names = Packed(name.encode() for name in file_names)
        self._labels_names = None if labels_names is None else Packed(name.encode() for name in labels_names)
        self._sizes = sizes
        self._ends = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self._columns = dict(columns)
        if not len(self._ids) == len(self._file_names) == len(sizes) == len(rows):
            raise UserError("index columns of unequal length")
        for name, column in columns.items():
            if len(column) != self._ends[-1]:
                raise UserError(f"index: {self._ends[-1]} segments but {len(column)} entries in {name!r}")

    def __len__(self) -> int:
        return len(self._ids)

    def image(self, index: int) -> ImageRow:
        labels_name = "" if self._labels_names is None else self._labels_names[index].decode()
        rows, columns = self._sizes[index]
        return ImageRow(
            self._ids[index].decode(), self._file_names[index].decode(), (int(rows), int(columns)), labels_name
        )

    def column(self, index: int, name: str) -> NDArray[Any]:
        """One numeric column's entries for one image."""
        column = self._columns[name]
        if isinstance(column, Packed):
            raise TypeError(f"column {name!r} holds bytes")
        return column[self._ends[index] : self._ends[index + 1]]

    def packed(self, index: int, name: str) -> list[bytes]:
        """One bytes column's entries for one image."""
        column = self._columns[name]
        if not isinstance(column, Packed):
            raise TypeError(f"column {name!r} holds numbers")
        return [column[row] for row in range(self._ends[index], self._ends[index + 1])]

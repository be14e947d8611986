"""The index of a dataset: one row per image, a list per image for each property of its segments, as an Arrow table.

Read through NumPy views of the Arrow buffers: no Python object per record. A table on disk is mapped into memory, so
every loading process and every rank of a machine shares one copy. Kept by hand: no library groups 25 million boxes by
image in memory that loading processes share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataseg.structures import UserError

BLOCK = 16_384
"""Images of one record batch."""


class Packed:
    """A column of byte strings of any length, in one buffer.

    Args:
        ends: int64 ``[N + 1]``, where entry n ends and n + 1 begins.
        buffer: uint8.
    """

    def __init__(self, ends: NDArray[np.int64], buffer: NDArray[np.uint8]) -> None:
        self._ends, self._buffer = ends, buffer

    @classmethod
    def of(cls, values: Iterable[bytes]) -> Self:
        values = list(values)
        ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(values), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._buffer[self._ends[index] : self._ends[index + 1]].tobytes()

    def arrow(self, start: int, end: int) -> pa.LargeBinaryArray:
        """Entries ``start`` to ``end`` as an Arrow column."""
        ends = self._ends[start : end + 1]
        data = self._buffer[ends[0] : ends[-1]]
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            end - start,
            [None, pa.py_buffer(ends - ends[0]), pa.py_buffer(np.ascontiguousarray(data))],
        )


class PackedBuilder:
    """Grows a `Packed` without an object per entry."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lengths: list[NDArray[np.int64]] = []

    def extend(self, values: Sequence[bytes]) -> None:
        self._buffer += b"".join(values)
        self._lengths.append(np.fromiter(map(len, values), dtype=np.int64, count=len(values)))

    def finish(self) -> Packed:
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._lengths])
        return Packed(np.cumsum(lengths), np.frombuffer(self._buffer, dtype=np.uint8))


class ImageRow(NamedTuple):
    """What the annotation file says of one image; ``size`` is (H, W)."""

    id: str
    file_name: str
    size: tuple[int, int]
    labels_name: str


def image_batch(
    ids: Packed | Sequence[bytes],
    file_names: Packed | Sequence[bytes],
    sizes: NDArray[np.int32],
    rows: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any] | Sequence[bytes]],
    labels_names: Sequence[bytes] | None = None,
) -> pa.RecordBatch:
    """Some images and their segments as a part of the table.

    Args:
        ids: image ids as UTF-8 text; N of them.
        file_names: image files.
        sizes: int32 ``[N, 2]``, (H, W).
        rows: ``[N]``, how many segments each image has.
        columns: per segment: numbers ``[rows.sum()]``, boxes ``[rows.sum(), 4]`` or bytes; grouped by image.
        labels_names: label files (panoptic PNGs), where there are any.
    """
    ends = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    fields: dict[str, pa.Array] = {
        "id": _bytes(ids),
        "file_name": _bytes(file_names),
        "height": pa.array(sizes[:, 0]),
        "width": pa.array(sizes[:, 1]),
    }
    if labels_names is not None:
        fields["labels_name"] = _bytes(labels_names)
    for name, column in columns.items():
        if len(column) != ends[-1]:
            raise UserError(f"index: {ends[-1]} segments but {len(column)} entries in {name!r}")
        fields[f"segment_{name}"] = pa.LargeListArray.from_arrays(ends, _values(column))
    return pa.RecordBatch.from_arrays(list(fields.values()), names=list(fields))


def _bytes(values: Packed | Sequence[bytes]) -> pa.LargeBinaryArray:
    packed = values if isinstance(values, Packed) else Packed.of(values)
    return packed.arrow(0, len(packed))


def _values(column: NDArray[Any] | Sequence[bytes]) -> pa.Array:
    if not isinstance(column, np.ndarray):
        return _bytes(column)
    if column.dtype == np.bool_:  # Arrow packs truth values into bits, which NumPy cannot view
        column = column.view(np.uint8)
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    return flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


class _Part:
    """NumPy views of one record batch's buffers."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.ids = _packed(batch.column("id"))
        self.file_names = _packed(batch.column("file_name"))
        names = batch.schema.names
        self.labels_names = _packed(batch.column("labels_name")) if "labels_name" in names else None
        self.heights, self.widths = (batch.column(name).to_numpy() for name in ("height", "width"))
        self.ends = np.zeros(len(batch) + 1, dtype=np.int64)
        self.columns: dict[str, NDArray[Any] | Packed] = {}
        for name in names:
            if name.startswith("segment_"):
                column = batch.column(name)
                self.ends = column.offsets.to_numpy()
                self.columns[name.removeprefix("segment_")] = _view(column.values, name == "segment_is_crowd")

    def fingerprints(self) -> NDArray[np.uint32]:
        """See `Index.fingerprints`."""
        names = [crc32(self.ids[k] + b" " + self.file_names[k]) for k in range(len(self.heights))]
        found = np.array(names, dtype=np.uint64)
        found += 3 * self.heights.astype(np.uint64) + 5 * self.widths.astype(np.uint64)
        for number, column in enumerate(self.columns.values(), 1):
            if isinstance(column, np.ndarray):
                rows = column.reshape(len(column), -1).astype(np.float32).view(np.uint32).astype(np.uint64)
                factors = (2 * np.arange(rows.shape[1], dtype=np.uint64) + 1) * np.uint64(2654435761 * number)
                sums = np.zeros(len(rows) + 1, dtype=np.uint64)
                np.cumsum((rows * factors).sum(axis=1, dtype=np.uint64), out=sums[1:])
                found += sums[self.ends[1:]] - sums[self.ends[:-1]]
        return (found ^ (found >> np.uint64(32))).astype(np.uint32)


def _packed(column: pa.LargeBinaryArray) -> Packed:
    _, ends, data = column.buffers()
    buffer = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return Packed(np.frombuffer(ends, dtype=np.int64)[: len(column) + 1], buffer)


def _view(values: pa.Array, is_truth: bool) -> NDArray[Any] | Packed:
    if pa.types.is_large_binary(values.type):
        return _packed(values)
    if pa.types.is_fixed_size_list(values.type):
        numbers: NDArray[Any] = values.values.to_numpy()
        return numbers.reshape(-1, values.type.list_size)
    numbers = values.to_numpy()
    return numbers.view(np.bool_) if is_truth else numbers


class Index:
    """Images and their segments.

    Args:
        batches: parts of the table, from `image_batch`.
        path: file they are mapped from; None = they are in memory.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], path: Path | None = None) -> None:
        self._batches, self.path = list(batches), path
        self._parts = [_Part(batch) for batch in self._batches]
        self._starts = [0, *accumulate(len(batch) for batch in self._batches)]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file of record batches into memory."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return cls([reader.get_batch(i) for i in range(reader.num_record_batches)], path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).open, (self.path,)) if self.path else (type(self), (self._batches,))

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[_Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = bisect_right(self._starts, index) - 1
        return self._parts[part], index - self._starts[part]

    def where(self, kept: NDArray[np.bool_]) -> Index:
        """The index of some of the images, ``[N]``, in memory."""
        batches = zip(self._batches, pairwise(self._starts), strict=True)
        return Index([batch.filter(pa.array(kept[start:end])) for batch, (start, end) in batches])

    def image(self, index: int) -> ImageRow:
        part, row = self._find(index)
        labels_name = "" if part.labels_names is None else part.labels_names[row].decode()
        size = (int(part.heights[row]), int(part.widths[row]))
        return ImageRow(part.ids[row].decode(), part.file_names[row].decode(), size, labels_name)

    def column(self, index: int, name: str) -> NDArray[Any]:
        """One numeric column's entries for one image; not writable."""
        part, row = self._find(index)
        column = part.columns[name]
        if isinstance(column, Packed):
            raise TypeError(f"column {name!r} holds bytes")
        return column[part.ends[row] : part.ends[row + 1]]

    def packed(self, index: int, name: str) -> list[bytes]:
        """One bytes column's entries for one image."""
        part, row = self._find(index)
        column = part.columns[name]
        if not isinstance(column, Packed):
            raise TypeError(f"column {name!r} holds numbers")
        return [column[k] for k in range(part.ends[row], part.ends[row + 1])]

    def has(self, name: str) -> bool:
        """Whether there is a numeric column of this name."""
        return bool(self._parts) and isinstance(self._parts[0].columns.get(name), np.ndarray)

    def fingerprints(self) -> NDArray[np.uint32]:
        """A number of each image, ``[N]``, that depends on its names, its size and its segments' numbers."""
        return np.concatenate([part.fingerprints() for part in self._parts])

    def lengths(self) -> NDArray[np.int64]:
        """How many segments each image has, ``[N]``."""
        return np.concatenate([np.diff(part.ends) for part in self._parts])

    def all(self, name: str) -> NDArray[Any]:
        """A numeric column's entries for all images, in order."""
        found = [column for part in self._parts if isinstance(column := part.columns[name], np.ndarray)]
        return np.concatenate(found) if found else np.zeros(0)

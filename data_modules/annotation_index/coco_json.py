"""COCO-style detection JSON (images, annotations with boxes and perhaps masks) into the parts of an index.

The file is read as a stream. What is kept on the way are columns of numbers: 25 million boxes take 0.7 GB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_modules.annotation_index.box_forms import other_form
from data_modules.annotation_index.build import Counts
from data_modules.annotation_index.problems import MISTAKES, OnProblem, raise_problem, reason_of
from data_modules.annotation_index.records import Advance, stream_records
from data_modules.annotation_index.table import BLOCK, Packed, PackedBuilder, image_batch
from dataseg.io.coco import area_of, box_of, crowd_of, id_of
from dataseg.io.images import size_of_record
from dataseg.io.rle import RLE
from dataseg.structures import VOID, UserError

MIN_SIDE = 1.0
"""Boxes narrower or lower than this many pixels, once clipped to the image, are dropped as degenerate."""

RECORD = np.dtype([("image", "i4"), ("label", "i2"), ("xyxy", "f4", (4,)), ("is_crowd", "?")])
"""One annotation: row of its image, label, box, crowd or not."""
RECORD_WITH_AREA = np.dtype([*RECORD.descr, ("area", "f4")])

SKIPPED = -1
_STEP = 1 << 20

ReadMask = Callable[[Any, int, int, Counts], RLE | None]
"""(segmentation, rows, columns, counts of what is left out) -> mask; `dataseg.io.rle.mask_of`."""


class RowOf:
    """The file's own image ids -> rows. Whole numbers, once all are known, take 12 bytes each instead of 110."""

    def __init__(self) -> None:
        self._rows: dict[Any, int] = {}
        self._keys: NDArray[np.int64] | None = None
        self._values = np.zeros(0, dtype=np.int32)

    def __contains__(self, number: Any) -> bool:
        return number in self._rows

    def __setitem__(self, number: Any, row: int) -> None:
        self._rows[number] = row

    def freeze(self) -> None:
        """To be called when all are known."""
        if all(type(number) is int and abs(number) < 1 << 62 for number in self._rows):
            keys = np.fromiter(self._rows, dtype=np.int64, count=len(self._rows))
            values = np.fromiter(self._rows.values(), dtype=np.int32, count=len(self._rows))
            order = np.argsort(keys)
            self._keys, self._values, self._rows = keys[order], values[order], {}

    def __getitem__(self, number: Any) -> int:
        if self._keys is None:
            return self._rows[number]
        if not isinstance(number, int | float):
            raise KeyError(number)
        at = int(np.searchsorted(self._keys, number))
        if at == len(self._keys) or self._keys[at] != number:
            raise KeyError(number)
        return int(self._values[at])

    def all(self, numbers: list[Any]) -> NDArray[np.int32]:
        """Rows of many."""
        if self._keys is None:
            return np.array([self._rows[number] for number in numbers], dtype=np.int32)
        wanted = np.array(numbers)
        if wanted.dtype != np.int64:
            raise TypeError("ids that are no whole numbers")
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        if (self._keys[at] != wanted).any():
            raise KeyError("an id that no image has")
        return self._values[at]


class ImageTable:
    """The ``images`` list of a COCO-style JSON, by column.

    Args:
        skip: images to leave out, by the last two components of their file name.

    Attributes:
        ids, file_names: UTF-8 text; N of them.
        sizes: int32 ``[N, 2]``, (H, W).
        row_of: the file's own id -> row, or `SKIPPED`.
        skipped: how many were left out.
    """

    def __init__(self, path: Path, skip: frozenset[str], on_problem: OnProblem) -> None:
        ids, file_names = PackedBuilder(), PackedBuilder()
        sizes: list[NDArray[np.int32]] = []
        self.row_of = RowOf()
        self.skipped = count = 0
        for first, batch in stream_records(path, "images"):
            kept: list[tuple[bytes, bytes, tuple[int, int]]] = []
            for position, record in enumerate(batch, first):
                try:
                    number, name = id_of(record["id"]), record["file_name"]
                    skipped = "/".join(name.split("/")[-2:]) in skip
                    entry = str(number).encode(), name.encode(), size_of_record(record)
                    if number in self.row_of:
                        raise UserError(f"two images have the same id {number!r}")
                except MISTAKES as error:
                    on_problem(f"{path}: list of images: image {position}: {reason_of(error, record)}")
                    continue
                self.row_of[number] = SKIPPED if skipped else count + len(kept)
                self.skipped += skipped
                if not skipped:
                    kept.append(entry)
            ids.extend([i for i, _, _ in kept])
            file_names.extend([name for _, name, _ in kept])
            sizes.append(np.array([size for _, _, size in kept], dtype=np.int32).reshape(-1, 2))
            count += len(kept)
        if not count:
            raise UserError(f"{path}: holds no image")
        self.row_of.freeze()
        self.ids, self.file_names, self.sizes = ids.finish(), file_names.finish(), np.concatenate(sizes)

    def __len__(self) -> int:
        return len(self.sizes)


class _Rows:
    """A growing array. It grows in place by steps: doubling would take twice the memory."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._data = np.empty(0, dtype=dtype)
        self._used = 0

    def append(self, rows: NDArray[Any]) -> None:
        needed = self._used + len(rows)
        if needed > len(self._data):
            self._data.resize(needed + min(_STEP, needed), refcheck=False)
        self._data[self._used : needed] = rows
        self._used = needed

    @property
    def array(self) -> NDArray[Any]:
        return self._data[: self._used]


class AnnotationTable:
    """The ``annotations`` list of a COCO-style JSON, in file order, by column.

    Args:
        label_of: ``category_id`` -> label.
        read_mask: reads masks; None = boxes alone are wanted.
        train_crowds: crowds are objects like the others.

    Attributes:
        rows: `RECORD`, or with masks `RECORD_WITH_AREA`; those of skipped images are left out.
        rles: one entry a row, if masks are wanted.
        per_image: int64 ``[N]``, number of rows of each image.
        without_pixel: annotations, crowds aside, that state a mask without any pixel in the image.
        left_out: parts of masks.
    """

    def __init__(
        self,
        path: Path,
        images: ImageTable,
        label_of: Mapping[int, int],
        read_mask: ReadMask | None,
        advance: Advance,
        on_problem: OnProblem,
        train_crowds: bool = False,
    ) -> None:
        self._path, self._images, self._label_of, self._read_mask = path, images, label_of, read_mask
        self._crowd_of = (lambda record: False) if train_crowds else crowd_of
        rows = _Rows(RECORD if read_mask is None else RECORD_WITH_AREA)
        rles = PackedBuilder()
        self.per_image = np.zeros(len(images), dtype=np.int64)
        self.without_pixel = 0
        self.left_out: Counts = {}
        for first, batch in stream_records(path, "annotations", advance=advance):
            found = self._at_once(batch) if read_mask is None else None
            if found is None:
                found, masks = self._one_by_one(first, batch, on_problem)
                rles.extend(masks)
            rows.append(found)
            np.add.at(self.per_image, found["image"], 1)
        self.rows, self.rles = rows.array, rles.finish()

    def _at_once(self, batch: list[Any]) -> NDArray[Any] | None:
        """Column by column; None if something is wrong with any of the records."""
        rows = np.empty(len(batch), dtype=RECORD)
        label_of = self._label_of
        try:
            rows["image"] = self._images.row_of.all([record["image_id"] for record in batch])
            rows["label"] = [label_of[record["category_id"]] for record in batch]
            rows["is_crowd"] = [self._crowd_of(record) for record in batch]
            boxes = np.array([record["bbox"] for record in batch], dtype=np.float64)
            boxes[:, 2:] += boxes[:, :2]
            with np.errstate(over="ignore"):
                rows["xyxy"] = boxes
        except MISTAKES:
            return None
        if not np.isfinite(rows["xyxy"]).all():
            return None
        return rows[rows["image"] != SKIPPED] if self._images.skipped else rows

    def _one_by_one(self, first: int, batch: list[Any], on_problem: OnProblem) -> tuple[NDArray[Any], list[bytes]]:
        rows = np.empty(len(batch), dtype=RECORD if self._read_mask is None else RECORD_WITH_AREA)
        rles: list[bytes] = []
        used = 0
        for position, record in enumerate(batch, first):
            try:
                if self._row(record["image_id"]) == SKIPPED:
                    continue
                mask = self._fill(rows[used : used + 1], record)
            except MISTAKES as error:
                number = f" (id {record.get('id')})" if isinstance(record, dict) else ""
                on_problem(f"{self._path}: annotation {position}{number}: {reason_of(error, record)}")
                continue
            if self._read_mask is not None:
                rles.append(mask)
                if record.get("id") == 0:
                    on_problem(f"{self._path}: annotation {position} {_ID_0}", benign=True)
            used += 1
        return rows[:used], rles

    def _row(self, number: Any) -> int:
        try:
            return self._images.row_of[id_of(number)]
        except KeyError:
            raise UserError(f"its image_id {number!r} is the id of no image in the file") from None

    def _label(self, category: Any) -> int:
        try:
            return self._label_of[id_of(category)]
        except KeyError:
            known = ", ".join(map(str, self._label_of))
            raise UserError(
                f"its category_id {category!r} is not in the vocabulary, which has {known:.200}: add it, or leave"
                " others out with rest: background"
            ) from None

    def _fill(self, row: NDArray[Any], record: dict[str, Any]) -> bytes:
        """Fill one row; the counts of its mask, empty if there is none."""
        row["image"] = self._row(record["image_id"])
        rle = None
        if self._read_mask is not None:
            size = self._images.sizes[row["image"][0]]
            rle = self._read_mask(record.get("segmentation"), int(size[0]), int(size[1]), self.left_out)
        x, y, width, height = box_of(record, rle)
        row["label"] = self._label(record["category_id"])
        row["is_crowd"] = self._crowd_of(record)
        with np.errstate(over="ignore"):
            row["xyxy"] = x, y, x + width, y + height
        if not np.isfinite(row["xyxy"]).all():
            raise UserError("its box is not finite")
        if self._read_mask is not None:
            with np.errstate(over="ignore"):
                row["area"] = area_of(record, rle, width * height)
            if not np.isfinite(row["area"]).all():
                raise UserError("its area is not finite")
        if rle is None:
            states_mask = self._read_mask is not None and bool(record.get("segmentation"))
            self.without_pixel += states_mask and not row["is_crowd"][0]
            return b""
        return bytes(rle["counts"])

    def by_image(self) -> NDArray[np.int32]:
        """Positions in ``rows``, grouped by image and in file order within an image (a counting sort)."""
        following = np.cumsum(self.per_image) - self.per_image  # where the next row of each image goes
        order = np.empty(len(self.rows), dtype=np.int32)
        for start in range(0, len(self.rows), _STEP):
            image = self.rows["image"][start : start + _STEP]
            local = np.argsort(image, kind="stable")
            image = image[local]
            heads = np.flatnonzero(np.concatenate([[True], image[1:] != image[:-1]])) if len(image) else local
            lengths = np.diff(heads, append=len(image))
            rank = np.arange(len(image)) - np.repeat(heads, lengths)
            order[following[image] + rank] = start + local
            following[image[heads]] += lengths
        return order


def detection_batches(
    path: Path,
    label_of: Mapping[int, int],
    skip: frozenset[str],
    read_mask: ReadMask | None,
    counts: Counts,
    advance: Advance,
    on_problem: OnProblem,
    keep_rest: bool = False,
    train_crowds: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Read an annotation file.

    Boxes alone are cleaned (`clean_boxes`); annotations with masks stay as they are.

    Args:
        label_of: ``category_id`` -> label.
        skip: images to leave out, by the last two components of their file name.
        read_mask: reads masks; None = boxes alone are wanted.
        counts: what was dropped is added.
        keep_rest: keep what ``label_of`` gives as `VOID`.
        train_crowds: crowds are objects like the others.

    Raises:
        UserError: a malformed record; names file and record (unless ``on_problem`` says otherwise).
    """
    images = ImageTable(path, skip, on_problem)
    counts["skipped_images"] = images.skipped
    table = AnnotationTable(path, images, label_of, read_mask, advance, on_problem, train_crowds)
    counts |= table.left_out
    images.row_of = RowOf()  # no longer needed, and large
    order = table.by_image()
    ends = np.concatenate([[0], np.cumsum(table.per_image)])
    lost = table.without_pixel
    _compare_form(path, table.rows[:_STEP], images.sizes, on_problem)
    for start in range(0, len(images), BLOCK):
        end = min(start + BLOCK, len(images))
        chosen = order[ends[start] : ends[end]]
        if not keep_rest and (others := table.rows["label"][chosen] == VOID).any():
            counts["of_other_classes"] = counts.get("of_other_classes", 0) + int(others.sum())
            chosen = chosen[~others]
        block = table.rows[chosen]
        block["image"] -= start
        sizes = images.sizes[start:end]
        columns: dict[str, NDArray[Any] | list[bytes]] = {}
        if read_mask is None:
            kept, dropped = clean_boxes(block, sizes)
            if on_problem is not raise_problem:
                _name_dropped(path, images, start, block, kept, on_problem)
            lost += dropped["degenerate_boxes"]
            block = kept
            names = ["xyxy", "label"]
        else:
            masks = [table.rles[k] for k in chosen]
            dropped = {"without_mask": sum(not rle for rle in masks)}
            columns["rle"] = masks
            names = ["xyxy", "label", "is_crowd", "area"]
        for what, count in dropped.items():
            counts[what] = counts.get(what, 0) + count
        columns |= {name: np.ascontiguousarray(block[name]) for name in names}
        rows = np.bincount(block["image"], minlength=end - start)
        yield image_batch(_part(images.ids, start, end), _part(images.file_names, start, end), sizes, rows, columns)
    total = int((~table.rows["is_crowd"]).sum())
    if 2 * lost > total:  # the file was misread, whatever its single records look like
        what = (
            f"have boxes less than {MIN_SIDE:g} pixel wide or high within their image: are they [x, y, width, height]"
            " in pixels, and do the image sizes agree?"
            if read_mask is None
            else "state a mask without any pixel in the image: are its coordinates x, y in pixels?"
        )
        on_problem(f"{path}: {lost} of {total} annotations {what}")


def _compare_form(path: Path, rows: NDArray[Any], sizes: NDArray[np.int32], on_problem: OnProblem) -> None:
    xyxy = rows["xyxy"][~rows["is_crowd"]]
    xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    if form := other_form(xywh, sizes[rows["image"][~rows["is_crowd"]]]):
        found = np.round(xywh[0].astype(np.float64), 3).tolist()
        on_problem(
            f"{path}: wanted are boxes [x, y, width, height] in pixels of their images; bbox {found} and the others"
            f" {form}"
        )


def _part(column: Packed, start: int, end: int) -> list[bytes]:
    return [column[k] for k in range(start, end)]


def _name_dropped(
    path: Path, images: ImageTable, start: int, rows: NDArray[Any], kept: NDArray[Any], on_problem: OnProblem
) -> None:
    """Say which boxes were clipped or dropped; crowds are meant to be."""
    left = Counter(row.tobytes() for row in kept)
    for row in rows:
        key = row.tobytes()
        if row["is_crowd"]:
            continue
        if left[key]:
            left[key] -= 1
            continue
        number = start + int(row["image"])
        box = np.round(row["xyxy"].astype(np.float64), 2).tolist()
        height, width = images.sizes[number].tolist()
        inside = np.clip(row["xyxy"], 0, [width, height, width, height])
        if (inside[2:] - inside[:2] < MIN_SIDE).any():
            what = "is empty or lies outside"
        else:
            what = "stands there twice" if np.abs(inside - row["xyxy"]).max() <= 0.01 else "reaches out of it"
        name = images.ids[number].decode()
        on_problem(
            f"{path}: image {name} ({width} x {height}): box {box} (xyxy) of label {row['label']} {what}", benign=True
        )


def clean_boxes(table: NDArray[np.void], sizes: NDArray[np.int32]) -> tuple[NDArray[np.void], dict[str, int]]:
    """Clip to the image, then drop crowds, degenerate boxes and exact duplicates (same image, class and box).

    Returns:
        the records that stay, in order, and how many boxes were ``clipped``, ``crowd``, ``degenerate``, ``duplicate``.
    """
    table = table.copy()
    columns_rows = sizes[table["image"]][:, [1, 0, 1, 0]].astype(np.float32)
    clipped = np.clip(table["xyxy"], 0, columns_rows)
    moved = (np.abs(clipped - table["xyxy"]) > 0.01).any(axis=1)  # less is rounding in the file
    table["xyxy"] = clipped
    solid = (clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE).all(axis=1)
    crowd = table["is_crowd"]
    keys = [table["image"], table["label"], *(clipped + np.float32(0)).view(np.int32).reshape(-1, 4).T]
    first = np.zeros(len(table), dtype=bool)
    if len(table):
        order = np.lexsort(keys)
        new = np.zeros(len(table), dtype=bool)
        new[0] = True
        for key in keys:
            new[1:] |= key[order][1:] != key[order][:-1]
        first[np.minimum.reduceat(order, np.flatnonzero(new))] = True
    counts = {
        "clipped_boxes": int((moved & solid & ~crowd).sum()),
        "crowd_boxes": int(crowd.sum()),
        "degenerate_boxes": int((~solid & ~crowd).sum()),
        "duplicate_boxes": int((~first & solid & ~crowd).sum()),
    }
    return table[solid & ~crowd & first], counts


_ID_0 = (
    "has the id 0: pycocotools never matches it, so its AP of the same predictions is lower than that of metrics.json"
    " and `dataseg score`, which count it like any other; number annotations from 1 to get the same from both"
)

"""COCO panoptic format: a JSON with ``segments_info`` and one RGB-coded PNG an image. Base of all panoptic readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.formats.base import ImageArray, IndexedReader, TaskName
from data_modules.formats.files import inside, read_image, read_json, read_rgb_ids, records, stated_size
from data_modules.formats.index import Index
from dataseg.structures import VOID, SegmentMap, Target, Task, UserError

_COLORS = 1 << 24


class PanopticReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    Attributes:
        id_offset: official id of a class minus ``category_id`` in the JSON.
        areas: "stored": segments and areas as the JSON states them, which is what published panoptic quality uses;
            "recounted": areas counted in the PNG, segments without a pixel left out. They differ only where the
            JSON was made carelessly (ADE).
    """

    gives = "map"
    default_tasks = (Task.PANOPTIC,)
    id_offset: ClassVar[int] = 0

    def __init__(
        self,
        vocabulary: str,
        tasks: list[TaskName] | None,
        names: vocabularies.Names,
        areas: Literal["stored", "recounted"] = "stored",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.areas = areas
        self._images = Path()
        self._labels = Path()

    def _read(self, annotations: Path, images: Path, labels: Path, label_of: Mapping[int, int] | None = None) -> None:
        """Index the JSON; ``label_of`` stands in for the vocabulary's ids less `id_offset`."""
        self._images, self._labels = images, labels
        usual = {number - self.id_offset: label for number, label in self.vocabulary.index_of.items()}
        self._index = read_panoptic_index(annotations, label_of or usual)

    def image_path(self, file_name: str) -> Path:
        return inside(self._images, file_name)

    def load(self, index: int) -> tuple[ImageArray, Target]:
        row = self.index.image(index)
        image = read_image(self.image_path(row.file_name), self.title, row.size)
        labels_path = inside(self._labels, row.labels_name)
        colors = read_rgb_ids(labels_path, self.title, row.size)
        ids = self.index.column(index, "id")
        try:
            rows_HW = rows_of_colors(colors, ids)
        except ValueError as error:
            raise UserError(f"{self.title}: {labels_path}: {error} (image {row.id})") from error
        return image, self._target(rows_HW, index)

    def _target(self, rows_HW: NDArray[np.int16], index: int) -> SegmentMap:
        labels = torch.from_numpy(self.index.column(index, "label").astype(np.int64))
        target = SegmentMap(
            ids=torch.from_numpy(rows_HW),
            labels=labels,
            is_crowd=torch.from_numpy(self.index.column(index, "is_crowd").copy()),
            areas=torch.from_numpy(self.index.column(index, "area").astype(np.int64)),
        )
        return target if self.areas == "stored" else recount_areas(target)


def rows_of_colors(colors_HW: NDArray[np.uint32], ids_K: NDArray[np.int64]) -> NDArray[np.int16]:
    """Colour codes -> rows of ``ids_K``, int16 ``[H, W]``, values ``0..K-1`` or `VOID` (colour 0).

    Raises:
        UserError: a colour that is not among the ids.
    """
    # A table over all colours: only the few pages that hold these ids are ever touched, so making it is nearly free.
    table = np.zeros(_COLORS, dtype=np.int16)  # 0 = unknown, 1 = void, k + 2 = row k
    table[0] = 1
    table[ids_K] = np.arange(2, len(ids_K) + 2, dtype=np.int16)
    rows = np.take(table, colors_HW)
    if not rows.all():
        unknown = sorted({int(c) for c in np.unique(colors_HW[rows == 0])})
        raise UserError(f"the PNG has segment ids {unknown[:5]} that the JSON does not list ({len(unknown)} in all)")
    rows -= 2 - (VOID + 1)
    return rows


def recount_areas(target: SegmentMap) -> SegmentMap:
    """Areas counted in the map; segments without a pixel left out."""
    ids = target.ids.numpy()
    areas = np.bincount((ids.ravel() + 1).astype(np.int64), minlength=len(target) + 1)[1:]
    kept = np.flatnonzero(areas)
    table = np.full(len(target) + 1, VOID, dtype=ids.dtype)
    table[kept] = np.arange(len(kept))
    return SegmentMap(
        ids=torch.from_numpy(table[ids]),  # VOID = -1 indexes the last entry
        labels=target.labels[kept],
        is_crowd=None if target.is_crowd is None else target.is_crowd[kept],
        areas=torch.from_numpy(areas[kept]),
    )


def read_panoptic_index(path: Path, label_of: Mapping[int, int]) -> Index:
    """Index of a panoptic JSON.

    Args:
        label_of: ``category_id`` -> label.

    Raises:
        UserError: a malformed record; names file and record.
    """
    content = read_json(path)
    ids: list[str] = []
    file_names: list[str] = []
    labels_names: list[str] = []
    sizes: list[tuple[int, int]] = []
    rows: list[int] = []
    segments: list[tuple[int, int, int, bool]] = []
    try:
        images = {image["id"]: image for image in records(content, "images", path)}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: list of images: {_reason(error)}") from error
    for position, annotation in enumerate(records(content, "annotations", path)):
        try:
            image = images[annotation["image_id"]]
            ids.append(str(image["id"]))
            file_names.append(str(image["file_name"]))
            labels_names.append(str(annotation["file_name"]))
            sizes.append(stated_size(image))
            found = list(_segments(annotation["segments_info"], label_of))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: annotation {position}: {_reason(error)}") from error
        rows.append(len(found))
        segments += found
    table = np.array(segments, dtype=[("id", "i8"), ("label", "i4"), ("area", "i8"), ("is_crowd", "?")])
    columns = {name: np.ascontiguousarray(table[name]) for name in ("id", "label", "area", "is_crowd")}
    return Index(
        ids, file_names, np.array(sizes, dtype=np.int32), np.array(rows, dtype=np.int64), columns, labels_names
    )


def _segments(records: list[dict[str, Any]], label_of: Mapping[int, int]) -> Iterator[tuple[int, int, int, bool]]:
    seen: set[int] = set()
    for record in records:
        number = int(record["id"])
        if not 0 < number < _COLORS or number in seen:
            raise UserError(f"segment id {number} is {'listed twice' if number in seen else 'no colour code'}")
        seen.add(number)
        category = record["category_id"]
        if category not in label_of:
            raise UserError(f"segment {number} has category_id {category}, which the vocabulary lacks")
        area = int(record.get("area", 0))
        if not 0 <= area < 2**53:
            raise UserError(f"segment {number} has area {area}")
        yield number, label_of[category], area, bool(record.get("iscrowd", 0))


def _reason(error: Exception) -> str:
    return f"field or image {error} is missing" if isinstance(error, KeyError) else str(error)

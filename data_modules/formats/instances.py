"""COCO-style instance segmentation: masks that may overlap, crowds and instances without a mask included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from data_modules import vocabularies
from data_modules.formats.base import ImageArray, IndexedReader, TaskName
from data_modules.formats.boxes import read_detection
from data_modules.formats.files import find, inside, read_image
from data_modules.formats.index import Index, Packed
from dataseg.structures import InstanceMasks, Target, Task, UserError


class InstanceReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    An annotation with no, an empty, or a degenerate ``segmentation`` stays as an instance without a mask: evaluation
    ignores it. ``counts["without_mask"]`` says how many.
    """

    gives = "masks"
    default_tasks = (Task.INSTANCE,)

    def _read(self, annotations: Path, skip: frozenset[str] = frozenset()) -> None:
        images, table, records = read_detection(annotations, self.vocabulary.index_of, skip)
        rles: list[bytes] = []
        for row in table:
            record = records[row["record"]]
            rows, columns = images.sizes[row["image"]]
            try:
                rles.append(to_rle(record.get("segmentation"), int(rows), int(columns)))
            except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
                raise UserError(f"{annotations}: annotation {row['record']}: segmentation: {error}") from error
        self.counts["without_mask"] = sum(not rle for rle in rles)
        columns_of = {name: np.ascontiguousarray(table[name]) for name in ("xyxy", "label", "is_crowd", "area")}
        count = np.bincount(table["image"], minlength=len(images.ids))
        self._index = Index(images.ids, images.file_names, images.sizes, count, {**columns_of, "rle": Packed(rles)})

    def load(self, index: int) -> tuple[ImageArray, Target]:
        row = self.index.image(index)
        image = read_image(self.image_path(row.file_name), self.title, row.size)
        size = [row.size[0], row.size[1]]
        return image, InstanceMasks(
            rles=[{"size": size, "counts": rle} if rle else None for rle in self.index.packed(index, "rle")],
            labels=torch.from_numpy(self.index.column(index, "label").astype(np.int64)),
            size=row.size,
            is_crowd=torch.from_numpy(self.index.column(index, "is_crowd").copy()),
            areas=torch.from_numpy(self.index.column(index, "area").astype(np.float32)),
            boxes=torch.from_numpy(self.index.column(index, "xyxy").copy()),
        )


def to_rle(segmentation: Any, rows: int, columns: int) -> bytes:
    """Polygons, plain or compressed run lengths -> compressed run lengths; empty if no mask is given.

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
            return bytes(coco_mask.frPyObjects(segmentation, rows, columns)["counts"])
        return counts.encode() if isinstance(counts, str) else bytes(counts)
    polygons = [p for p in segmentation if len(p) >= 6]
    if not polygons:
        return b""
    for polygon in polygons:
        if len(polygon) % 2 or not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
            raise UserError(f"a polygon of {len(polygon)} numbers, or with one that is not finite")
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, rows, columns))
    return bytes(rle["counts"]) if coco_mask.area(rle) > 0 else b""


class CocoInstances(InstanceReader):
    """Instance masks of COCO or any data set in its layout.

    Args:
        root: the data set's folder, below the data root.
        annotations: JSON file below ``root``.
        images: image folder below ``root``.
        vocabulary: name or file of the classes.
        tasks: evaluated tasks; training uses the first. Default: instance.
        names: which names the text encoder sees.
    """

    title = "COCO-style instances"
    source = "https://cocodataset.org/#download"

    def __init__(
        self,
        root: str = "coco",
        annotations: str = "annotations/instances_val2017.json",
        images: str = "val2017",
        vocabulary: str = "coco_panoptic_133",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.annotations, self.images = root, annotations, images
        self._images = Path()

    def setup(self, root: Path) -> None:
        base = find(self, root, self.root, [self.annotations, self.images])
        self._images = base / self.images
        self._read(base / self.annotations)

    def image_path(self, file_name: str) -> Path:
        return inside(self._images, file_name)

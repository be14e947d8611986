"""COCO-style instance segmentation: masks that may overlap, crowds and instances without a mask included."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from data_modules import vocabularies
from data_modules.formats.base import Complain, ImageArray, IndexedReader, Shrink, TaskName, refuse
from data_modules.formats.build import build_index
from data_modules.formats.detection import detection_batches
from data_modules.formats.files import inside
from data_modules.formats.images import read_image
from data_modules.formats.locate import folder, locate
from dataseg.structures import InstanceMasks, Target, Task, UserError


class InstanceReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    An annotation with no, an empty, or a degenerate ``segmentation`` (no pixel is inside) stays as an instance without
    a mask: evaluation ignores it. ``counts["without_mask"]`` says how many.
    """

    gives = "masks"
    default_tasks = (Task.INSTANCE,)

    def read(self, complain: Complain = refuse) -> None:
        label_of = self.vocabulary.index_of
        batches = partial(detection_batches, self._annotations, label_of, frozenset[str](), to_rle)
        settings = {"kind": "instances", "label_of": label_of}
        self._index, self.counts = build_index(self._annotations, settings, batches, complain)

    def load(self, index: int, shrink: Shrink | None = None) -> tuple[ImageArray, Target]:
        row = self.index.image(index)
        image = read_image(self.image_path(row.file_name), self.title, row.size, shrink)
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
    """Polygons, plain or compressed run lengths -> compressed run lengths; empty if no mask or no pixel is given.

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
            return _unless_empty(coco_mask.frPyObjects(segmentation, rows, columns))
        compressed = counts.encode() if isinstance(counts, str) else bytes(counts)
        check_run_lengths(compressed, rows * columns)
        return _unless_empty({"size": [rows, columns], "counts": compressed})
    polygons = [p for p in segmentation if len(p) >= 6]
    if not polygons:
        return b""
    for polygon in polygons:
        if len(polygon) % 2 or not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
            raise UserError(f"a polygon of {len(polygon)} numbers, or with one that is not finite")
    return _unless_empty(coco_mask.merge(coco_mask.frPyObjects(polygons, rows, columns)))


def _unless_empty(rle: Any) -> bytes:
    return bytes(rle["counts"]) if coco_mask.area(rle) > 0 else b""


def check_run_lengths(counts: bytes, pixels: int) -> None:
    """Whether compressed run lengths can be decoded and cover the image; pycocotools would read past their end.

    Raises:
        UserError: they do not.
    """
    values = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((values & 32) == 0)
    if not len(ends) or ends[-1] != len(values) - 1 or values.min() < 0 or values.max() > 63:
        raise UserError("compressed run lengths that cannot be decoded")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise UserError("compressed run lengths that cannot be decoded")
    changes = np.add.reduceat((values & 31) << (5 * place), starts)
    changes -= ((values[ends] & 16) != 0) * (np.int64(1) << (5 * (place[ends] + 1)))  # sign extension
    runs = changes.copy()
    for parity in (1, 2):  # from the fourth on, each is the difference to the last but one
        runs[parity::2] = np.cumsum(changes[parity::2])
    if runs.min() < 0 or runs.sum() != pixels:
        raise UserError(f"run lengths that add up to {runs.sum()}, not {pixels}")


class CocoInstances(InstanceReader):
    """Instance masks of COCO or any data set in its layout.

    Args:
        root: the data set's folder, below the data root.
        annotations: JSON file below ``root``.
        images: image folder below ``root``.
        vocabulary: name or file of the classes, or the classes themselves.
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
        vocabulary: vocabularies.Classes = "coco_panoptic_133",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.annotations, self.images = root, annotations, images
        self._images = Path()

    def locate(self, root: Path) -> None:
        wanted = [(self.annotations,)], folder(self.images)
        _, (self._annotations,), (self._images,) = locate(self, root, self.root, *wanted)

    def image_path(self, file_name: str) -> Path:
        return inside(self._images, file_name)

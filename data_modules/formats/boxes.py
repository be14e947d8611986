"""COCO-style detection JSON, read as boxes only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.formats.base import ImageArray, IndexedReader, TaskName
from data_modules.formats.files import find, inside, read_image, read_json, records, stated_size
from data_modules.formats.index import Index
from dataseg.structures import Boxes, Target, Task, UserError

MIN_SIDE = 1.0
"""Boxes narrower or lower than this many pixels, once clipped to the image, are dropped as degenerate."""


class BoxReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    Boxes are clipped to the image; degenerate ones, exact duplicates and crowds are dropped. ``counts`` says how many.
    """

    gives = "boxes"
    default_tasks = (Task.INSTANCE,)

    def _read(self, annotations: Path, skip: frozenset[str] = frozenset()) -> None:
        images, table, _ = read_detection(annotations, self.vocabulary.index_of, skip)
        self.counts["skipped_images"] = images.skipped
        table, counts = clean_boxes(table, images.sizes)
        self.counts |= counts
        rows = np.bincount(table["image"], minlength=len(images.ids))
        columns = {name: np.ascontiguousarray(table[name]) for name in ("xyxy", "label")}
        self._index = Index(images.ids, images.file_names, images.sizes, rows, columns)

    def load(self, index: int) -> tuple[ImageArray, Target]:
        row = self.index.image(index)
        image = read_image(self.image_path(row.file_name), self.title, row.size)
        return image, Boxes(
            xyxy=torch.from_numpy(self.index.column(index, "xyxy").copy()),
            labels=torch.from_numpy(self.index.column(index, "label").astype(np.int64)),
        )


class ImageTable:
    """The ``images`` list of a COCO-style JSON, by column."""

    def __init__(self, records: list[dict[str, Any]], skip: frozenset[str]) -> None:
        kept = [r for r in records if "/".join(r["file_name"].split("/")[-2:]) not in skip]
        self.skipped = len(records) - len(kept)
        self.ids = [str(r["id"]) for r in kept]
        self.file_names = [str(r["file_name"]) for r in kept]
        self.sizes = np.array([stated_size(r) for r in kept], dtype=np.int32).reshape(-1, 2)
        self.position = {r["id"]: i for i, r in enumerate(kept)}
        if len(self.position) != len(kept):
            raise UserError("two images have the same id")


_RECORD = np.dtype(
    [("image", "i8"), ("label", "i4"), ("xyxy", "f4", (4,)), ("is_crowd", "?"), ("area", "f8"), ("record", "i8")]
)


def read_detection(
    path: Path, label_of: Mapping[int, int], skip: frozenset[str]
) -> tuple[ImageTable, NDArray[np.void], list[dict[str, Any]]]:
    """Images and annotations of a COCO-style JSON, annotations grouped by image, in file order within an image.

    Args:
        label_of: ``category_id`` -> label.
        skip: images to leave out, by the last two components of their file name.

    Returns:
        the images, and one record per annotation: ``image`` (row), ``label``, ``xyxy``, ``is_crowd``, ``area``,
        ``record`` (position in the file); and the file's own list of annotations.

    Raises:
        UserError: a malformed record; names file and record.
    """
    content = read_json(path)
    all_images, annotations = records(content, "images", path), records(content, "annotations", path)
    try:
        images = ImageTable(all_images, skip)
        skipped = {r["id"] for r in all_images} - images.position.keys()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: list of images: {error!r}") from error
    if not images.ids:
        raise UserError(f"{path}: holds no image")
    table = np.zeros(len(annotations), dtype=_RECORD)
    used = 0
    for position, annotation in enumerate(annotations):
        try:
            if annotation["image_id"] in skipped:
                continue
            x, y, width, height = map(float, annotation["bbox"])
            table[used] = (
                images.position[annotation["image_id"]],
                label_of[annotation["category_id"]],
                (x, y, x + width, y + height),
                bool(annotation.get("iscrowd", 0)),
                float(annotation.get("area", width * height)),
                position,
            )
        except KeyError as error:
            raise UserError(
                f"{path}: annotation {position} (id {annotation.get('id')}): {error} is missing, "
                "or is an image or category the file or the vocabulary lacks"
            ) from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: annotation {position}: {error}") from error
        used += 1
    table = table[:used]
    bad = np.flatnonzero(~np.isfinite(table["xyxy"]).all(axis=1))
    if len(bad):
        raise UserError(f"{path}: annotation {table['record'][bad[0]]}: its box is not finite")
    return images, table[np.argsort(table["image"], kind="stable")], annotations


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
    key = np.column_stack([table["image"], table["label"], clipped.view(np.int32).reshape(-1, 4)])
    first = np.zeros(len(table), dtype=bool)
    if len(table):
        first[np.unique(key, axis=0, return_index=True)[1]] = True
    counts = {
        "clipped_boxes": int((moved & solid & ~crowd).sum()),
        "crowd_boxes": int(crowd.sum()),
        "degenerate_boxes": int((~solid & ~crowd).sum()),
        "duplicate_boxes": int((~first & solid & ~crowd).sum()),
    }
    return table[solid & ~crowd & first], counts


class CocoBoxes(BoxReader):
    """Boxes of any COCO-style detection JSON.

    Args:
        root: the data set's folder, below the data root.
        annotations: JSON file below ``root``.
        images: image folder below ``root``.
        vocabulary: name or file of the classes.
        tasks: training uses the first. Default: instance.
        names: which names the text encoder sees.
    """

    title = "COCO-style boxes"
    source = "https://cocodataset.org/#download"

    def __init__(
        self,
        root: str = "coco",
        annotations: str = "annotations/instances_train2017.json",
        images: str = "train2017",
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

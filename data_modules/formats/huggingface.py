"""Datasets of the Hugging Face hub, or saved by its ``datasets`` library, by name."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.annotation_index.coco_json import RECORD, clean_boxes
from data_modules.annotation_index.problems import MISTAKES, OnProblem, raise_problem, reason_of
from data_modules.formats.reader import Orientation, Reader, TaskName
from data_modules.layout import MissingDataError, candidates
from dataseg.io.coco import crowd_of
from dataseg.io.id_map import UnknownLabelError, label_table, rows_of_colors, rows_of_labels
from dataseg.io.images import EncodedImage, decode_labels, decode_rgb_ids, encoded_image
from dataseg.structures import Boxes, SegmentMap, Target, Task, UserError

log = logging.getLogger(__name__)

Kind = Literal["label_map", "panoptic", "boxes"]
_GIVES: dict[str, Literal["map", "boxes"]] = {"label_map": "map", "panoptic": "map", "boxes": "boxes"}
_TASKS = {"label_map": Task.SEMANTIC, "panoptic": Task.PANOPTIC, "boxes": Task.INSTANCE}


class HubDataset(Reader):
    """A dataset of the Hugging Face hub (``owner/name``), or a folder that ``datasets`` wrote or can read.

    Args:
        name: folder below the data root or one folder down, else the name on the hub.
        split: e.g. ``train``.
        kind: what ``annotations`` holds: label maps (an image column, one class value a pixel), panoptic maps (an
            image column, R + 256 G + 65536 B, with ``segments``), or boxes (a list of records, or a record of lists).
        image: column of the images.
        annotations: column of the annotations.
        segments: panoptic: column of the segments: ``id``, ``category_id``, perhaps ``iscrowd`` and ``area``.
        box: boxes: field of the corners in a record of ``annotations``.
        category: boxes: field of the class in a record of ``annotations``.
        box_format: "xywh" or "xyxy", pixels.
        id: column of the image ids; None = the row number.
        vocabulary: name or file of the classes, or the classes themselves; annotations hold their ids.
        ignore: label maps: value of pixels that belong to no class.
        offset: added to the values of annotations to give the ids.
        config: configuration of the dataset on the hub.
        revision: version of the dataset on the hub.
        tasks: evaluated tasks; training uses the first. Default: semantic, panoptic or instance, by ``kind``.
        names: which names the text encoder sees.
        orientation: of images: "upright" or "stored", see `Reader`; None = by the vocabulary.
        graded: label maps: the ids are grades, see `LabelMaps`.
    """

    title = "Hugging Face dataset"
    source = "https://huggingface.co/datasets"

    def __init__(
        self,
        name: str,
        vocabulary: vocabularies.Classes,
        split: str = "train",
        kind: Kind = "label_map",
        image: str = "image",
        annotations: str = "annotation",
        segments: str = "segments_info",
        box: str = "bbox",
        category: str = "category",
        box_format: Literal["xywh", "xyxy"] = "xywh",
        id: str | None = None,  # the column's usual name
        ignore: int | list[int] = 255,
        offset: int = 0,
        config: str | None = None,
        revision: str | None = None,
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        orientation: Orientation | None = None,
        graded: bool = False,
    ) -> None:
        self.orientation, self.graded = orientation, graded or kind != "label_map"
        self.gives = _GIVES[kind]
        self.default_tasks = (_TASKS[kind],)  # type: ignore[misc]  # by kind here, by class elsewhere
        super().__init__(vocabulary, tasks, names)
        self.name, self.split, self.kind = name, split, kind
        self.image, self.annotations, self.segments, self.id = image, annotations, segments, id
        self.box, self.category, self.box_format = box, category, box_format
        self.config, self.revision = config, revision
        self._label_of = {number - offset: label for number, label in self.vocabulary.index_of.items()}
        self.ignore, self.offset = ignore, offset
        self._table = np.zeros(0, dtype=np.int32)
        self._folder: Path | None = None
        self._data: Any = None

    def locate(self, root: Path) -> None:
        self._folder = next((path for path in candidates(root, self.name) if path.is_dir()), None)
        on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name) is not None
        if self._folder is None and not on_hub:
            raise MissingDataError(f"{self.title} {self.name}", [[root / self.name]], self.source)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        import datasets  # takes seconds to import

        if self.kind == "label_map":
            if min(self._label_of) < 0:
                raise UserError(
                    f"{self.title} {self.name!r}: offset {self.offset} gives values below 0 for the vocabulary's ids"
                )
            self._table = label_table(self._label_of, self.ignore)
        try:
            data = self._load(datasets)
        except Exception as error:  # the library and what it calls raise many kinds
            place = f"folder {self._folder}" if self._folder else f"the hub (there is no such folder), {self.source}"
            raise UserError(f"{self.title} {self.name!r}, {self.split!r}: not loaded from {place}: {error}") from error
        pictures = [self.image] + ([self.annotations] if self.kind != "boxes" else [])
        wanted = [self.image, self.annotations, *([self.segments] if self.kind == "panoptic" else [])]
        for column in [*wanted, *([self.id] if self.id else [])]:
            if column not in data.column_names:
                raise UserError(f"{self.title} {self.name!r} has no column {column!r}, but {data.column_names}")
        for column in pictures:
            try:
                data = data.cast_column(column, datasets.Image(decode=False))
            except (TypeError, ValueError) as error:
                raise UserError(f"{self.title} {self.name!r}: column {column!r} holds no images ({error})") from error
        if not len(data):
            raise UserError(f"{self.title} {self.name!r}, split {self.split!r}, holds no image")
        self._data = data

    def _load(self, datasets: Any) -> Any:
        if self._folder is None:
            return datasets.load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        if any((self._folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(self._folder))
            if isinstance(saved, datasets.DatasetDict):
                return saved[self.split]
            if saved.split is not None and str(saved.split) != self.split:
                raise UserError(
                    f"it holds the split {str(saved.split)!r} alone: set split to it, or name another folder"
                )
            if saved.split is None and self.split != "train":  # the default asks for nothing
                log.warning("%s does not say which split it holds: all of it is read as %r", self._folder, self.split)
            return saved
        return datasets.load_dataset(str(self._folder), self.config, split=self.split)

    def __len__(self) -> int:
        return len(self._data)

    def image_id(self, index: int) -> str:
        return str(self._data[index : index + 1][self.id][0]) if self.id else str(index)

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        row = self._data[index]
        where = f"{self.title} {self.name!r}, {self.split} row {index}"
        image = encoded_image(_bytes(row[self.image], where), f"{where}, {self.image}", upright=self.upright)
        try:
            return image, self._target(row, image.size, f"{where}, {self.annotations}")
        except UnknownLabelError as error:
            raise UserError(f"{where}: value {error.values[-1]} is no class of {self.vocabulary.name!r}") from error
        except MISTAKES as error:
            if isinstance(error, UserError) and where in str(error):
                raise
            raise UserError(f"{where}: {reason_of(error, row[self.annotations])}") from error

    def _target(self, row: dict[str, Any], size: tuple[int, int], where: str) -> Target:
        value = row[self.annotations]
        if self.kind == "boxes":
            return self._boxes(value, size)
        content = _bytes(value, where)
        if self.kind == "label_map":
            ids, labels = rows_of_labels(decode_labels(content, where, size), self._table)
            return SegmentMap(torch.from_numpy(ids), torch.from_numpy(labels))
        segments = _records(row[self.segments])
        numbers = np.array([int(s["id"]) for s in segments], dtype=np.int64)
        ids = rows_of_colors(decode_rgb_ids(content, where, size), numbers)
        stated = all(s.get("area") is not None for s in segments)
        return SegmentMap(
            ids=torch.from_numpy(ids),
            labels=torch.tensor([self._label(s["category_id"]) for s in segments], dtype=torch.int64),
            is_crowd=torch.tensor([crowd_of(s) for s in segments], dtype=torch.bool),
            areas=torch.tensor([int(s["area"]) for s in segments], dtype=torch.int64) if stated else None,
        )

    def _label(self, category: Any) -> int:
        if category not in self._label_of:
            raise UserError(f"its category {category!r} is not in the vocabulary")
        return self._label_of[category]

    def _boxes(self, value: Any, size: tuple[int, int]) -> Boxes:
        records = _records(value)
        table = np.zeros(len(records), dtype=RECORD)
        corners: NDArray[np.float64] = np.array([r[self.box] for r in records], dtype=np.float64).reshape(-1, 4)
        if not np.isfinite(corners).all():
            raise UserError("a box is not finite")
        if self.box_format == "xywh":
            corners[:, 2:] += corners[:, :2]
        table["xyxy"] = corners
        table["label"] = [self._label(r[self.category]) for r in records]
        table["is_crowd"] = [crowd_of(r) for r in records]
        kept, _ = clean_boxes(table, np.array([size], dtype=np.int32))
        xyxy = torch.from_numpy(kept["xyxy"].copy())  # a single row counts as contiguous as it lies in its record
        return Boxes(xyxy, torch.from_numpy(kept["label"].astype(np.int64)))


def _bytes(value: Any, where: str) -> bytes:
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise UserError(f"{where}: there is no image")
    if value.get("bytes"):
        return bytes(value["bytes"])
    try:
        return Path(value["path"]).read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot read {value['path']} ({error.strerror or error})") from error


def _records(value: Any) -> list[dict[str, Any]]:
    """A list of records, or a record of lists, as a list of records."""
    if isinstance(value, dict):
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return list(value)

"""COCO panoptic format: a JSON with ``segments_info`` and one RGB-coded PNG an image. Base of all panoptic readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.annotation_index.build import Counts, build_index
from data_modules.annotation_index.problems import MISTAKES, OnProblem, raise_problem, reason_of
from data_modules.annotation_index.records import Advance, stream_records
from data_modules.annotation_index.table import BLOCK, ImageRow, image_batch
from data_modules.formats.reader import IndexedReader, TaskName
from dataseg.io.coco import crowd_of, id_of
from dataseg.io.id_map import Runs, rows_of_colors
from dataseg.io.images import EncodedImage, read_rgb_ids, size_of_record
from dataseg.io.paths import inside
from dataseg.structures import VOID, SegmentMap, Target, Task, UserError

_COLORS = 1 << 24
NOT_STATED = -1
"""Area of a segment whose record has none."""


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
        vocabulary: vocabularies.Classes | None,
        tasks: list[TaskName] | None,
        names: vocabularies.Names,
        areas: Literal["stored", "recounted"] = "stored",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.areas = areas
        self._images = self._labels = Path()

    def label_of(self) -> dict[int, int]:
        """``category_id`` in the JSON -> label."""
        return {number - self.id_offset: label for number, label in self.vocabulary.index_of.items()}

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        label_of = self.with_rest(self.label_of())
        batches = partial(panoptic_batches, self._annotations, label_of, train_crowds=self.train_crowds)
        settings = {"kind": "panoptic", "label_of": label_of, **self.rest_settings, **self.crowd_settings}
        self._index, self.counts = build_index(self._annotations, settings, batches, on_problem)

    def image_path(self, file_name: str) -> Path:
        return inside(self._images, file_name)

    def files(self, index: int) -> list[Path]:
        return [*super().files(index), inside(self._labels, self.index.image(index).labels_name)]

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        row = self.index.image(index)
        image = self.open_image(self.image_path(row.file_name), row.size)
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
        if self.areas == "recounted":
            target = recount_areas(target)
        if target.areas is not None and not bool((target.areas != NOT_STATED).all()):
            target = count_missing(target)
        if self.rest is not None or any(spec.other_ids for spec in self.vocabulary.classes):
            target = joined(target, self.vocabulary.is_thing.tolist(), self.rest_label)
        return target


def count_missing(target: SegmentMap) -> SegmentMap:
    """Areas that the file does not state, counted in the map."""
    assert target.areas is not None
    counted = torch.from_numpy(Runs.of(target.ids.numpy()).pixels(len(target)))
    return replace(target, areas=torch.where(target.areas == NOT_STATED, counted, target.areas))


def recount_areas(target: SegmentMap) -> SegmentMap:
    """Areas counted in the map; segments without a pixel left out."""
    runs = Runs.of(target.ids.numpy())
    areas = runs.pixels(len(target))
    kept = np.flatnonzero(areas)
    table = np.full(len(target) + 1, VOID, dtype=runs.values.dtype)
    table[kept] = np.arange(len(kept))
    return SegmentMap(
        ids=torch.from_numpy(runs.filled(table[runs.values])),  # VOID = -1 indexes the last entry
        labels=target.labels[kept],
        is_crowd=None if target.is_crowd is None else target.is_crowd[kept],
        areas=torch.from_numpy(areas[kept]),
    )


def joined(target: SegmentMap, is_thing: list[bool], rest: int | None) -> SegmentMap:
    """Segments without a class (label `VOID`) are of the class ``rest``, or void; those of one stuff class are one."""
    assert target.areas is not None
    assert target.is_crowd is not None
    labels = torch.where(target.labels == VOID, VOID if rest is None else rest, target.labels)
    keys = [
        label if not is_thing[label] and not crowd else len(is_thing) + row
        for row, (label, crowd) in enumerate(zip(labels.tolist(), target.is_crowd.tolist(), strict=True))
    ]
    kept = [row for row, label in enumerate(labels.tolist()) if label != VOID]
    row_of = {key: row for row, key in enumerate(dict.fromkeys(keys[k] for k in kept))}
    table = np.full(len(target) + 1, VOID, dtype=np.int16)
    table[kept] = [row_of[keys[k]] for k in kept]
    first = [kept[[keys[k] for k in kept].index(key)] for key in row_of]
    areas = torch.zeros(len(row_of), dtype=torch.int64)
    areas.index_add_(0, torch.from_numpy(table[kept].astype(np.int64)), target.areas[kept])
    runs = Runs.of(target.ids.numpy())
    return SegmentMap(
        ids=torch.from_numpy(runs.filled(table[runs.values])),  # VOID = -1 indexes the last entry
        labels=labels[first],
        is_crowd=target.is_crowd[first],
        areas=areas,
    )


Segment = tuple[int, int, int, bool]
"""Id, label, area, crowd or not."""


def panoptic_batches(
    path: Path,
    label_of: Mapping[int, int],
    counts: Counts,
    advance: Advance,
    on_problem: OnProblem,
    train_crowds: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Read a panoptic JSON into the parts of an index, in the order of its annotations.

    Args:
        label_of: ``category_id`` -> label.
        counts: nothing is ever dropped here.
        train_crowds: crowds are segments like the others.

    Raises:
        UserError: a malformed record; names file and record (unless ``on_problem`` says otherwise).
    """
    images = _images(path, on_problem)
    entries: list[tuple[ImageRow, list[Segment]]] = []
    found = False
    for first, batch in stream_records(path, "annotations", advance=advance):
        for position, annotation in enumerate(batch, first):
            try:
                number, name, size = _image(images, annotation["image_id"])
                row = ImageRow(number, name, size, str(annotation["file_name"]))
                row.labels_name.encode()
                entries.append((row, list(_segments(annotation["segments_info"], label_of, train_crowds))))
            except MISTAKES as error:
                on_problem(f"{path}: annotation {position}: {reason_of(error, annotation)}")
        if len(entries) >= BLOCK:
            found = True
            yield _batch(entries)
            entries = []
    if entries or not found:
        if not entries:
            raise UserError(f"{path}: holds no usable annotation")
        yield _batch(entries)


_ImageOf = tuple[str, str, tuple[int, int]]
"""Id as text, file name, size."""


def _image(images: Mapping[Any, _ImageOf], number: Any) -> _ImageOf:
    try:
        return images[id_of(number)]
    except KeyError:
        raise UserError(f"its image_id {number!r} is the id of no image in the file") from None


def _images(path: Path, on_problem: OnProblem) -> dict[Any, _ImageOf]:
    """Id as text, file name and size of each image, by the file's own id."""
    images: dict[Any, _ImageOf] = {}
    for first, batch in stream_records(path, "images"):
        for position, image in enumerate(batch, first):
            try:
                entry = str(image["id"]), str(image["file_name"]), size_of_record(image)
                "".join(entry[:2]).encode()
                if (number := id_of(image["id"])) in images:
                    raise UserError(f"two images have the same id {number!r}")
                images[number] = entry
            except MISTAKES as error:
                on_problem(f"{path}: list of images: image {position}: {reason_of(error, image)}")
    return images


def _batch(entries: list[tuple[ImageRow, list[Segment]]]) -> pa.RecordBatch:
    dtype = [("id", "i8"), ("label", "i4"), ("area", "i8"), ("is_crowd", "?")]
    table = np.array([segment for _, segments in entries for segment in segments], dtype=dtype)
    return image_batch(
        ids=[row.id.encode() for row, _ in entries],
        file_names=[row.file_name.encode() for row, _ in entries],
        sizes=np.array([row.size for row, _ in entries], dtype=np.int32),
        rows=np.array([len(segments) for _, segments in entries]),
        columns={name: np.ascontiguousarray(table[name]) for name in ("id", "label", "area", "is_crowd")},
        labels_names=[row.labels_name.encode() for row, _ in entries],
    )


def _segments(records: list[dict[str, Any]], label_of: Mapping[int, int], train_crowds: bool) -> Iterator[Segment]:
    seen: set[int] = set()
    for record in records:
        number = int(record["id"])
        if not 0 < number < _COLORS or number in seen:
            raise UserError(f"segment id {number} is {'listed twice' if number in seen else 'no colour code'}")
        seen.add(number)
        category = id_of(record["category_id"])
        try:
            label = label_of[category]
        except KeyError:
            raise UserError(f"segment {number} has category_id {category}, which the vocabulary lacks") from None
        area = int(record.get("area", NOT_STATED))
        if not (0 <= area < 2**53 or "area" not in record):
            raise UserError(f"segment {number} has area {area}")
        yield number, label, area, not train_crowds and crowd_of(record)

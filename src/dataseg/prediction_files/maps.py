"""Panoptic and semantic files: ground truth and any model's predictions, for scoring.

Unlike the readers that feed training, these need no images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataseg.io.coco import named
from dataseg.io.id_map import Runs, UnknownLabelError, label_table, rows_of_colors, rows_of_labels
from dataseg.io.images import MAX_LABELS, read_labels, read_rgb_ids
from dataseg.io.json_files import field_of, integer_of, read_json, records_of
from dataseg.prediction_files.files import shift_hint
from dataseg.structures import SegmentMap, UserError, Vocabulary

COLORS = 256**3
LABEL_SUFFIXES = (".png", ".tif", ".tiff")


@dataclass
class PanopticFiles:
    """COCO panoptic: a JSON file and a folder of PNGs.

    Args:
        path: the JSON file.
        vocabulary: the classes.
        folder: of the PNGs; default: named like the JSON file.
        is_truth: ground truth (crowds and stated areas count, a segment may have no pixel), or a prediction.
        id_shift: added to every ``category_id`` before it is looked up.
    """

    path: Path
    vocabulary: Vocabulary
    folder: Path | None = None
    is_truth: bool = False
    id_shift: int = 0
    annotations: dict[str, dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.png_folder = self.folder or self.path.with_suffix("")
        if not self.png_folder.is_dir():
            raise UserError(f"{self.png_folder}: no such folder of PNGs (of {self.path})")
        self.annotations = {}
        self._label_of = self.vocabulary.index_of
        for position, record in enumerate(records_of(read_json(self.path), "annotations", self.path)):
            image_id = str(field_of(record, "image_id", f"{self.path}, annotation {position}"))
            if image_id in self.annotations:
                raise UserError(f"{self.path}, annotation {position}: image {image_id} is listed twice")
            self.annotations[image_id] = record

    @property
    def image_ids(self) -> list[str]:
        return list(self.annotations)

    def load(self, image_id: str) -> SegmentMap:
        """Segments in the order of the file.

        Raises:
            UserError: no such image, a broken PNG, a segment or category that file or vocabulary lacks.
        """
        where = f"{self.path}, image {image_id}"
        if image_id not in self.annotations:
            raise UserError(f"{self.path}: image {image_id} is missing")
        record = self.annotations[image_id]
        segments = records_of(record, "segments_info", Path(where))
        numbers, labels = self._numbers_and_labels(segments, where)
        png = self.png_folder / str(field_of(record, "file_name", where))
        rows, present = self._rows(png, numbers)
        if not self.is_truth:
            if not present.all():
                raise UserError(f"{where}: segments {numbers[~present][:5].tolist()} have no pixel in {png}")
            return SegmentMap(torch.from_numpy(rows), labels)
        return SegmentMap(
            torch.from_numpy(rows),
            labels,
            is_crowd=torch.tensor([bool(s.get("iscrowd", 0)) for s in segments], dtype=torch.bool),
            areas=torch.tensor([integer_of(s, "area", f"{where}, segment {s['id']}") for s in segments]).long(),
        )

    def _numbers_and_labels(self, segments: list[dict[str, Any]], where: str) -> tuple[NDArray[Any], torch.Tensor]:
        labels: dict[int, int] = {}
        for segment in segments:
            number = integer_of(segment, "id", where)
            category = integer_of(segment, "category_id", f"{where}, segment {number}")
            if not 0 < number < COLORS or number in labels:
                raise UserError(f"{where}: segment id {number} is listed twice or is no colour (1..{COLORS - 1})")
            if category + self.id_shift not in self._label_of:
                raise UserError(
                    f"{where}: segment {number} has category_id {category}, which vocabulary"
                    f" {self.vocabulary.name!r} lacks{shift_hint(self.id_shift)}"
                )
            labels[number] = self._label_of[category + self.id_shift]
        return np.array(list(labels), dtype=np.int64), torch.tensor(list(labels.values()), dtype=torch.int64)

    def _rows(self, png: Path, numbers: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Ids int32 ``[H, W]``, and which segments have a pixel."""
        with named(f"{png} (listed in {self.path})"):
            rows = rows_of_colors(read_rgb_ids(png, "", None), numbers)
        counts = Runs.of(rows).pixels(len(numbers))
        return rows.astype(np.int32), counts > 0


@dataclass
class LabelFiles:
    """A folder of label maps, searched to any depth; an image's id is its path below the folder without suffix.

    Args:
        folder: of PNG or TIFF files with one channel.
        vocabulary: the classes.
        ignore: values that stand for "no label".
        id_shift: added to every other value before it is looked up among the official ids.
    """

    folder: Path
    vocabulary: Vocabulary
    ignore: Sequence[int] = ()
    id_shift: int = 0
    files: dict[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of label maps")
        self.files = {}
        for path in self._maps():
            image_id = path.relative_to(self.folder).with_suffix("").as_posix()
            if image_id in self.files:
                raise UserError(f"{path} and {self.files[image_id]} are label maps of one image")
            self.files[image_id] = path
        for value in self.ignore:
            if not 0 <= value < MAX_LABELS:
                raise UserError(f"ignored value {value}: label maps hold 0..{MAX_LABELS - 1}")
        values = {id_ - self.id_shift: label for id_, label in self.vocabulary.index_of.items()}
        used = {value: label for value, label in values.items() if value not in self.ignore and 0 <= value < MAX_LABELS}
        self._table = label_table(used, self.ignore)

    def _maps(self) -> Iterator[Path]:
        return (p for p in sorted(self.folder.rglob("*")) if p.suffix.lower() in LABEL_SUFFIXES)

    @property
    def image_ids(self) -> list[str]:
        return list(self.files)

    def load(self, image_id: str) -> SegmentMap:
        """One segment for each class that occurs.

        Raises:
            UserError: no such file, more than one channel, or a value that is neither a class nor ignored.
        """
        if image_id not in self.files:
            raise UserError(f"{self.folder}: no label map for image {image_id} (looked for {image_id}.png)")
        path = self.files[image_id]
        try:
            rows, labels = rows_of_labels(read_labels(path, "", None), self._table)
        except UnknownLabelError as error:
            raise UserError(
                f"{path}: the values {error.values[:5]} are no class of vocabulary {self.vocabulary.name!r}"
                f" (ids {min(self.vocabulary.index_of)}..{max(self.vocabulary.index_of)}). Values without a label:"
                " --gt-ignore, --pred-ignore; ids that start elsewhere: --gt-shift, --pred-shift"
            ) from error
        return SegmentMap(torch.from_numpy(rows), torch.from_numpy(labels))

"""Instance files: COCO ground truth and any model's results, for scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dataseg.io.coco import area_of, box_of, crowd_of, named
from dataseg.io.images import size_of_record
from dataseg.io.json_files import field_of, integer_of, number_of, read_json, records_of
from dataseg.io.rle import mask_of, rle_of
from dataseg.prediction_files.files import shift_hint
from dataseg.structures import InstanceMasks, UserError, Vocabulary


@dataclass
class InstanceTruth:
    """COCO instances: ``images``, ``annotations``.

    An annotation without a ``segmentation`` (Objects365's crowds) is an instance without a mask, ignored in scoring.
    """

    path: Path
    vocabulary: Vocabulary
    id_shift: int = 0
    sizes: dict[str, tuple[int, int]] = field(init=False)
    annotations: dict[str, list[tuple[int, dict[str, Any]]]] = field(init=False)

    def __post_init__(self) -> None:
        content = read_json(self.path)
        self.sizes = {}
        for position, image in enumerate(records_of(content, "images", self.path)):
            where = f"{self.path}, image {position}"
            with named(where):
                size = size_of_record(image)
            self.sizes[str(field_of(image, "id", where))] = size
        self.annotations = {image_id: [] for image_id in self.sizes}
        for position, record in enumerate(records_of(content, "annotations", self.path)):
            image_id = str(field_of(record, "image_id", f"{self.path}, annotation {position}"))
            if image_id not in self.sizes:
                raise UserError(f"{self.path}, annotation {position}: its image {image_id} is not listed")
            self.annotations[image_id].append((position, record))

    @property
    def image_ids(self) -> list[str]:
        return list(self.sizes)

    def load(self, image_id: str) -> InstanceMasks:
        """Instances in the order of the file."""
        size, records = self.sizes[image_id], self.annotations[image_id]
        masks, labels, areas, boxes, is_crowd = [], [], [], [], []
        for position, record in records:
            where = f"{self.path}, annotation {position}"
            labels.append(_label(record, self.vocabulary, self.id_shift, where))
            with named(where):
                masks.append(mask_of(record.get("segmentation"), *size))
                x, y, width, height = box_of(record, masks[-1])
                areas.append(area_of(record, masks[-1], width * height))
                is_crowd.append(crowd_of(record))
            boxes.append([x, y, x + width, y + height])
        return InstanceMasks(
            masks,
            torch.tensor(labels, dtype=torch.int64),
            size,
            is_crowd=torch.tensor(is_crowd, dtype=torch.bool),
            areas=torch.tensor(areas, dtype=torch.float64),
            boxes=torch.tensor(boxes, dtype=torch.float64).view(-1, 4),
        )


@dataclass
class InstanceResults:
    """COCO results: a list of masks with scores."""

    path: Path
    vocabulary: Vocabulary
    sizes: dict[str, tuple[int, int]]
    id_shift: int = 0
    records: dict[str, list[tuple[int, dict[str, Any]]]] = field(init=False)

    def __post_init__(self) -> None:
        content = read_json(self.path)
        if isinstance(content, dict):
            raise UserError(
                f"{self.path}: holds {', '.join(map(repr, content))[:80]}; wanted is a list of results"
                ' [{"image_id": ..., "category_id": ..., "segmentation": ..., "score": ...}, ...]'
            )
        self.records = {}
        for position, record in enumerate(records_of({"results": content}, "results", self.path)):
            image_id = str(field_of(record, "image_id", f"{self.path}, result {position}"))
            if image_id not in self.sizes:
                known = ", ".join(list(self.sizes)[:3])
                raise UserError(
                    f"{self.path}, result {position}: image {image_id} is not in the ground truth, whose image ids are"
                    f" {known}, ..."
                )
            self.records.setdefault(image_id, []).append((position, record))

    def load(self, image_id: str) -> InstanceMasks:
        """Predictions in the order of the file; none for an image without any."""
        masks, labels, scores = [], [], []
        for position, record in self.records.get(image_id, []):
            where = f"{self.path}, result {position}"
            with named(where):
                mask = rle_of(field_of(record, "segmentation", where), *self.sizes[image_id])
            if mask is None:
                raise UserError(f"{where} has no mask")
            masks.append(mask)
            labels.append(_label(record, self.vocabulary, self.id_shift, where))
            scores.append(number_of(record, "score", where))
        return InstanceMasks(
            list(masks),
            torch.tensor(labels, dtype=torch.int64),
            self.sizes[image_id],
            scores=torch.tensor(scores, dtype=torch.float64),
        )


def _label(record: dict[str, Any], vocabulary: Vocabulary, shift: int, where: str) -> int:
    category = integer_of(record, "category_id", where)
    if category + shift not in vocabulary.index_of:
        raise UserError(f"{where}: category_id {category} is not in vocabulary {vocabulary.name!r}{shift_hint(shift)}")
    return vocabulary.index_of[category + shift]

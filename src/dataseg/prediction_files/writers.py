"""Predictions written in the official submission formats; each file appears whole or not at all.

=========  ==================================================================================
task       files
=========  ==================================================================================
panoptic   COCO panoptic: ``<name>.json`` and ``<name>/*.png`` (id = R + 256 G + 65536 B, 0 = void)
instance   COCO results: ``<name>.json``, run lengths
semantic   ADE20K: ``<name>/*.png``, official ids, 8 or 16 bits
=========  ==================================================================================

One writer per dataset and task; with several ranks, each adds its images and rank 0 finishes with everyone's
``records``. The readers of this package take the files back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataseg.io.images import write_png
from dataseg.io.json_files import write_json
from dataseg.io.rle import rle_to_json
from dataseg.structures import InstanceMasks, SegmentMap, UserError, Vocabulary

MAX_SEGMENTS = 256**3 - 1


def official_image_id(image_id: str) -> int | str:
    """A plain decimal number as integer (COCO, Objects365), anything else as text (ADE20K, Cityscapes)."""
    return int(image_id) if image_id.isdecimal() and str(int(image_id)) == image_id else image_id


class SubmissionWriter:
    """Common part of the writers.

    Args:
        path: of the JSON file, or of the folder (semantic).
        vocabulary: the classes; official ids come from it.
        id_shift: added to every official id, e.g. -1 for ADE20K's panoptic JSON, which counts classes from 0.

    Attributes:
        records: what this rank has added, JSON-able; `finish` takes those of other ranks.
    """

    def __init__(self, path: Path | str, vocabulary: Vocabulary, id_shift: int = 0) -> None:
        self.path = Path(path)
        self.vocabulary = vocabulary
        self.ids = np.array([c.id + id_shift for c in vocabulary.classes])
        self.records: list[dict[str, Any]] = []

    def _ids_of(self, labels: NDArray[np.int64], image_id: str) -> NDArray[np.int64]:
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.ids):
            raise UserError(f"{self.path}, image {image_id}: labels beyond vocabulary {self.vocabulary.name!r}")
        return self.ids[labels]

    def _file_name(self, image_id: str) -> str:
        if not image_id or "/" in image_id or "\\" in image_id or image_id.startswith("."):
            raise UserError(f"{self.path}: image id {image_id!r} cannot be a file name")
        return f"{int(image_id):012d}.png" if isinstance(official_image_id(image_id), int) else f"{image_id}.png"


class PanopticWriter(SubmissionWriter):
    """COCO panoptic; the PNGs go to a folder named like the JSON file."""

    def add(self, prediction: SegmentMap, image_id: str) -> None:
        """Write one image's PNG; segments without a pixel are left out, as the format demands."""
        name = self._file_name(image_id)
        ids = prediction.ids.cpu().numpy()
        areas = np.bincount((ids.ravel() + 1).astype(np.int64), minlength=len(prediction) + 1)[1:]
        kept = np.flatnonzero(areas)
        if len(kept) > MAX_SEGMENTS:
            raise UserError(f"{self.path}, image {image_id}: {len(kept)} segments, the format holds {MAX_SEGMENTS}")
        numbers = np.zeros(len(prediction) + 1, dtype=np.uint32)  # the last entry is VOID's
        numbers[kept] = np.arange(1, len(kept) + 1)
        colors = numbers[ids].astype("<u4")[..., None].view(np.uint8)[..., :3]
        write_png(self.path.with_suffix("") / name, np.ascontiguousarray(colors))
        categories = self._ids_of(prediction.labels.cpu().numpy()[kept], image_id)
        segments = [
            {"id": number, "category_id": int(category), "area": int(areas[k]), "iscrowd": 0}
            for number, (category, k) in enumerate(zip(categories, kept, strict=True), start=1)
        ]
        self.records.append({"image_id": official_image_id(image_id), "file_name": name, "segments_info": segments})

    def finish(self, records: Iterable[dict[str, Any]] | None = None) -> Path:
        """Write the JSON file from ``records`` of all ranks (default: this one's)."""
        categories = [
            {"id": int(i), "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
            for i, c in zip(self.ids, self.vocabulary.classes, strict=True)
        ]
        annotations = self.records if records is None else list(records)
        write_json(self.path, {"annotations": annotations, "categories": categories})
        return self.path


class InstanceWriter(SubmissionWriter):
    """COCO instance results, one list of masks with scores."""

    def add(self, prediction: InstanceMasks, image_id: str) -> None:
        if prediction.scores is None and len(prediction):
            raise UserError(f"{self.path}, image {image_id}: the predictions have no scores")
        scores = [] if prediction.scores is None else prediction.scores.double().tolist()
        categories = self._ids_of(prediction.labels.cpu().numpy(), image_id).tolist()
        for rle, category, score in zip(prediction.rles, categories, scores, strict=True):
            if rle is None:
                raise UserError(f"{self.path}, image {image_id}: a prediction has no mask")
            self.records.append(
                {
                    "image_id": official_image_id(image_id),
                    "category_id": category,
                    "segmentation": rle_to_json(rle),
                    "score": score,
                }
            )

    def finish(self, records: Iterable[dict[str, Any]] | None = None) -> Path:
        """Write the JSON file from ``records`` of all ranks (default: this one's)."""
        write_json(self.path, self.records if records is None else list(records))
        return self.path


class LabelWriter(SubmissionWriter):
    """Semantic label maps named like the images, value = official id.

    Args:
        path: the folder.
        vocabulary: the classes.
        id_shift: see `SubmissionWriter`.
        void: value of pixels without a prediction; default 0, or the largest value where 0 is a class.
    """

    def __init__(self, path: Path | str, vocabulary: Vocabulary, id_shift: int = 0, void: int | None = None) -> None:
        super().__init__(path, vocabulary, id_shift)
        self.dtype = np.uint8 if self.ids.max() < 255 else np.uint16
        largest = int(np.iinfo(self.dtype).max)
        self.void = void if void is not None else 0 if 0 not in self.ids else largest
        if self.ids.min() < 0 or self.ids.max() > largest or self.void in self.ids or not 0 <= self.void <= largest:
            raise UserError(
                f"{self.path}: ids {self.ids.min()}..{self.ids.max()} and void {self.void} do not fit a PNG"
            )

    def add(self, prediction: SegmentMap, image_id: str) -> None:
        if not image_id or "/" in image_id or "\\" in image_id or image_id.startswith("."):
            raise UserError(f"{self.path}: image id {image_id!r} cannot be a file name")
        values = np.append(self._ids_of(prediction.labels.cpu().numpy(), image_id), self.void).astype(self.dtype)
        write_png(self.path / f"{image_id}.png", values[prediction.ids.cpu().numpy()])  # VOID takes the last entry
        self.records.append({"image_id": image_id, "file_name": f"{image_id}.png"})

    def finish(self, records: Iterable[dict[str, Any]] | None = None) -> Path:
        """Nothing is left to write; returns the folder."""
        return self.path

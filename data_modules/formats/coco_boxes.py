"""COCO-style detection JSON, read as boxes only."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from data_modules import vocabularies
from data_modules.annotation_index.build import build_index
from data_modules.annotation_index.coco_json import detection_batches
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Index
from data_modules.formats.coco_style import CocoFile
from data_modules.formats.reader import IndexedReader
from dataseg.io.images import EncodedImage
from dataseg.structures import Boxes, Target, Task


class BoxReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    Boxes are clipped to the image; degenerate ones, exact duplicates and crowds are dropped. ``counts`` says how many.
    """

    gives = "boxes"
    default_tasks = (Task.INSTANCE,)
    skip: frozenset[str] = frozenset()

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        label_of = self.with_rest(self.vocabulary.index_of)
        settings = {
            "kind": "boxes",
            "label_of": label_of,
            "skip": sorted(self.skip),
            **self.rest_settings,
            **self.crowd_settings,
        }
        batches = partial(
            detection_batches, self._annotations, label_of, self.skip, None, train_crowds=self.train_crowds
        )
        self._index, self.counts = build_index(self._annotations, settings, batches, on_problem)

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        row = self.index.image(index)
        image = self.open_image(self.image_path(row.file_name), row.size)
        return image, boxes_of(self.index, index)


def boxes_of(index: Index, image: int) -> Boxes:
    """The boxes of one image."""
    return Boxes(
        xyxy=torch.from_numpy(index.column(image, "xyxy").copy()),
        labels=torch.from_numpy(index.column(image, "label").astype(np.int64)),
    )


class CocoBoxes(CocoFile, BoxReader):
    """Boxes of any COCO-style detection JSON.

    Arguments: see `CocoFile`.
    """

    title = "COCO-style boxes"
    source = "https://cocodataset.org/#download"

    def __init__(
        self,
        root: str = "coco",
        annotations: str = "annotations/instances_train2017.json",
        images: str = "train2017",
        vocabulary: vocabularies.Classes | None = "coco_panoptic_133",
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, vocabulary, **options)

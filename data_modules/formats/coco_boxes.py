"""COCO-style detection JSON, read as boxes only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_modules import vocabularies
from data_modules.annotation_index.build import build_index
from data_modules.annotation_index.coco_json import detection_batches
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Index
from data_modules.formats.coco_style import CocoStyle
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.reader import Crowds, IndexedReader, Orientation, TaskName
from data_modules.layout import folder, locate
from dataseg.io.images import EncodedImage, open_image
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
        image = open_image(self.image_path(row.file_name), self.title, row.size, upright=self.upright)
        return image, boxes_of(self.index, index)


def boxes_of(index: Index, image: int) -> Boxes:
    """The boxes of one image."""
    return Boxes(
        xyxy=torch.from_numpy(index.column(image, "xyxy").copy()),
        labels=torch.from_numpy(index.column(image, "label").astype(np.int64)),
    )


class CocoBoxes(CocoStyle, BoxReader):
    """Boxes of any COCO-style detection JSON.

    Args:
        root: the dataset's folder, below the data root.
        annotations: JSON file below ``root``.
        images: image folder below ``root``.
        vocabulary: name or file of the classes, or the classes themselves; None = the JSON's own categories.
        tasks: training uses the first. Default: instance.
        names: which names the text encoder sees.
        hold_out: a part of the images, where there is no other file to evaluate on.
        orientation: of images: "upright" or "stored", see `Reader`; None = by the vocabulary.
        rest: "background" leaves out objects of other classes than the vocabulary's; None = they are refused.
        crowds: "ignore" annotations that are marked iscrowd, as COCO's rules say, or "train" on them as on others.
    """

    title = "COCO-style boxes"
    source = "https://cocodataset.org/#download"

    def __init__(
        self,
        root: str = "coco",
        annotations: str = "annotations/instances_train2017.json",
        images: str = "train2017",
        vocabulary: vocabularies.Classes | None = "coco_panoptic_133",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        hold_out: HoldOut | None = None,
        orientation: Orientation | None = None,
        rest: str | None = None,
        crowds: Crowds = "ignore",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.orientation, self.rest = orientation, rest
        self.crowds = crowds
        self.root, self.annotations, self.images, self.hold_out = root, annotations, images, hold_out
        self._images = Path()

    def locate(self, root: Path) -> None:
        wanted = [(self.annotations,)], folder(self.images)
        _, (self._annotations,), (self._images,) = locate(self, root, self.root, *wanted)

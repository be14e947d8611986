"""COCO-style instance segmentation: masks that may overlap, crowds and instances without a mask included."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from data_modules import vocabularies
from data_modules.annotation_index.build import build_index
from data_modules.annotation_index.coco_json import detection_batches
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Index
from data_modules.formats.coco_style import CocoFile
from data_modules.formats.painting import gives_of, painted, require_rest
from data_modules.formats.reader import IndexedReader, Overlaps
from dataseg.io.images import EncodedImage
from dataseg.io.rle import mask_of
from dataseg.structures import InstanceMasks, Target, Task


class InstanceReader(IndexedReader):
    """Reads the format; subclasses say where the files lie.

    An annotation with no, an empty, or a degenerate ``segmentation`` (no pixel is inside) stays as an instance without
    a mask: evaluation ignores it. ``counts["without_mask"]`` says how many.
    """

    gives: Literal["map", "boxes", "masks"] = "masks"
    default_tasks = (Task.INSTANCE,)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        require_rest(self)
        label_of, is_painted = self.with_rest(self.vocabulary.index_of), self.gives == "map"
        batches = partial(
            detection_batches,
            self._annotations,
            label_of,
            frozenset[str](),
            mask_of,
            keep_rest=is_painted,
            train_crowds=self.train_crowds,
        )
        settings = {"kind": "instances", "label_of": label_of, **self.rest_settings, **self.crowd_settings}
        self._index, self.counts = build_index(self._annotations, settings, batches, on_problem)

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        row = self.index.image(index)
        image = self.open_image(self.image_path(row.file_name), row.size)
        return image, painted(self, masks_of(self.index, index))


def masks_of(index: Index, image: int) -> InstanceMasks:
    """The instances of one image."""
    size = index.image(image).size
    return InstanceMasks(
        rles=[{"size": list(size), "counts": rle} if rle else None for rle in index.packed(image, "rle")],
        labels=torch.from_numpy(index.column(image, "label").astype(np.int64)),
        size=size,
        is_crowd=torch.from_numpy(index.column(image, "is_crowd").copy()),
        areas=torch.from_numpy(index.column(image, "area").astype(np.float32)),
        boxes=torch.from_numpy(index.column(image, "xyxy").copy()),
    )


class CocoInstances(CocoFile, InstanceReader):
    """Instance masks of COCO or any dataset in its layout; or, by ``tasks``, maps painted from them.

    Args:
        overlaps: of painted masks: "smaller_on_top", or "later_on_top", in the order of the file.
        options: see `CocoFile`, as the others. For panoptic and semantic tasks a map is painted from the masks; then
            ``rest``, "void" or a class of the vocabulary, stands for other classes and for pixels without an object,
            and must be given.
    """

    title = "COCO-style instances"
    source = "https://cocodataset.org/#download"

    def __init__(
        self,
        root: str = "coco",
        annotations: str = "annotations/instances_val2017.json",
        images: str = "val2017",
        vocabulary: vocabularies.Classes | None = "coco_panoptic_133",
        overlaps: Overlaps = "smaller_on_top",
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, vocabulary, **options)
        self.overlaps = overlaps
        self.gives = gives_of(self.title, self.tasks)

"""COCO 2017: ``coco/{train,val}2017/*.jpg``, ``annotations/panoptic_*.json`` and ``annotations/panoptic_*/*.png``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_modules import vocabularies
from data_modules.formats.coco_style import CocoStyle
from data_modules.formats.panoptic_reader import PanopticReader
from data_modules.layout import folder, locate, with_folders
from dataseg.io.images import EncodedImage
from dataseg.structures import VOID, SegmentMap, Target, Task

_ARCHIVE = "panoptic_annotations_trainval2017.zip"


class CocoPanoptic(CocoStyle, PanopticReader):
    """COCO panoptic, and any dataset written in its layout.

    Args:
        root: the dataset's folder, below the data root.
        split: part of the usual file names.
        annotations: JSON file below ``root``, in place of ``annotations/panoptic_{split}.json``. Its PNGs lie in the
            folder of the same name without ``.json``, or in a zip archive of that name.
        images: image folder below ``root``, in place of ``{split}``.
        options: see `CocoStyle`, as ``vocabulary``.
    """

    title = "COCO panoptic"
    source = (
        "https://cocodataset.org/#download (2017 images and panoptic annotations: unpack them, the two inner zips of "
        "PNGs too, or leave all zips as they are)"
    )

    def __init__(
        self,
        root: str = "coco",
        split: str = "train2017",
        annotations: str | None = None,
        images: str | None = None,
        vocabulary: vocabularies.Classes | None = "coco_panoptic_133",
        **options: Any,
    ) -> None:
        super().__init__(vocabulary, **options)
        self.root, self.split, self.annotations, self.images = root, split, annotations, images

    def locate(self, root: Path) -> None:
        name = f"annotations/panoptic_{self.split}.json"
        usual = [name, f"{_ARCHIVE}/{name}", f"annotations/{_ARCHIVE}/{name}"]
        pairs = with_folders([self.annotations] if self.annotations else usual)
        images = folder(self.images or self.split)
        _, (self._annotations, self._labels), (self._images,) = locate(self, root, self.root, pairs, images)


class CocoSemantic133(CocoPanoptic):
    """Semantic segmentation into the 133 panoptic classes, made in memory from the panoptic PNGs.

    Each pixel has the class of its panoptic segment, crowds included: this is how the label maps of published "COCO
    semantic" figures are made (a panoptic target read as semantic drops crowds instead).
    """

    title = "COCO semantic (133 classes, from panoptic)"
    default_tasks = (Task.SEMANTIC,)

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        image, target = super().open(index)
        assert isinstance(target, SegmentMap)
        labels, group = torch.unique(target.labels, return_inverse=True)
        table = torch.cat([group, group.new_full((1,), VOID)]).to(target.ids.dtype)
        return image, SegmentMap(ids=table[target.ids.long()], labels=labels)

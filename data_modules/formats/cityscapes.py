"""Cityscapes panoptic, as ``createPanopticImgs.py`` of cityscapesScripts writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_modules import vocabularies
from data_modules.formats.panoptic_reader import PanopticReader
from data_modules.formats.reader import TaskName
from data_modules.layout import folder, locate, with_folders
from dataseg.io.paths import inside

_TRAIN_ID = "_trainId.json"


class CityscapesPanoptic(PanopticReader):
    """``gtFine/cityscapes_panoptic_{split}.json`` and its PNGs, ``leftImg8bit/{split}/<city>/*.png``; 19 classes.

    Categories are label ids (7..33), or train ids (0..18) where the JSON's name ends in ``_trainId``, as the script
    names it then. Groups of instances are crowds.

    Args:
        root: the dataset's folder, below the data root.
        annotations: JSON file below ``root``, in place of the usual one.
        images: image folder below ``root``, in place of ``leftImg8bit/{split}``.
        vocabulary: name or file of the classes, in the order of the train ids.
        tasks: evaluated tasks; training uses the first. Default: panoptic.
        names: which names the text encoder sees.
    """

    title = "Cityscapes panoptic"
    source = (
        "https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, with an "
        "account), then cityscapesscripts/preparation/createPanopticImgs.py"
    )

    def __init__(
        self,
        root: str = "cityscapes",
        split: Literal["train", "val"] = "val",
        annotations: str | None = None,
        images: str | None = None,
        vocabulary: str = "cityscapes_19",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.split, self.annotations, self.images = root, split, annotations, images

    def locate(self, root: Path) -> None:
        stem = f"cityscapes_panoptic_{self.split}"
        # the script writes into gtFine, or wherever it is told to
        usual = [f"{folder}{stem}{end}" for end in (".json", _TRAIN_ID) for folder in ("gtFine/", "")]
        images = folder(self.images or f"leftImg8bit/{self.split}")
        pairs = with_folders([self.annotations] if self.annotations else usual)
        _, (self._annotations, self._labels), (self._images,) = locate(self, root, self.root, pairs, images)

    def label_of(self) -> dict[int, int]:
        if self._annotations.name.endswith(_TRAIN_ID):
            return {label: label for label in range(len(self.vocabulary))}
        return super().label_of()

    def image_path(self, file_name: str) -> Path:
        """``<city>/<id>_leftImg8bit.png``; the script's file names lack the city and carry a stray ``_gtFine``."""
        return inside(self._images, f"{file_name.split('_')[0]}/{file_name.replace('_gtFine', '')}")

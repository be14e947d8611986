"""ADE20k (SceneParsing, ``ADEChallengeData2016``): semantic label PNGs, and panoptic maps made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from data_modules import vocabularies
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.formats.label_maps import LabelMapReader, paired_stems
from data_modules.formats.panoptic_reader import PanopticReader
from data_modules.formats.reader import TaskName
from data_modules.layout import folder, locate, with_folders
from dataseg.io.id_map import label_table

Split = Literal["training", "validation"]

_SOURCE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"


class AdeSemantic(LabelMapReader):
    """ADE20k, 150 classes: ``images/{split}/*.jpg`` and ``annotations/{split}/*.png``.

    PNG value 0 ("other objects") becomes `VOID`, 1..150 become labels 0..149. Folders that another tool has already
    shifted by one are refused.

    Args:
        root: the dataset's folder, below the data root or one folder down.
        images: image folder below ``root``, in place of ``images/{split}``.
        annotations: label folder below ``root``, in place of ``annotations/{split}``.
        vocabulary: name or file of the classes; a label PNG holds their official ids.
        tasks: evaluated tasks; training uses the first. Default: semantic.
        names: which names the text encoder sees.
    """

    title = "ADE20k semantic"
    source = _SOURCE
    hint_255 = " (255 is how already-shifted copies mark 'other': use the original PNGs)"

    def __init__(
        self,
        root: str = "ADEChallengeData2016",
        split: Split = "training",
        images: str | None = None,
        annotations: str | None = None,
        vocabulary: str = "ade20k_150",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.split, self.images, self.annotations = root, split, images, annotations
        self._images = self._labels = Path()

    def locate(self, root: Path) -> None:
        images = folder(self.images or f"images/{self.split}")
        labels = folder(self.annotations or f"annotations/{self.split}")
        _, (self._images,), (self._labels,) = locate(self, root, self.root, images, labels)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        stems = paired_stems(self, self._images, ".jpg", self._labels, ".png", on_problem)
        self._read(stems, label_table(self.vocabulary.index_of), self._images, on_problem)

    def image_path(self, stem: str) -> Path:
        return self._images / f"{stem}.jpg"

    def labels_path(self, stem: str) -> Path:
        return self._labels / f"{stem}.png"


class AdePanoptic(PanopticReader):
    """ADE20k panoptic: ``ade20k_panoptic_{train,val}.json`` and its PNGs, as Mask2Former's preparation writes them.

    Its JSON states stuff areas from before things were pasted over, so that even a perfect prediction may fall short
    of 100. ``areas="stored"`` keeps them, comparable with published scores; "recounted" counts the PNG.

    Args:
        root: the dataset's folder, below the data root or one folder down.
        annotations: JSON file below ``root``, in place of the usual one.
        images: image folder below ``root``, in place of ``images/{split}``.
        areas: see above.
        vocabulary: name or file of the classes.
        tasks: evaluated tasks; training uses the first. Default: panoptic.
        names: which names the text encoder sees.
    """

    title = "ADE20k panoptic"
    source = f"{_SOURCE} and annotations_instance.tar beside it, then Mask2Former's datasets/prepare_ade20k_pan_seg.py"
    id_offset = 1  # the JSON counts classes from 0, the label PNGs and the vocabulary from 1

    def __init__(
        self,
        root: str = "ADEChallengeData2016",
        split: Split = "validation",
        annotations: str | None = None,
        images: str | None = None,
        areas: Literal["stored", "recounted"] = "stored",
        vocabulary: str = "ade20k_150",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names, areas)
        self.root, self.split, self.annotations, self.images = root, split, annotations, images

    def locate(self, root: Path) -> None:
        name = f"ade20k_panoptic_{'train' if self.split == 'training' else 'val'}.json"
        usual = [self.annotations] if self.annotations else [name, f"annotations_detectron2/{name}"]
        images = folder(self.images or f"images/{self.split}")
        _, found, (self._images,) = locate(self, root, self.root, with_folders(usual), images)
        self._annotations, self._labels = found

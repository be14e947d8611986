"""A folder of images, and for each image a folder with one mask file per segment."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Index, image_batch
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.painting import gives_of, painted
from data_modules.formats.reader import IndexedReader, Orientation, Overlaps, TaskName
from data_modules.layout import folder, locate
from dataseg.io.bands import Bands
from dataseg.io.images import EncodedImage, mask_values, read_mask
from dataseg.io.paths import by_stem, list_images
from dataseg.io.rle import encode_mask
from dataseg.io.zip_archive import split
from dataseg.structures import VOID, InstanceMasks, Target, Task, UserError, Vocabulary


class MaskFolders(IndexedReader):
    """``images/<stem>.jpg`` with ``masks/<stem>/<class>_<anything>.png``, one file per segment.

    A mask's pixels above half of its largest value are inside. Its file's name begins with the class name (spaces may
    be underscores). For the instance task masks may overlap; for panoptic and semantic tasks a map is painted. An image
    without a folder of masks has no segment. A file without a pixel inside is an instance without a mask, which
    evaluation ignores; maps leave it out.

    Args:
        root: the dataset's folder, below the data root.
        images: image folder below ``root``.
        masks: folder of the mask folders below ``root``.
        vocabulary: name or file of the classes, or the classes themselves.
        image_suffix: ending of the images, in any case; None = any image.
        mask_suffix: ending of the masks, in any case; None = any image.
        tasks: evaluated tasks; training uses the first. Default: instance.
        names: which names the text encoder sees.
        hold_out: a part of the images, where there is no other folder to evaluate on.
        orientation: of images: "upright" or "stored", see `Reader`; None = by the vocabulary.
        bands: of images of many bands or of fractions: which are seen, and which values are black and white.
        rest: what becomes of masks of other classes than the vocabulary's, see `data_modules.formats.CocoInstances`;
            without it, pixels without a mask are void in maps.
        overlaps: of painted masks: "later_on_top", in the order of their files' names, or "smaller_on_top".
    """

    title = "folders of masks"
    source = "its owner: this reader serves folders of your own"
    default_tasks = (Task.INSTANCE,)
    gives: Literal["map", "boxes", "masks"] = "masks"

    def __init__(
        self,
        root: str,
        images: str,
        masks: str,
        vocabulary: vocabularies.Classes,
        image_suffix: str | None = None,
        mask_suffix: str | None = None,
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        hold_out: HoldOut | None = None,
        orientation: Orientation | None = None,
        bands: Bands | None = None,
        rest: str | None = None,
        overlaps: Overlaps = "later_on_top",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.orientation, self.bands, self.rest, self.overlaps = orientation, bands, rest, overlaps
        self.root, self.images, self.masks = root, images, masks
        self.image_suffix, self.mask_suffix, self.hold_out = image_suffix, mask_suffix, hold_out
        self.gives = gives_of(self.title, self.tasks)
        self._images = self._masks = Path()

    def locate(self, root: Path) -> None:
        wanted = folder(self.images), folder(self.masks)
        _, (self._images,), (self._masks,) = locate(self, root, self.root, *wanted)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        label_of = _names(self.vocabulary)
        image_of = by_stem(list_images(self._images, self.image_suffix), self._images)
        if not image_of:
            raise UserError(f"{self.title}: {self._images} holds no image{self.image_suffix or ''}")
        folder_of = {unicodedata.normalize("NFC", name): name for name in _folders(self._masks)}
        for name in (lonely := sorted(folder_of.keys() - image_of.keys())):
            on_problem(f"{self._masks}: folder {name} has no image in {self._images}", benign=True)
        self.counts["mask_folders_without_an_image"] = len(lonely)
        if len(lonely) == len(folder_of):
            raise UserError(f"{self.title}: no folder of {self._masks} has the name of an image of {self._images}")
        if self.hold_out is not None:
            image_of = {stem: name for stem, name in image_of.items() if self.hold_out.keeps(name)}
        counts: list[int] = []
        labels: list[int] = []
        files: list[bytes] = []
        for stem in image_of:
            found = 0
            masks = self._masks / folder_of.get(stem, stem)
            for name in list_images(masks, self.mask_suffix):
                label = _label(PurePosixPath(name).stem, label_of)
                if label is None and self.rest_label is not None:
                    self.counts["of_other_classes"] = self.counts.get("of_other_classes", 0) + 1
                    label = VOID
                if label == VOID and self.gives != "map":
                    continue
                if label is None:
                    on_problem(f"{masks / name}: its name begins with no class of the vocabulary")
                    continue
                labels.append(label)
                files.append((masks / name).relative_to(self._masks).as_posix().encode())
                found += 1
            counts.append(found)
        if not image_of:
            raise UserError(f"{self.title}: {self._images} has no image in the part {self.hold_out}")
        names = [name.encode() for name in image_of.values()]
        sizes = np.zeros((len(names), 2), dtype=np.int32)  # known once an image is opened
        columns: dict[str, NDArray[Any] | list[bytes]] = {"label": np.array(labels, dtype=np.int32), "file": files}
        stems = [stem.encode() for stem in image_of]
        self._index = Index([image_batch(stems, names, sizes, np.array(counts), columns)])

    def doubts(self, index: int) -> list[str]:
        told = []
        for path in self.files(index)[1:]:
            values = mask_values(path, self.title, None)
            if not values.any():
                told.append(f"{path}: no pixel is above 0")
            elif share := float(((values > 0) & (values < values.max())).mean()):
                told.append(
                    f"{path}: {share:.1%} of its pixels are neither 0 nor {values.max()}, as in JPEG files and masks"
                    " with soft edges: it is cut at half"
                )
        return told

    def image_path(self, file_name: str) -> Path:
        return self._images / file_name

    def files(self, index: int) -> list[Path]:
        return [*super().files(index), *(self._masks / name.decode() for name in self.index.packed(index, "file"))]

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        image = self.open_image(self.image_path(self.index.image(index).file_name))
        labels = self.index.column(index, "label")
        files = self.index.packed(index, "file")
        masks = [read_mask(self._masks / file.decode(), self.title, image.size) for file in files]
        return image, self._target(masks, labels, image.size)

    def _target(self, masks: list[NDArray[np.bool_]], labels: NDArray[np.int32], size: tuple[int, int]) -> Target:
        rles = [encode_mask(m) if m.any() else None for m in masks]
        return painted(self, InstanceMasks(rles, torch.from_numpy(labels.astype(np.int64)), size))


def _folders(path: Path) -> set[str]:
    """Names of the folders in a folder itself."""
    place = split(path)
    if place is None:
        return {entry.name for entry in path.iterdir() if entry.is_dir()}
    archive, name = place
    return {n.split("/")[0] for n in archive.names(name) if "/" in n}


def _names(vocabulary: Vocabulary) -> dict[str, int]:
    """Class names as files may write them -> label, longest first."""
    names = {}
    for name, label in vocabulary.label_of_name.items():
        names[name] = names[name.replace(" ", "_")] = label
    return dict(sorted(names.items(), key=lambda item: -len(item[0])))


def _label(stem: str, label_of: dict[str, int]) -> int | None:
    for name, label in label_of.items():
        if stem == name or (stem.startswith(name) and stem[len(name)] in "_-. "):
            return label
    return None

"""Label maps: one class value a pixel. Base of all semantic readers, and a reader for folders of your own."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Packed
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.reader import Orientation, Reader, TaskName
from data_modules.layout import folder, locate
from dataseg.io.bands import Bands
from dataseg.io.id_map import Runs, UnknownLabelError, label_table, rows_of_labels
from dataseg.io.images import MAX_LABELS, EncodedImage, color_codes, read_colors, read_labels
from dataseg.io.paths import by_stem, list_files, list_images
from dataseg.structures import VOID, SegmentMap, Target, Task, UserError

Encoding = Literal["ids", "colors", "ade"]

_PROBED = 8
IGNORE = 255
"""Usual value of pixels that belong to no class."""


class LabelMapReader(Reader):
    """Reads pairs of an image and a label map that share a stem; subclasses say where the files lie."""

    gives = "map"
    default_tasks = (Task.SEMANTIC,)
    hint_255 = hint = ""
    """What to say of values that no class has: of 255, and of the others."""

    def __init__(
        self, vocabulary: vocabularies.Classes, tasks: list[TaskName] | None, names: vocabularies.Names
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self._stems = Packed.of([])
        self._table = np.zeros(0, dtype=np.int32)

    def _read(self, stems: Sequence[str], table: NDArray[np.int32], listed_in: Path, on_problem: OnProblem) -> None:
        if not stems:
            raise UserError(f"{self.title}: {listed_in} lists no image")
        self._stems = Packed.of(stem.encode() for stem in stems)
        self._table = table
        if on_problem is raise_problem:
            self._probe(min(_PROBED, len(self)))

    def _probe(self, count: int) -> None:
        """Refuse a wrong or already shifted folder before training starts; a single bad map is left to its reading."""
        errors: list[UserError] = []
        for index in range(count):
            try:
                self.load_labels(index)
            except UserError as error:
                errors.append(error)
        if len(errors) > 1 or len(errors) == count:
            raise errors[0]

    @abstractmethod
    def image_path(self, stem: str) -> Path: ...

    @abstractmethod
    def labels_path(self, stem: str) -> Path: ...

    def values(self, path: Path, size: tuple[int, int] | None) -> NDArray[Any]:
        """The file's label values, unsigned ``[H, W]``."""
        return read_labels(path, self.title, size)

    def __len__(self) -> int:
        return len(self._stems)

    def image_id(self, index: int) -> str:
        return self._stems[index].decode()

    def files(self, index: int) -> list[Path]:
        stem = self.image_id(index)
        return [self.image_path(stem), self.labels_path(stem)]

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        image = self.open_image(self.image_path(self.image_id(index)))
        rows_HW, labels_K = self.load_labels(index, image.size)
        return image, SegmentMap(ids=torch.from_numpy(rows_HW), labels=torch.from_numpy(labels_K))

    def load_labels(
        self, index: int, size: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Map of rows, int16 ``[H, W]``, and the label of each row, int64 ``[K]``, ascending.

        Args:
            size: (H, W) of the image; None = do not compare.
        """
        path = self.labels_path(self.image_id(index))
        try:
            return rows_of_labels(self.values(path, size), self._table)
        except UnknownLabelError as error:
            hint = self.hint_255 if error.values[-1] == 255 else self.hint
            raise UserError(
                f"{self.title}: {path} holds the value {error.values[-1]}, "
                f"which is no class of {self.vocabulary.name!r}{hint}"
            ) from error


class LabelMaps(LabelMapReader):
    """Any folder of images with a folder of label maps: PNG or TIFF, 8 or 16 bits, one class value or colour a pixel.

    Args:
        root: the dataset's folder, below the data root.
        images: image folder below ``root``.
        annotations: label folder below ``root``; a label map has its image's stem, the name without the suffix.
        vocabulary: name or file of the classes, or the classes themselves; label maps hold their ids, or colors.
        encoding: what pixels hold: "ids" of classes; "colors", RGB, of classes; or "ade": red / 10 * 256 + green is
            the id, as in the full ADE20K.
        ignore: value, or values, of pixels that belong to no class.
        ignore_colors: the like, [r, g, b], of maps of colours.
        offset: added to a label map's values to give the ids, as in copies that were shifted by one.
        image_suffix: ending of the images, in any case, e.g. ``.jpg``; None = any image.
        labels_suffix: ending of the label maps, in any case, e.g. ``.png`` or ``_mask.png``; None = any image, or
            ``.png`` where images and maps lie in one folder.
        tasks: evaluated tasks; training uses the first. Default: semantic.
        names: which names the text encoder sees.
        hold_out: a part of the images, where there is no other folder to evaluate on.
        orientation: of images: "upright" or "stored", see `Reader`; None = by the vocabulary.
        bands: of images of many bands or of fractions: which are seen, and which values are black and white.
        rest: what pixels of other classes than the vocabulary's are: "void", or one of its classes; None = they are
            refused.
        graded: the ids are grades, such as depths: neighbours in number may be neighbours in the picture. Else such
            maps are refused as blurred.
    """

    title = "label maps"
    hint_255 = hint = ": add it, name it in ignore, or say with rest what such pixels are"
    source = "its owner: this reader serves folders of your own"

    def __init__(
        self,
        root: str,
        images: str,
        annotations: str,
        vocabulary: vocabularies.Classes,
        ignore: int | list[int] = IGNORE,
        offset: int = 0,
        image_suffix: str | None = None,
        labels_suffix: str | None = None,
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        hold_out: HoldOut | None = None,
        orientation: Orientation | None = None,
        bands: Bands | None = None,
        rest: str | None = None,
        graded: bool = False,
        encoding: Encoding = "ids",
        ignore_colors: list[tuple[int, int, int]] | None = None,
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.orientation, self.bands, self.rest, self.graded = orientation, bands, rest, graded
        self.root, self.images, self.annotations = root, images, annotations
        self.ignore, self.offset = ignore, offset
        self.image_suffix, self.labels_suffix, self.hold_out = image_suffix, labels_suffix, hold_out
        self.encoding, self.ignore_colors = encoding, ignore_colors or []
        self._label_of_color = self._colors(vocabulary) if encoding == "colors" else {}
        if self.ignore_colors and encoding != "colors":
            raise UserError(f"{self.title}: ignore_colors belong to encoding: colors")
        self._image_of: dict[str, str] = {}  # by stem
        self._labels_of: dict[str, str] = {}
        self._images = self._labels = Path()

    def locate(self, root: Path) -> None:
        wanted = folder(self.images), folder(self.annotations)
        _, (self._images,), (self._labels,) = locate(self, root, self.root, *wanted)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        images = list_images(self._images, self.image_suffix)
        together = self._images == self._labels
        maps = list_images(self._labels, self.labels_suffix or (".png" if together else None))
        if together:  # what is a map is no image
            images = sorted(set(images) - set(maps))
        self._image_of = by_stem(images, self._images, self.image_suffix)
        self._labels_of = by_stem(maps, self._labels, self.labels_suffix)
        stems = complete(self, self._image_of, self._labels_of, self._labels, on_problem)
        for stem in (lonely := sorted(set(self._labels_of) - set(self._image_of))):
            on_problem(f"{self._labels}: {self._labels_of[stem]} has no image in {self._images}", benign=True)
        self.counts["label_maps_without_an_image"] = len(lonely)
        if self.hold_out is not None:
            stems = [stem for stem in stems if self.hold_out.keeps(self._image_of[stem])]
        self._read(stems, self._table_of_values(), self._images, on_problem)

    def _table_of_values(self) -> NDArray[np.int32]:
        if self.encoding == "colors":
            return label_table({label + 1: label for label in range(len(self.vocabulary))}, 0, self.rest_label)
        values = {number - self.offset: label for number, label in self.vocabulary.index_of.items()}
        if min(values) < 0:
            raise UserError(f"{self.title}: offset {self.offset} gives values below 0 for the vocabulary's ids")
        return label_table(values, self.ignore, self.rest_label)

    def _colors(self, vocabulary: vocabularies.Classes) -> dict[int, int]:
        """Colour code -> label, or `VOID`.

        Raises:
            UserError: a class without a colour, or a colour that stands twice.
        """
        without = [] if isinstance(vocabulary, str) else [c.name for c in vocabulary if c.color is None]
        if without:
            raise UserError(f"{self.title}: encoding: colors: give {', '.join(without)} a color: [r, g, b]")
        if self.ignore != IGNORE:
            raise UserError(f"{self.title}: encoding: colors: name them in ignore_colors, not in ignore")
        stated = [*(spec.color for spec in self.vocabulary.classes), *self.ignore_colors]
        if twice := [color for color, count in Counter(map(tuple, stated)).items() if count > 1]:
            raise UserError(f"{self.title}: encoding: colors: the color {list(twice[0])} stands twice")
        labels = [*range(len(self.vocabulary)), *[VOID] * len(self.ignore_colors)]
        return {r + (g << 8) + (b << 16): label for (r, g, b), label in zip(stated, labels, strict=True)}

    def values(self, path: Path, size: tuple[int, int] | None) -> NDArray[Any]:
        if self.encoding == "ids":
            return super().values(path, size)
        colors = read_colors(path, self.title, size)
        if self.encoding == "ade":
            return colors[..., 0].astype(np.uint16) // 10 * 256 + colors[..., 1]
        runs = Runs.of(color_codes(colors) & np.uint32(0xFFFFFF))
        found, place = np.unique(runs.values, return_inverse=True)
        unknown = [code for code in found.tolist() if code not in self._label_of_color]
        if unknown and self.rest is None:
            some = ", ".join(str([code & 255, code >> 8 & 255, code >> 16]) for code in unknown[:3])
            raise UserError(
                f"{self.title}: {path} holds {len(unknown)} colours that are no class's, e.g. {some}: give them to"
                " classes or to ignore_colors, or say what they are with rest"
            )
        labels = [self._label_of_color.get(code, MAX_LABELS - 2) + 1 for code in found.tolist()]  # 0 is void
        return runs.filled(np.array(labels, dtype=np.uint16)[place])

    @property
    def where(self) -> str:
        return str(self._labels)

    @property
    def void_hint(self) -> str:
        if self.encoding == "colors":
            return ""
        return f" (value {self.ignore}; black and white masks of 0 and 255 are classes by id: 255, with another ignore)"

    def image_path(self, stem: str) -> Path:
        return self._images / self._image_of[stem]

    def labels_path(self, stem: str) -> Path:
        return self._labels / self._labels_of[stem]


def paired_stems(
    reader: Reader, images: Path, image_suffix: str, labels: Path, labels_suffix: str, on_problem: OnProblem
) -> list[str]:
    """Stems of all images in a folder, sorted; complains of images without a label map."""
    stems = {name.removesuffix(image_suffix): name for name in list_files(images, image_suffix)}
    found = {name.removesuffix(labels_suffix): name for name in list_files(labels, labels_suffix)}
    return complete(reader, stems, found, labels, on_problem)


def complete(
    reader: Reader, images: Mapping[str, str], labels: Mapping[str, str], folder: Path, on_problem: OnProblem
) -> list[str]:
    """Stems of the images that have a label map in ``folder``, both name by stem; complains of the others."""
    missing = [stem for stem in images if stem not in labels]
    if missing and on_problem is raise_problem:
        raise UserError(
            f"{reader.title}: {len(missing)} images have no label map in {folder}, e.g. {images[missing[0]]}"
        )
    for stem in missing:
        on_problem(f"{folder}: no label map of the image {images[stem]}")
    return [stem for stem in images if stem in labels]

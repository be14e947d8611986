"""PASCAL-Context, 59 and 459 classes: label PNGs, or the ``.mat`` files of the release."""

from __future__ import annotations

import io
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from data_modules import vocabularies
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.formats.label_maps import LabelMapReader
from data_modules.formats.reader import TaskName
from data_modules.layout import folder, locate
from dataseg.io.id_map import label_table
from dataseg.io.paths import inside, read_bytes
from dataseg.structures import VOID, UserError

_SOURCE = (
    "https://www.cs.stanford.edu/~roozbeh/pascal-context (trainval.tar.gz: the .mat files) and "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010 (VOCtrainval_03-May-2010.tar: the images)"
)

_MAT = "trainval"
"""Folder of the release's label files."""


class _PascalContext(LabelMapReader):
    """Image lists, images and ``.mat`` files are common to both sets of classes.

    Args:
        root: the VOC 2010 folder, below the data root or one folder down.
        image_list: text file of image names below ``root``, in place of
            ``ImageSets/SegmentationContext/{split}.txt``.
        vocabulary: name or file of the classes.
        tasks: evaluated tasks; training uses the first. Default: semantic.
        names: which names the text encoder sees.
    """

    source = _SOURCE

    def __init__(
        self,
        vocabulary: str,
        root: str = "VOCdevkit/VOC2010",
        split: Literal["train", "val"] = "val",
        image_list: str | None = None,
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self.root, self.split, self.image_list = root, split, image_list
        self._list = self._images = self._labels = Path()

    @abstractmethod
    def tables(self) -> dict[str, NDArray[np.int32]]:
        """Label folders that would do, best first, and what their values mean."""

    def locate(self, root: Path) -> None:
        wanted = (
            [(self.image_list or f"ImageSets/SegmentationContext/{self.split}.txt",)],
            folder("JPEGImages"),
            [(name,) for name in self.tables()],
        )
        _, (self._list,), (self._images,), (self._labels,) = locate(self, root, self.root, *wanted)

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        try:
            stems = read_bytes(self._list).decode().split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.title}: {self._list} is not a readable list of image names ({error})") from error
        self._read(stems, self.tables()[self._labels.name], self._list, on_problem)

    def image_path(self, stem: str) -> Path:
        return inside(self._images, f"{stem}.jpg")

    def labels_path(self, stem: str) -> Path:
        return inside(self._labels, stem + (".mat" if self._holds_mat else ".png"))

    @property
    def _holds_mat(self) -> bool:
        return self._labels.name == _MAT

    def values(self, path: Path, size: tuple[int, int] | None) -> NDArray[Any]:
        return super().values(path, size) if not self._holds_mat else read_mat(path, self.title, size)


class PascalContext59(_PascalContext):
    """The 59 most frequent classes, background not scored.

    Labels are ``SegmentationClassContext/*.png`` (0 = background, 1..59 in alphabetical order), or else the release's
    ``trainval/*.mat``, whose 459 classes are reduced to the 59 of the same name.
    """

    title = "PASCAL-Context 59"

    def __init__(self, vocabulary: str = "pascal_context_59", **options: Any) -> None:
        super().__init__(vocabulary, **options)

    def tables(self) -> dict[str, NDArray[np.int32]]:
        label_of = {c.name: label for label, c in enumerate(self.vocabulary.classes)}
        all_classes = vocabularies.load("pascal_context_459").classes
        reduced = label_table({c.id: label_of.get(c.name, VOID) for c in all_classes})
        png = label_table(self.vocabulary.index_of)
        return {"SegmentationClassContext": png, _MAT: reduced}


class PascalContext459(_PascalContext):
    """All 459 classes, from the release's ``trainval/*.mat``.

    (The 16-bit TIFFs of ODISE's preparation are read by `LabelMaps` with ``ignore=65535`` and ``offset=1``.)
    """

    title = "PASCAL-Context 459"

    def __init__(self, vocabulary: str = "pascal_context_459", **options: Any) -> None:
        super().__init__(vocabulary, **options)

    def tables(self) -> dict[str, NDArray[np.int32]]:
        return {_MAT: label_table(self.vocabulary.index_of)}


def read_mat(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """``LabelMap`` of a release file, unsigned ``[H, W]``, 0 = no class.

    Raises:
        UserError: unreadable, without a label map, or of another size.
    """
    try:
        labels = np.asarray(loadmat(io.BytesIO(read_bytes(path)), variable_names=["LabelMap"])["LabelMap"])
    except Exception as error:  # scipy lets struct, zlib, type and many other errors through
        raise UserError(f"{dataset}: {path} is not a readable label file ({error!r})") from error
    if labels.ndim != 2 or labels.dtype.kind not in "ui" or (size is not None and labels.shape != tuple(size)):
        raise UserError(f"{dataset}: {path} holds {labels.dtype} {labels.shape}, its image is {size}")
    return labels

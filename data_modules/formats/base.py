"""What every reader offers, and how missing data are reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.formats.index import Index
from dataseg.structures import Target, Task, UserError, Vocabulary

TaskName = Literal["semantic", "panoptic", "instance"]
"""A `Task` as it is written in a configuration file."""

ImageArray = NDArray[np.uint8]
"""Uint8 ``[H, W, 3]``, RGB."""


class MissingDataError(Exception):
    """A data set is not where it was looked for.

    Attributes:
        dataset: what it is called in public.
        looked_for: every path that would have done.
        source: where to get it.
    """

    def __init__(self, dataset: str, looked_for: Sequence[Path], source: str) -> None:
        self.dataset = dataset
        self.looked_for = list(looked_for)
        self.source = source
        places = "\n".join(f"    {path}" for path in self.looked_for)
        super().__init__(f"{dataset}: looked for\n{places}\n  get it from {source}")


class Reader(ABC):
    """One split of one data set in its official on-disk layout.

    A reader is cheap to build: nothing is read before `setup`. It gives images and targets at their original size;
    augmentation and collation happen elsewhere.

    Attributes:
        title: what the data set is called in public.
        source: where to get it.
        gives: what its targets are. Boxes can be trained on, not evaluated.
        counts: what `setup` dropped or mended, e.g. ``{"duplicate_boxes": 3}``.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    gives: ClassVar[Literal["map", "boxes", "masks"]]
    default_tasks: ClassVar[tuple[Task, ...]]

    def __init__(self, vocabulary: str, tasks: list[TaskName] | None, names: vocabularies.Names) -> None:
        self.vocabulary: Vocabulary = vocabularies.load(vocabulary, names)
        self.tasks: tuple[Task, ...] = tuple(Task(task) for task in tasks) if tasks else self.default_tasks
        self.counts: dict[str, int] = {}
        if self.gives == "boxes" and Task.SEMANTIC in self.tasks:
            raise UserError(f"{self.title}: boxes cannot serve a semantic task, use instance or panoptic")

    @abstractmethod
    def setup(self, root: Path) -> None:
        """Find the files below ``root`` and read the index. Called once, before anything else.

        Raises:
            MissingDataError: a folder or file of the data set is not there.
            UserError: an annotation file is malformed; names file and record.
        """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_id(self, index: int) -> str:
        """The annotation file's own id, as text."""

    @abstractmethod
    def load(self, index: int) -> tuple[ImageArray, Target]:
        """Image, uint8 ``[H, W, 3]`` RGB, and its target at the same size, crowds and stated areas included.

        Raises:
            UserError: an unreadable or inconsistent file; names the file and the data set.
        """

    def __getitem__(self, index: int) -> tuple[ImageArray, Target]:
        return self.load(index)


class IndexedReader(Reader):
    """A reader whose images and segments stand in an annotation file."""

    def __init__(self, vocabulary: str, tasks: list[TaskName] | None, names: vocabularies.Names) -> None:
        super().__init__(vocabulary, tasks, names)
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        if self._index is None:
            raise RuntimeError(f"{self.title}: call setup() first")
        return self._index

    def __len__(self) -> int:
        return len(self.index)

    def image_id(self, index: int) -> str:
        return self.index.image(index).id

    @abstractmethod
    def image_path(self, file_name: str) -> Path:
        """Where the image lies that the annotation file calls ``file_name``."""

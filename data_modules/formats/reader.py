"""What every reader offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from data_modules import vocabularies
from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.table import Index
from dataseg.io.bands import Bands
from dataseg.io.coco import named
from dataseg.io.images import EncodedImage, ImageArray, open_image
from dataseg.structures import VOID, Target, Task, UserError, Vocabulary

TaskName = Literal["semantic", "panoptic", "instance"]
"""A `Task` as it is written in a configuration file."""
Orientation = Literal["upright", "stored"]
Crowds = Literal["ignore", "train"]
Overlaps = Literal["smaller_on_top", "later_on_top"]


K = TypeVar("K")


STAT_FILES = 20_000
"""Samples of a dataset whose files are looked at for its fingerprints."""


class SegmentSizes(NamedTuple):
    """All segments or boxes of a dataset.

    Attributes:
        image: int64, index of the image a segment is in.
        label: int64.
        area: float64, pixels.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    area: NDArray[np.float64]


class Reader(ABC):
    """One split of one dataset in its official on-disk layout.

    A reader is cheap to build: nothing is looked for before `locate` and nothing read before `read`. It gives images
    and targets at their original size; augmentation and collation happen elsewhere.

    Attributes:
        title: what the dataset is called in public.
        source: where to get it.
        gives: what its targets are. Boxes can be trained on, not evaluated.
        counts: what `read` dropped or mended, e.g. ``{"duplicate_boxes": 3}``.
        orientation: of images: turned "upright" by their EXIF data, as labelling tools show them, or as "stored",
            which is what official annotations are drawn on; None = stored for shipped vocabularies, else upright.
        bands: of images that do not say by themselves what is to be seen of them.
        areas: of panoptic segments: as the annotation file states them, or counted in the map.
        rest: what becomes of all that is of no class of the vocabulary, see `rest_label`.
        graded: whether neighbours in number may be neighbours in the picture, as grades are; else label maps whose
            borders pass through the numbers between are refused as blurred.
        overlaps: which mask lies on top, where a map is painted from masks, see `data_modules.formats.painting`.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    gives: Literal["map", "boxes", "masks"]
    default_tasks: ClassVar[tuple[Task, ...]]
    areas: Literal["stored", "recounted"] = "stored"
    orientation: Orientation | None = None
    bands: Bands | None = None
    rest: str | None = None
    overlaps: Overlaps = "smaller_on_top"
    graded: bool = True

    def __init__(
        self, vocabulary: vocabularies.Classes | None, tasks: list[TaskName] | None, names: vocabularies.Names
    ) -> None:
        self._vocabulary = None if vocabulary is None else vocabularies.resolve(vocabulary, names)
        self.tasks: tuple[Task, ...] = tuple(Task(task) for task in tasks) if tasks else self.default_tasks
        self.counts: dict[str, int] = {}
        if self.gives == "boxes" and Task.SEMANTIC in self.tasks:
            raise UserError(f"{self.title}: boxes cannot serve a semantic task, use instance or panoptic")

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, as configured or as the files state them."""
        if self._vocabulary is None:
            raise RuntimeError(f"{self.title}: call read_classes() first")
        return self._vocabulary

    @property
    def rest_label(self) -> int | None:
        """What becomes of all that is of no class of the vocabulary; None = it is refused.

        In maps, ``rest`` is "void" (`VOID`: no loss and no score is taken there) or a class of the vocabulary. Boxes
        and masks can only be left out, so that their pixels are background (`VOID` as well): "background".

        Raises:
            UserError: ``rest`` is none of these.
        """
        if self.rest is None:
            return None
        names = self.vocabulary.names if self.gives == "map" else []
        if self.rest == ("void" if self.gives == "map" else "background"):
            return VOID
        if self.rest not in names:
            wanted = (
                f"void, or a class of the vocabulary: {', '.join(names)}"
                if self.gives == "map"
                else f"background: {self.gives} of other classes can only be left out"
            )
            raise UserError(f"{self.title}: rest: {self.rest}: wanted is {wanted}")
        return names.index(self.rest)

    def with_rest(self, index_of: Mapping[K, int]) -> dict[K, int]:
        """Ids, or names, -> label; `VOID` for all others where ``rest`` says what becomes of them."""
        return dict(index_of) if self.rest_label is None else _WithRest(index_of)

    @property
    def rest_settings(self) -> dict[str, str]:
        """What an index depends on beside the labels."""
        return {} if self.rest is None else {"rest": self.gives}

    @property
    def where(self) -> str:
        """What to call it in messages: its annotation file, or its title."""
        return self.title

    @property
    def counted(self) -> list[str]:
        """``counts`` in words: "3 duplicate boxes"."""
        return [f"{count:,} {what.replace('_', ' ')}" for what, count in self.counts.items() if count]

    @property
    def void_hint(self) -> str:
        """What to say after the share of pixels that are void."""
        return ""

    @property
    def upright(self) -> bool:
        """Whether images are turned by their EXIF orientation."""
        chosen = self.orientation or ("stored" if vocabularies.is_shipped(self.vocabulary) else "upright")
        return chosen == "upright"

    def read_classes(self, root: Path) -> None:
        """Take the classes from the files below ``root``, where the configuration leaves them out.

        Raises:
            MissingDataError: as `locate`.
            UserError: the files state none.
        """
        if self._vocabulary is None:
            self.locate(root)
            stated = self.stated_classes()
            with named(self.where):
                self._vocabulary = vocabularies.resolve(stated)

    def stated_classes(self) -> list[vocabularies.OwnClass]:
        """The classes that the located files state."""
        raise UserError(f"{self.title}: its files name no classes: give vocabulary")

    @abstractmethod
    def locate(self, root: Path) -> None:
        """Find all files below ``root``. Opens none of them, so that a missing one shows within a second.

        Raises:
            MissingDataError: files or folders of the dataset are not there; names all of them.
        """

    @abstractmethod
    def read(self, on_problem: OnProblem = raise_problem) -> None:
        """Read the index of what `locate` found. Called once, before any image is asked for.

        Args:
            on_problem: told what is wrong, by file and record. The usual one raises.

        Raises:
            UserError: an annotation file is malformed beyond single records; names the file.
        """

    def setup(self, root: Path) -> None:
        """`read_classes`, `locate`, then `read`."""
        self.read_classes(root)
        self.locate(root)
        self.read()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_id(self, index: int) -> str:
        """The annotation file's own id, as text."""

    @abstractmethod
    def open(self, index: int) -> tuple[EncodedImage, Target]:
        """The image, not decoded yet, and its target at the same size, crowds and stated areas included.

        Raises:
            UserError: an unreadable or inconsistent file; names the file and the dataset.
        """

    def open_image(self, path: Path, size: tuple[int, int] | None = None) -> EncodedImage:
        """An image of this dataset, turned and seen as configured; ``size`` is the one stated, see `open_image`."""
        return open_image(path, self.title, size, self.upright, self.bands)

    def load(self, index: int) -> tuple[ImageArray, Target]:
        """`open`, with the image decoded: uint8 ``[H, W, 3]``, RGB."""
        encoded, target = self.open(index)
        return encoded.decode(), target

    def files(self, index: int) -> list[Path]:
        """The image and what is annotated of it alone, as far as they are files; there or not.

        Raises:
            UserError: a name that leads out of its folder.
        """
        return []

    def doubts(self, index: int) -> list[str]:
        """What is doubtful about the annotations of one image, though they can be read; names file and remedy."""
        return []

    def fingerprints(self) -> NDArray[np.uint32]:
        """A number of each sample, ``[N]``, by which it is seen whether a dataset is the one that a run began with.

        It depends on names and, of up to `STAT_FILES` samples, on the sizes of their files: on network storage more
        would take minutes.
        """
        return np.array([crc32(self._trace(index).encode()) for index in range(len(self))], dtype=np.uint32)

    def _trace(self, index: int) -> str:
        files = self.files(index) if len(self) <= STAT_FILES else []
        return f"{self.image_id(index)} {[file.stat().st_size for file in files if file.is_file()]}"

    def sizes(self) -> SegmentSizes | None:
        """Class and area of every segment, if they are known without opening an image."""
        return None


class _WithRest(dict[K, int]):
    """Labels, `VOID` for what is not in it."""

    def __missing__(self, key: K) -> int:
        return VOID


class IndexedReader(Reader):
    """A reader whose images and segments stand in an annotation file.

    Attributes:
        crowds: "ignore" annotations that are marked as crowds, or "train" on them as on others.
    """

    crowds: Crowds = "ignore"

    def __init__(
        self, vocabulary: vocabularies.Classes | None, tasks: list[TaskName] | None, names: vocabularies.Names
    ) -> None:
        super().__init__(vocabulary, tasks, names)
        self._annotations = Path()  # until `locate` finds it
        self._index: Index | None = None

    @property
    def where(self) -> str:
        return self.title if self._annotations == Path() else str(self._annotations)

    @property
    def train_crowds(self) -> bool:
        return self.crowds == "train"

    @property
    def crowd_settings(self) -> dict[str, str]:
        """What a stored index's key says of crowds."""
        return {"crowds": self.crowds} if self.train_crowds else {}

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

    def files(self, index: int) -> list[Path]:
        return [self.image_path(self.index.image(index).file_name)]

    def fingerprints(self) -> NDArray[np.uint32]:
        found = self.index.fingerprints()
        return found ^ super().fingerprints() if len(self) <= STAT_FILES else found

    def sizes(self) -> SegmentSizes | None:
        if self.index.has("area"):
            area = self.index.all("area").astype(np.float64)
        elif self.index.has("xyxy"):
            xyxy = self.index.all("xyxy").astype(np.float64)
            area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
        else:
            return None
        if not (area >= 0).all():  # some are not stated
            return None
        label = self.index.all("label").astype(np.int64)
        known = label != VOID
        image = np.repeat(np.arange(len(self)), self.index.lengths())
        return SegmentSizes(image[known], label[known], area[known])

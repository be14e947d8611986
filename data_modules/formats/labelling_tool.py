"""What labelling tools export, as boxes or instance masks: base of one reader per tool."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pycocotools import mask as coco_mask

from data_modules import vocabularies
from data_modules.annotation_index.coco_json import RECORD, RECORD_WITH_AREA, clean_boxes
from data_modules.annotation_index.problems import MISTAKES, OnProblem, raise_problem, reason_of
from data_modules.annotation_index.table import Index, image_batch
from data_modules.formats.coco_boxes import boxes_of
from data_modules.formats.coco_instances import masks_of
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.painting import gives_of, painted, require_rest
from data_modules.formats.reader import IndexedReader, Overlaps, TaskName
from data_modules.layout import folder, locate
from dataseg.io.bands import Bands
from dataseg.io.images import EncodedImage
from dataseg.io.paths import IMAGE_SUFFIXES, FileNames
from dataseg.io.rle import encode_mask, mask_of
from dataseg.structures import VOID, Target, Task, UserError

Array = np.ndarray[Any, np.dtype[Any]]
Points = Sequence[Sequence[float]]
"""(x, y) of a polygon's corners, pixels."""


@dataclass
class Shape:
    """One object, or a part of one, in pixels of the image.

    Attributes:
        label: name of its class.
        where: which record it is, for messages.
        box: (left, top, right, bottom), if it is one.
        polygon: corners, if it is one.
        mask: bool ``[H, W]``, if it is one.
        group: polygons of one class and group are parts of one object; None = an object of its own.
    """

    label: str
    where: str
    box: tuple[float, float, float, float] | None = None
    polygon: Points | None = None
    mask: Array | None = None
    group: Any = None


@dataclass
class LabelledImage:
    """What a tool's files say of one image.

    Attributes:
        names: of the image file, as stated; the first that is there counts.
        size: (H, W) as stated; None = not stated.
        shapes: its objects.
        where: file, and record in it, for messages.
    """

    names: Sequence[str]
    size: tuple[int, int] | None
    shapes: list[Shape]
    where: str


class LabellingTool(IndexedReader):
    """A reader of one tool's files; subclasses say what stands in them.

    Records that cannot be read are errors that name file and record. What is stated but is neither a box nor a mask,
    such as points, lines and tags, is counted in ``counts``, as are images without a record.

    Args:
        root: the dataset's folder, below the data root.
        annotations: file or folder of annotations below ``root``.
        images: image folder below ``root``; the folders in it are searched too.
        vocabulary: name or file of the classes, or the classes themselves, which are known by their names; None = as
            the files state them, else those that occur.
        targets: boxes to train on, or instance masks: a box is then an instance without a mask.
        tasks: evaluated tasks; training uses the first. Default: instance.
        names: which names the text encoder sees.
        hold_out: a part of the images, where the files know none.
        bands: of images of many bands or of fractions: which are seen, and which values are black and white.
        rest: what becomes of objects of other classes than the vocabulary's; None = they are refused. Of boxes and
            masks: "background" leaves them out. For panoptic and semantic tasks a map is painted from the masks:
            "void", or a class of the vocabulary, stands for other classes and for pixels without an object, and must
            be given.
        overlaps: of painted masks: "smaller_on_top", or "later_on_top", in the order of the file.
    """

    default_tasks = (Task.INSTANCE,)
    orientation = "upright"
    remedy: ClassVar[str]
    """What to do about a malformed record."""

    def __init__(
        self,
        root: str,
        annotations: str,
        images: str,
        vocabulary: vocabularies.Classes | None = None,
        targets: Literal["boxes", "masks"] = "masks",
        tasks: list[TaskName] | None = None,
        names: vocabularies.Names = "corrected",
        hold_out: HoldOut | None = None,
        bands: Bands | None = None,
        rest: str | None = None,
        overlaps: Overlaps = "smaller_on_top",
    ) -> None:
        self.gives = targets
        super().__init__(vocabulary, tasks, names)
        self.bands, self.rest, self.overlaps = bands, rest, overlaps
        if targets == "masks":
            self.gives = gives_of(self.title, self.tasks)
        self.root, self.annotations, self.images, self.hold_out = root, annotations, images, hold_out
        self._images = Path()
        self._stated: tuple[list[str] | None, list[LabelledImage]] | None = None  # classes, images
        self._on_problem: OnProblem = raise_problem

    # ------------------------------------------------------------------------------------ what a tool states

    @abstractmethod
    def labelled_images(self) -> Iterator[LabelledImage]:
        """All images that the files state, with their objects."""

    def class_names(self) -> list[str] | None:
        """Names of the classes in the files' order; None if they state no list."""
        return None

    @property
    def states_all_images(self) -> bool:
        """Whether an image of the folder without a record is worth telling: not where there are lists of parts."""
        return True

    @contextmanager
    def record(self, where: str, found: Any = None) -> Iterator[None]:
        """Read one record: what goes wrong in it is told with file, record and remedy, and the record is left out.

        Args:
            found: the record, for the message.
        """
        try:
            yield
        except MISTAKES as error:
            if str(error).startswith((f"{where}:", f"{where},")):  # a record within this one has been told
                raise
            self._on_problem(f"{where}: {reason_of(error, found)}. {self.remedy}")

    def unused(self, what: str, count: int = 1) -> None:
        """Count statements that cannot be used."""
        self.counts[what] = self.counts.get(what, 0) + count

    # ------------------------------------------------------------------------------------------------ Reader

    def locate(self, root: Path) -> None:
        wanted = [(self.annotations,)], folder(self.images)
        _, (self._annotations,), (self._images,) = locate(self, root, self.root, *wanted)

    def stated_classes(self) -> list[vocabularies.OwnClass]:
        found, images = self._read_files(raise_problem)
        if found is None:
            found = sorted({shape.label for image in images for shape in image.shapes})
        if not found:
            counted = f" ({', '.join(self.counted)})" if self.counts else ""
            raise UserError(f"{self.title}: {self._annotations} states no class and has no labelled object{counted}")
        return [vocabularies.OwnClass(name, number) for number, name in enumerate(dict.fromkeys(found))]

    def _read_files(self, on_problem: OnProblem) -> tuple[list[str] | None, list[LabelledImage]]:
        """Classes and images as stated. Read once: `read` takes what `stated_classes` has read."""
        if self._stated is None:
            self._on_problem = on_problem
            self.counts = {}
            self._stated = self.class_names(), list(self.labelled_images())
        return self._stated

    def read(self, on_problem: OnProblem = raise_problem) -> None:
        require_rest(self)
        files = FileNames(self._images)
        stated, images = self._read_files(on_problem)
        self._stated, self._on_problem = None, on_problem
        self._compare_classes(stated, on_problem)
        found = self._find(images, files, on_problem)
        of_image: list[tuple[str, tuple[int, int], list[tuple[Any, ...]], list[bytes]]] = []
        for name, image in found.items():
            if self.hold_out is None or self.hold_out.keeps(name):
                with self.record(image.where):
                    size = image.size or self.open_image(self._images / name).size
                    of_image.append((name, size, *self._rows(image, size)))
        if not of_image:
            raise UserError(f"{self.title}: {self._annotations} has no image{self._of_part()} in {self._images}")
        self._index = self._table(of_image)
        if (
            self.gives != "boxes"
            and len(self.index.all("label"))
            and self.counts["without_mask"] == len(self.index.all("label"))
        ):
            raise UserError(f"{self.title}: {self._annotations} has boxes and no mask: set targets: boxes")

    def _of_part(self) -> str:
        return f" of the part {self.hold_out.part} (share {self.hold_out.share})" if self.hold_out else ""

    def _compare_classes(self, stated: list[str] | None, on_problem: OnProblem) -> None:
        missing = [c.name for c in self.vocabulary.classes if stated is not None and not {*c.file_names} & {*stated}]
        if stated is not None and missing:
            on_problem(
                f"{self._annotations}: states the classes {', '.join(stated)}; {', '.join(missing)} of the vocabulary "
                "cannot occur",
                benign=True,
            )
            self.unused("classes_the_file_does_not_state", len(missing))

    def _find(self, images: list[LabelledImage], files: FileNames, on_problem: OnProblem) -> dict[str, LabelledImage]:
        """The images that are there, by the name of their file."""
        found: dict[str, LabelledImage] = {}
        missing = []
        for image in images:
            with self.record(image.where):
                name = next(filter(None, map(files.find, image.names)), None)
                if name is None:
                    missing.append(f"{image.names[0]!r} ({image.where})")
                elif name in found:
                    raise UserError(f"image {name} stands in {found[name].where} already")
                else:
                    found[name] = image
        if missing:
            on_problem(
                f"{len(missing)} of {len(images)} images are not in {self._images}, e.g. {missing[0]}: put them there,"
                " or take their records out"
            )
        pictures = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in files.names)
        self.counts |= {
            "names_found_in_another_form": files.others,
            "images_missing": len(missing),
            "images_without_a_record": pictures - len(found) if self.states_all_images else 0,
        }
        return found

    def _rows(self, image: LabelledImage, size: tuple[int, int]) -> tuple[list[tuple[Any, ...]], list[bytes]]:
        """Index rows of an image's objects: (label, xyxy, area), and their masks."""
        rows, rles = [], []
        label_of = self.with_rest(self.vocabulary.label_of_name)
        for parts in _objects(image.shapes):
            with self.record(f"{image.where}: {parts[0].where}"):
                if parts[0].label not in label_of and self.rest is None:
                    known = ", ".join(label_of)
                    raise UserError(f"its class {parts[0].label!r} is none of the vocabulary ({known})")
                label = label_of[parts[0].label]
                if label == VOID and self.gives != "map":
                    self.unused("of_other_classes")
                    continue
                corners = np.concatenate([_corners(part) for part in parts])
                if not np.isfinite(corners).all():
                    raise UserError("it has coordinates that are not finite numbers")
                rle = _mask(parts, size) if self.gives != "boxes" else b""
                area = float(coco_mask.area({"size": list(size), "counts": rle})) if rle else 0.0
                rows.append((label, (*corners.min(axis=0), *corners.max(axis=0)), area))
                rles.append(rle)
        return rows, rles

    def _table(self, images: list[tuple[str, tuple[int, int], list[tuple[Any, ...]], list[bytes]]]) -> Index:
        names = [name.encode() for name, *_ in images]
        sizes = np.array([size for _, size, *_ in images], dtype=np.int32)
        flat = [(k, label, xyxy, False, area) for k, image in enumerate(images) for label, xyxy, area in image[2]]
        table = np.array(flat, dtype=RECORD_WITH_AREA)
        if self.gives == "boxes":
            kept, dropped = clean_boxes(table[list(RECORD.names or ())].astype(RECORD), sizes)
            columns: dict[str, Any] = {name: np.ascontiguousarray(kept[name]) for name in ("xyxy", "label")}
        else:
            kept, rles = table, [rle for *_, rles in images for rle in rles]
            dropped = {"without_mask": sum(not rle for rle in rles)}
            columns = {name: np.ascontiguousarray(kept[name]) for name in ("xyxy", "label", "is_crowd", "area")}
            columns["rle"] = rles
        self.counts |= dropped
        per_image = np.bincount(kept["image"], minlength=len(images))
        return Index([image_batch(names, names, sizes, per_image, columns)])

    def image_path(self, file_name: str) -> Path:
        return self._images / file_name  # as it was found there

    def open(self, index: int) -> tuple[EncodedImage, Target]:
        row = self.index.image(index)
        image = self.open_image(self.image_path(row.file_name), row.size)
        if self.gives == "boxes":
            return image, boxes_of(self.index, index)
        return image, painted(self, masks_of(self.index, index))


def _objects(shapes: list[Shape]) -> list[list[Shape]]:
    """Shapes by object: those of one class and group are one, if they all have a mask of their own."""
    objects: dict[Any, list[Shape]] = {}
    for number, shape in enumerate(shapes):
        grouped = shape.group is not None and shape.box is None
        objects.setdefault((shape.label, shape.group) if grouped else number, []).append(shape)
    return list(objects.values())


def _corners(shape: Shape) -> Array:
    """Points whose bounds are the shape's box, ``[P, 2]``."""
    if shape.box is not None:
        left, top, right, bottom = shape.box
        if right < left or bottom < top:
            raise UserError(f"its box ends before it begins: {shape.box} (left, top, right, bottom)")
        return np.array([[left, top], [right, bottom]], dtype=np.float64)
    if shape.mask is not None:
        rows, columns = shape.mask.nonzero()
        if not len(rows):
            raise UserError("its mask has no pixel inside")
        return np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], dtype=np.float64)
    points = np.asarray(shape.polygon, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 3:
        raise UserError(f"a polygon is at least three x, y pairs, found {str(shape.polygon)[:80]}")
    return points


def _mask(parts: list[Shape], size: tuple[int, int]) -> bytes:
    """Compressed run lengths of an object; empty if it is a box."""
    if parts[0].mask is not None:
        mask = np.any([part.mask for part in parts if part.mask is not None], axis=0)
        return bytes(encode_mask(mask)["counts"])
    polygons = [
        np.asarray(part.polygon, dtype=np.float64).ravel().tolist() for part in parts if part.polygon is not None
    ]
    rle = mask_of(polygons, *size)
    return b"" if rle is None else bytes(rle["counts"])


def ellipse(numbers: Sequence[float], degrees: float = 0) -> Points:
    """64 points of an ellipse of (x, y, radius along x, along y) that is turned clockwise, as images have it."""
    x, y, radius_x, radius_y = numbers
    angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    turned = _turned(np.stack([radius_x * np.cos(angle), radius_y * np.sin(angle)], axis=1), degrees)
    return (turned + np.array([x, y])).tolist()  # type: ignore[no-any-return]


def box_around(numbers: Sequence[float], degrees: float) -> tuple[float, float, float, float]:
    """Bounds of a box (x, y, width, height) that is turned clockwise about its top left corner (x, y)."""
    x, y, width, height = numbers
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
    turned = _turned(corners, degrees) + np.array([x, y])
    return (*turned.min(axis=0).tolist(), *turned.max(axis=0).tolist())


def _turned(points: Array, degrees: float) -> Array:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: Array = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


def pasted(part: Array, left: int, top: int, size: tuple[int, int]) -> Array:
    """A mask ``[h, w]`` at its place in one of the whole image, bool ``[H, W]``; what lies outside is cut off."""
    whole = np.zeros(size, dtype=bool)
    rows, columns = np.asarray(part, dtype=bool).nonzero()
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    whole[rows[inside], columns[inside]] = True
    return whole

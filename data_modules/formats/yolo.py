"""YOLO text files: detection (boxes) and segmentation (polygons), with a ``data.yaml``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape
from data_modules.layout import MissingDataError, locate
from dataseg.io.paths import IMAGE_SUFFIXES, exists, walk
from dataseg.io.text_files import read_text
from dataseg.structures import UserError

NAMES_SUFFIXES = (".txt", ".names")
"""Of files that hold class names alone."""

_SLACK = 0.01  # a share of the image beyond its edge that is rounding


class Yolo(LabellingTool):
    """``images/train/a.jpg`` with ``labels/train/a.txt``: per line a class number and a box or a polygon.

    A box is x, y of its centre, width, height; all are shares of the image. A label file lies where ``images`` in the
    image's path is ``labels``, else beside the image. An image without one has no object. Names and folders stand in
    ``data.yaml``, see `LabellingTool`; or the names alone, one a line, in a ``classes.txt`` or ``obj.names``, as
    LabelImg, Label Studio and CVAT write them: then all images beside and below it count.

    Args:
        annotations: the ``data.yaml``, ``classes.txt`` or ``obj.names`` below ``root``.
        part: which of its lists of images: ``train``, ``val`` or ``test``.
    """

    title = "YOLO"
    source = "its owner: this reader serves exports of your own; https://docs.ultralytics.com/datasets/segment"
    remedy = "Mend the line, or export it again as YOLO: class x y width height, or class x1 y1 x2 y2 x3 y3 ..."

    def __init__(
        self,
        root: str,
        annotations: str = "data.yaml",
        part: Literal["train", "val", "test"] = "train",
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, ".", **options)
        self.part = part
        self._about: dict[str, Any] = {}
        self._folders: list[Path] = []

    def locate(self, root: Path) -> None:
        """Reads the ``data.yaml`` too, which says where the images lie."""
        _, (self._annotations,) = locate(self, root, self.root, [(self.annotations,)])
        self._images = self._annotations.parent
        if self._annotations.suffix in NAMES_SUFFIXES:
            self._images = self._images.parent if self._images.name == "labels" else self._images
            names = [line.strip() for line in read_text(self._annotations).splitlines()]
            self._about, self._folders = {"names": [name for name in names if name]}, [self._images]
            return
        self._about = read_data_yaml(self._annotations)
        entries = self._about.get(self.part)
        if not entries:
            raise UserError(f"{self._annotations}: has no {self.part!r}: name a folder of images there")
        stated = str(self._about.get("path") or ".")
        tried = [self._places(str(entry), stated) for entry in ([entries] if isinstance(entries, str) else entries)]
        there = [next((path for path in places if exists(path)), None) for places in tried]
        if None in there:
            missing = [places for places, found in zip(tried, there, strict=True) if found is None]
            raise MissingDataError(self.title, missing, self.source)
        self._folders = [path for path in there if path is not None]

    def _places(self, entry: str, stated: str) -> list[Path]:
        """Where a list of images may be, as ultralytics and exporters write it."""
        parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("..", ".", "/")]
        bases = [self._images / stated, self._images, self._images.parent]
        return list(dict.fromkeys([*(base / entry for base in bases[:2]), *(b.joinpath(*parts) for b in bases[1:])]))

    @property
    def states_all_images(self) -> bool:
        return False  # it looks for them in the folders of its part

    def class_names(self) -> list[str] | None:
        found = self._about.get("names")
        if isinstance(found, dict):
            return [str(found[number]) for number in sorted(found)]
        return None if found is None else [str(name) for name in found]

    def labelled_images(self) -> Iterator[LabelledImage]:
        names = self._about.get("names")
        by_number = dict(enumerate(names)) if isinstance(names, list) else names
        if not by_number:
            raise UserError(f"{self._annotations}: has no 'names': list the classes there, the first is number 0")
        without = 0
        for path in self._listed():
            file = label_file(path)
            name = path.relative_to(self._images).as_posix()
            if not exists(file):
                without += 1
                yield LabelledImage([name], self.open_image(path).size, [], str(path))
                continue
            with self.record(str(file)):
                size = self.open_image(path).size
                yield LabelledImage([name], size, list(self._shapes(file, size, by_number)), str(file))
        self.unused("images_without_a_label_file", without)

    def _listed(self) -> list[Path]:
        """All images of the part."""
        found = []
        for place in self._folders:
            if place.suffix == ".txt":
                lines = read_text(place).splitlines()
                found += [self._images / line.strip().removeprefix("./") for line in lines if line.strip()]
            else:
                found += [place / name for name in walk(place) if name.lower().endswith(IMAGE_SUFFIXES)]
        if not found:
            raise UserError(f"{self.title}: no image in {', '.join(map(str, self._folders))}")
        return found

    def _shapes(self, file: Path, size: tuple[int, int], by_number: dict[int, Any]) -> Iterator[Shape]:
        for number, line in enumerate(read_text(file).splitlines(), 1):
            if not line.strip():
                continue
            with self.record(f"{file}, line {number}", line.strip()):
                first, *shares = map(float, line.split())
                if first not in by_number:
                    known = f"0 to {max(by_number)}"
                    raise UserError(f"class {first:g} is none of {self._annotations.name}'s, {known}")
                yield _shape(str(by_number[int(first)]), shares, size, f"line {number}")


def _shape(label: str, shares: list[float], size: tuple[int, int], where: str) -> Shape:
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        hint = " (a box and the confidence of a prediction?)" if len(shares) == 5 else ""
        raise UserError(f"{len(shares)} numbers after the class, neither 4 of a box nor pairs of a polygon{hint}")
    if not all(-_SLACK <= share <= 1 + _SLACK for share in shares):
        raise UserError(f"{max(shares, key=abs):g} is no share of the image, 0 to 1: pixels or percent are not read")
    rows, columns = size
    if len(shares) == 4:
        x, y, width, height = (share * side for share, side in zip(shares, [columns, rows] * 2, strict=True))
        return Shape(label, where, box=(x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    pairs = zip(shares[::2], shares[1::2], strict=True)
    return Shape(label, where, polygon=[(x * columns, y * rows) for x, y in pairs])


def label_file(image: Path) -> Path:
    """Where an image's label file lies."""
    parts = list(image.parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_data_yaml(path: Path) -> dict[str, Any]:
    """A YOLO ``data.yaml``.

    Raises:
        UserError: unreadable, or no mapping.
    """
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not a readable YAML file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold 'train', 'val' and 'names', as YOLO's data.yaml does")
    names = content.get("names") or []
    if not isinstance(names, list | dict) or any(
        isinstance(name, list | dict) for name in (names.values() if isinstance(names, dict) else names)
    ):
        raise UserError(f"{path}: 'names' must be a list of names, or names by number")
    return content

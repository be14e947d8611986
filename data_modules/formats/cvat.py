"""CVAT for images 1.1: one XML file of boxes, polygons, ellipses and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape, ellipse, pasted
from dataseg.io.images import stated_size
from dataseg.io.xml_files import read_xml
from dataseg.structures import UserError


class CvatImages(LabellingTool):
    """``annotations.xml`` and its images. Polygons and masks with one ``group_id`` are parts of one object.

    A box that is turned counts by the box around it. Points, lines, cuboids, skeletons and tags are counted, not used.

    Args:
        subset: images of this subset only, as exports of a whole project have them.
    """

    title = "CVAT for images 1.1"
    source = "its owner: this reader serves exports of your own; https://docs.cvat.ai/docs/manual/advanced/formats"
    remedy = "Mend the record, or export the task again as 'CVAT for images 1.1'"

    def __init__(
        self,
        root: str,
        annotations: str = "annotations.xml",
        images: str = "images",
        subset: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, **options)
        self.subset = subset
        self._root: Element | None = None

    def _read(self) -> Element:
        if self._root is None:
            root = read_xml(self._annotations)
            if root.tag != "annotations" or root.find("track") is not None:
                raise UserError(f"{self._annotations}: not an export of images (a video's tracks?). {self.remedy}")
            self._root = root
        return self._root

    def class_names(self) -> list[str] | None:
        names = [(name.text or "").strip() for name in self._read().findall("meta//labels/label/name")]
        return names or None

    def labelled_images(self) -> Iterator[LabelledImage]:
        images = self._read().findall("image")
        if not images:
            raise UserError(f"{self._annotations}: has no <image>. {self.remedy}")
        for image in images:
            where = f"{self._annotations}: image {image.get('id')} ({image.get('name')})"
            if self.subset is not None and image.get("subset") != self.subset:
                continue
            with self.record(where):
                size = stated_size(image.attrib["height"], image.attrib["width"])
                shapes = [
                    s for k, item in enumerate(image, 1) for s in self._shape(item, f"<{item.tag}> {k}", size, where)
                ]
                yield LabelledImage([image.attrib["name"]], size, shapes, where)
        self._root = None

    def _shape(self, item: Element, which: str, size: tuple[int, int], where: str) -> Iterator[Shape]:
        def numbers(*names: str) -> tuple[float, ...]:
            return tuple(float(item.attrib[name]) for name in names)

        with self.record(f"{where}: {which}", dict(item.attrib)):
            label, group = item.get("label", ""), int(item.get("group_id") or 0) or None
            if item.tag == "box":
                left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
                turned = float(item.get("rotation") or 0)
                self.unused("turned_boxes", turned != 0)
                points = _around(left, top, right, bottom, turned)
                yield Shape(label, which, box=points)
            elif item.tag == "polygon":
                pairs = [tuple(map(float, pair.split(","))) for pair in item.attrib["points"].split(";")]
                yield Shape(label, which, polygon=pairs, group=group)
            elif item.tag == "ellipse":
                numbers_of = numbers("cx", "cy", "rx", "ry")
                yield Shape(label, which, polygon=ellipse(numbers_of, float(item.get("rotation") or 0)))
            elif item.tag == "mask":
                yield Shape(label, which, mask=_mask(item, size), group=group)
            else:
                self.unused(f"{item.tag}_not_used")


def _around(left: float, top: float, right: float, bottom: float, degrees: float) -> tuple[float, float, float, float]:
    """The box around one that is turned about its centre."""
    radians = np.radians(degrees)
    width, height = right - left, bottom - top
    half_x = (abs(width * np.cos(radians)) + abs(height * np.sin(radians))) / 2
    half_y = (abs(width * np.sin(radians)) + abs(height * np.cos(radians))) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def _mask(item: Element, size: tuple[int, int]) -> np.ndarray:
    """CVAT's run lengths go along the rows of the mask's box, pixels outside first."""
    left, top = (int(item.attrib[name]) for name in ("left", "top"))
    height, width = stated_size(item.attrib["height"], item.attrib["width"])
    runs = [int(run) for run in item.attrib["rle"].split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise UserError(f"run lengths that add up to {sum(runs)} pixels in a box of {width} x {height}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pasted(inside.reshape(height, width), left, top, size)

"""labelme: one JSON file of polygons, boxes, circles and masks per image."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape, ellipse, pasted
from dataseg.io.images import decode_labels, stated_size
from dataseg.io.json_files import read_json
from dataseg.io.paths import walk
from dataseg.structures import UserError


class Labelme(LabellingTool):
    """``a.json`` beside ``a.jpg``, as X-AnyLabeling writes them too.

    Polygons and masks of one class and ``group_id`` are parts of one object. Points and lines are counted, not used.
    """

    title = "labelme"
    source = "its owner: this reader serves folders of your own; https://github.com/wkentaro/labelme"
    remedy = "Mend the shape in labelme, and save the file again"

    def __init__(
        self,
        root: str,
        annotations: str = ".",
        images: str = ".",
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, **options)

    def labelled_images(self) -> Iterator[LabelledImage]:
        others = 0
        for name in walk(self._annotations):
            if not name.lower().endswith(".json"):
                continue
            path = self._annotations / name
            with self.record(str(path)):
                content = read_json(path)
                if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
                    others += 1
                    continue
                rows, columns = content.get("imageHeight"), content.get("imageWidth")
                size = stated_size(rows, columns) if rows and columns else None
                shapes = [
                    shape
                    for number, item in enumerate(content["shapes"], 1)
                    for shape in self._shape(item, number, size, str(path))
                ]
                folder = PurePosixPath(name).parent
                stated = str(content.get("imagePath") or "")
                names = [str(folder / PurePosixPath(stated.replace("\\", "/")).name), stated, str(folder / path.stem)]
                yield LabelledImage(names, size, shapes, str(path))
        self.unused("json_files_of_another_kind", others)

    def _shape(self, item: dict[str, Any], number: int, size: tuple[int, int] | None, file: str) -> Iterator[Shape]:
        which = f"shape {number} ({item.get('label')!r})"
        with self.record(f"{file}: {which}", item):
            label, kind, group = str(item["label"]), item.get("shape_type") or "polygon", item.get("group_id")
            points = np.asarray(item["points"], dtype=np.float64).reshape(-1, 2)
            if kind in ("polygon", "rotation"):  # a turned box of X-AnyLabeling
                yield Shape(label, which, polygon=points.tolist(), group=group)
            elif kind == "rectangle":
                if len(points) < 2:
                    raise UserError("a rectangle has two corners")
                yield Shape(label, which, box=(*points.min(axis=0).tolist(), *points.max(axis=0).tolist()))
            elif kind == "circle":
                centre, edge = points.tolist()
                radius = math.dist(centre, edge)
                yield Shape(label, which, polygon=ellipse([*centre, radius, radius]), group=group)
            elif kind == "mask" and size is not None:
                left, top = points.min(axis=0).astype(int).tolist()
                yield Shape(label, which, mask=pasted(_mask(item["mask"]), left, top, size), group=group)
            else:
                self.unused(f"{kind}_not_used")


def _mask(text: str) -> np.ndarray:
    """A mask's own box, kept as a PNG in base64."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise UserError(f"its mask is not base64 ({error})") from error
    return decode_labels(content, "its mask", None) > 0

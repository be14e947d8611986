"""Pascal VOC: one XML file of boxes per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape
from dataseg.io.images import stated_size
from dataseg.io.paths import walk
from dataseg.io.text_files import read_text
from dataseg.io.xml_files import read_xml
from dataseg.structures import UserError


class PascalVocBoxes(LabellingTool):
    """``Annotations/a.xml`` for ``JPEGImages/a.jpg``: boxes, whose first pixel is 1 and whose last belongs to them.

    Objects marked ``difficult`` are used as the others, and counted.

    Args:
        image_set: file below ``root`` with the stems of the images to use, such as ``ImageSets/Main/train.txt``.
    """

    title = "Pascal VOC boxes"
    source = "its owner: this reader serves exports of your own; http://host.robots.ox.ac.uk/pascal/VOC"
    remedy = "Mend the record, or export it again as Pascal VOC"

    def __init__(
        self,
        root: str,
        annotations: str = "Annotations",
        images: str = "JPEGImages",
        image_set: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, targets="boxes", **options)
        self.image_set = image_set

    @property
    def states_all_images(self) -> bool:
        return self.image_set is None

    def labelled_images(self) -> Iterator[LabelledImage]:
        wanted = None
        if self.image_set is not None:
            base = self._annotations.parents[len(PurePosixPath(self.annotations).parts) - 1]
            lines = read_text(base / self.image_set).splitlines()
            wanted = {line.split()[0] for line in lines if line.split()}
        for name in walk(self._annotations):
            if not name.lower().endswith(".xml") or (wanted is not None and PurePosixPath(name).stem not in wanted):
                continue
            path = self._annotations / name
            with self.record(str(path)):
                root = read_xml(path)
                if root.tag != "annotation":
                    raise UserError(f"its root is <{root.tag}>, not <annotation>")
                shapes = [
                    s for k, item in enumerate(root.findall("object"), 1) for s in self._shape(item, k, str(path))
                ]
                yield LabelledImage(
                    [root.findtext("filename") or "", PurePosixPath(name).stem], _size(root), shapes, str(path)
                )

    def _shape(self, item: Element, number: int, file: str) -> Iterator[Shape]:
        name = (item.findtext("name") or "").strip()
        with self.record(f"{file}: object {number} ({name})", {e.tag: e.text for e in item.iter()}):
            box = item.find("bndbox")
            if not name or box is None:
                raise UserError("an object has a <name> and a <bndbox>")
            left, top, right, bottom = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
            self.unused("difficult_objects", (item.findtext("difficult") or "0").strip() == "1")
            yield Shape(name, f"object {number}", box=(left - 1, top - 1, right, bottom))


def _size(root: Element) -> tuple[int, int] | None:
    rows, columns = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("height", "width"))
    return stated_size(rows, columns) if rows and columns else None

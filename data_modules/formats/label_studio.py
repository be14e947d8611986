"""Label Studio's JSON export: boxes, polygons, ellipses and brush masks, in percent of the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape, box_around, ellipse
from dataseg.io.images import stated_size
from dataseg.io.json_files import read_json
from dataseg.structures import UserError

_SLACK = 5.0  # percent of the image that shapes may reach out of it
_KINDS = ("rectangle", "polygon", "ellipse", "brush")


class LabelStudio(LabellingTool):
    """The export called JSON. Of several people's annotations of a task the first that was not cancelled counts.

    Boxes that are turned count by the box around them. Key points, choices and texts are counted, not used; so are
    tasks without an annotation.
    """

    title = "Label Studio"
    source = "its owner: this reader serves exports of your own; https://labelstud.io/guide/export"
    remedy = "Mend the region, or export the project again as JSON (not JSON-MIN)"

    def __init__(
        self,
        root: str,
        annotations: str = "project.json",
        images: str = "images",
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, **options)

    def labelled_images(self) -> Iterator[LabelledImage]:
        tasks = read_json(self._annotations)
        if not isinstance(tasks, list) or not all(isinstance(t, dict) and "data" in t for t in tasks):
            raise UserError(f"{self._annotations}: not a list of tasks with 'data'. {self.remedy}")
        for task in tasks:
            where = f"{self._annotations}: task {task.get('id')}"
            with self.record(where):
                made = task.get("annotations") or task.get("completions") or []  # as versions before 1.0 call them
                done = [a for a in made if not a.get("was_cancelled")]
                if not done:
                    self.unused("tasks_without_annotation")
                    self.unused("tasks_with_predictions_alone", bool(task.get("predictions")))
                    continue
                self.unused("annotations_of_further_people", len(done) - 1)
                yield self._image(task, done[0]["result"], where)

    def _image(self, task: dict[str, Any], regions: list[dict[str, Any]], where: str) -> LabelledImage:
        labels = {r.get("id"): r["value"]["labels"] for r in regions if r.get("type") == "labels"}
        sizes = {stated_size(r["original_height"], r["original_width"]) for r in regions if "original_width" in r}
        if len(sizes) > 1:
            raise UserError(f"its regions state different sizes of the image: {sorted(sizes)}")
        size = next(iter(sizes), None)
        shapes = []
        for number, region in enumerate(regions, 1):
            which = f"region {region.get('id', number)}"
            with self.record(f"{where}: {which}", region):
                kind = str(region.get("type", "")).removesuffix("labels")
                if kind not in _KINDS or size is None:
                    self.unused(f"{kind or 'label'}_not_used", region.get("type") != "labels")
                    continue
                if region.get("image_rotation"):
                    raise UserError(f"its image is turned by {region['image_rotation']} degrees: turn the file itself")
                value = region["value"]
                label = value.get(f"{kind}labels") or labels.get(region.get("id"))
                if not label:
                    self.unused("regions_without_a_class")
                    continue
                self.unused("further_labels_of_a_region", len(label) - 1)
                self.unused("turned_boxes", kind == "rectangle" and bool(value.get("rotation")))
                shapes.append(_shape(str(label[0]), kind, value, size, which))
        names = [str(v) for v in task["data"].values() if isinstance(v, str)]
        return LabelledImage([*filter(None, [task.get("file_upload")]), *names], size, shapes, where)


def _shape(label: str, kind: str, value: dict[str, Any], size: tuple[int, int], which: str) -> Shape:
    rows, columns = size

    def pixels(*keys: str) -> list[float]:
        """Percent of the width, of the height, and so on in turn."""
        _check_percent([float(value[key]) for key in keys])
        return [float(value[key]) / 100 * (rows if k % 2 else columns) for k, key in enumerate(keys)]

    degrees = float(value.get("rotation") or 0)
    if kind == "rectangle":
        return Shape(label, which, box=box_around(pixels("x", "y", "width", "height"), degrees))
    if kind == "ellipse":
        return Shape(label, which, polygon=ellipse(pixels("x", "y", "radiusX", "radiusY"), degrees))
    if kind == "polygon":
        _check_percent(np.array(value["points"], dtype=np.float64).ravel().tolist())
        points = np.array(value["points"], dtype=np.float64).reshape(-1, 2) / 100 * [columns, rows]
        return Shape(label, which, polygon=points.tolist())
    if value.get("format") != "rle":
        raise UserError(f"its brush has the format {value.get('format')!r}, wanted 'rle'")
    return Shape(label, which, mask=brush_mask(value["rle"], size))


def _check_percent(numbers: list[float]) -> None:
    if any(not -_SLACK <= number <= 100 + _SLACK for number in numbers):
        raise UserError(f"{max(numbers, key=abs):g} is no percent of the image, 0 to 100: pixels are not read")


def brush_mask(packed: list[int], size: tuple[int, int]) -> np.ndarray:
    """Label Studio's brush: RGBA values, packed by thi.ng/rle-pack, inside where alpha is; bool ``[H, W]``.

    A header of 32 bits (number of values), 5 (bits of a value less 1) and four times 4 (bits of a run's length less 1),
    then runs: a bit (1 = one value, repeated), two that choose one of the four widths, the length less 1, the value or
    values.

    Args:
        packed: bytes.
        size: of the image, as `stated_size` admits it.

    Raises:
        UserError: of another size, or cut off.
    """
    bits = np.unpackbits(np.array(packed, dtype=np.uint8)).astype(np.uint8)
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254))
    at = 0

    def read(width: int) -> int:
        nonlocal at
        at += width
        if at > len(text):
            raise UserError("its brush mask is cut off")
        return int(text[at - width : at], 2)

    count = read(32)
    if count != 4 * size[0] * size[1]:
        raise UserError(f"its brush mask has {count} values, not 4 x {size[0]} x {size[1]}")
    width = read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=np.uint8)
    place = 0
    while place < count:
        is_run = read(1)
        end = place + read(widths[read(2)]) + 1
        if end > count:
            raise UserError("its brush mask has more values than its image")
        values[place:end] = read(width) if is_run else [read(width) for _ in range(end - place)]
        place = end
    return values.reshape(*size, 4)[..., 3] > 127

"""VGG Image Annotator: a project, or its regions as JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from data_modules.formats.labelling_tool import LabelledImage, LabellingTool, Shape, ellipse
from dataseg.io.json_files import read_json
from dataseg.io.text_files import read_text
from dataseg.structures import UserError

_DEGREES = 57.29577951308232  # of a radian


class Via(LabellingTool):
    """Rectangles, polygons, circles and ellipses of VIA 1 and 2. Points and lines are counted, not used.

    Args:
        attribute: the region attribute that names the class; None = the only one there is.
    """

    title = "VGG Image Annotator"
    source = "its owner: this reader serves exports of your own; https://www.robots.ox.ac.uk/~vgg/software/via"
    remedy = "Mend the region, or save the project or export its annotations again"

    def __init__(
        self,
        root: str,
        annotations: str = "via_project.json",
        images: str = "images",
        attribute: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, annotations, images, **options)
        self.attribute = attribute

    def class_names(self) -> list[str] | None:
        """The options of the attribute, where the project lists them."""
        if self._annotations.suffix.lower() == ".csv":
            return None
        listed = (read_json(self._annotations).get("_via_attributes") or {}).get("region") or {}
        name = self.attribute or (next(iter(listed)) if len(listed) == 1 else None)
        options = (listed.get(name) or {}).get("options") if name else None
        return list(options) if options else None

    def labelled_images(self) -> Iterator[LabelledImage]:
        records = self._csv() if self._annotations.suffix.lower() == ".csv" else self._json()
        attribute = self._attribute(records)
        for key, record in records.items():
            where = f"{self._annotations}: {key}"
            with self.record(where):
                regions = record["regions"]
                regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
                shapes = [s for k, region in enumerate(regions) for s in self._shape(region, attribute, k, where)]
                yield LabelledImage([record["filename"]], None, shapes, where)

    def _json(self) -> dict[str, dict[str, Any]]:
        content = read_json(self._annotations)
        records = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
        if not records or not all(isinstance(r, dict) and "filename" in r and "regions" in r for r in records.values()):
            raise UserError(f"{self._annotations}: not a VIA project, nor its annotations as JSON. {self.remedy}")
        return dict(records)

    def _csv(self) -> dict[str, dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        rows = csv.DictReader(io.StringIO(read_text(self._annotations)))
        for number, row in enumerate(rows, 2):
            with self.record(f"{self._annotations}: line {number}"):
                name = row.get("filename") or row["#filename"]
                record = records.setdefault(name, {"filename": name, "regions": []})
                region = {key: json.loads(row[key]) for key in ("region_shape_attributes", "region_attributes")}
                if region["region_shape_attributes"]:
                    record["regions"].append({key.removeprefix("region_"): value for key, value in region.items()})
        for record in records.values():
            for region in record["regions"]:
                region["region_attributes"] = region.pop("attributes")
        return records

    def _attribute(self, records: dict[str, dict[str, Any]]) -> str:
        if self.attribute is not None:
            return self.attribute
        names: dict[str, None] = {}
        for record in records.values():
            regions = record["regions"].values() if isinstance(record["regions"], dict) else record["regions"]
            for region in regions:
                names |= dict.fromkeys(region.get("region_attributes") or {})
        if len(names) != 1:
            raise UserError(
                f"{self._annotations}: regions have the attributes {', '.join(names) or '(none)'}: set attribute to the"
                " one that names the class"
            )
        return next(iter(names))

    def _shape(self, region: dict[str, Any], attribute: str, number: int, where: str) -> Iterator[Shape]:
        which = f"region {number}"
        with self.record(f"{where}: {which}", region):
            stated = region["region_attributes"].get(attribute)
            label = stated if isinstance(stated, str) else ", ".join(k for k, v in (stated or {}).items() if v)
            if not label.strip():
                self.unused("regions_without_a_class")
                return
            a = region["shape_attributes"]
            kind, label = a["name"], label.strip()
            if kind == "rect":
                yield Shape(label, which, box=(a["x"], a["y"], a["x"] + a["width"], a["y"] + a["height"]))
            elif kind == "polygon":
                yield Shape(label, which, polygon=list(zip(a["all_points_x"], a["all_points_y"], strict=True)))
            elif kind == "circle":
                yield Shape(label, which, polygon=ellipse([a["cx"], a["cy"], a["r"], a["r"]]))
            elif kind == "ellipse":
                turned = float(a.get("theta") or 0) * _DEGREES
                yield Shape(label, which, polygon=ellipse([a["cx"], a["cy"], a["rx"], a["ry"]], turned))
            else:
                self.unused(f"{kind}_not_used")

"""Small datasets as labelling tools export them, all of the same three pictures: two classes, boxes and polygons."""

import base64
import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np

SIZE = (48, 64)  # rows, columns
CLASSES = ["bolt", "crack"]
STEMS = ["Brücke 1", "b2", "c3"]
"""Of the images; the last has no object."""


def is_labelled(k: int) -> bool:
    return k < len(STEMS) - 1


def box_of(k: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of picture ``k``'s bolt."""
    return 8 + 4 * k, 6, 24 + 4 * k, 22


def triangle_of(k: int) -> list[tuple[int, int]]:
    """Corners of picture ``k``'s crack."""
    return [(34 + k, 10), (58 + k, 10), (34 + k, 40)]


def write_pictures(folder: Path, suffix: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k, stem in enumerate(STEMS):
        picture = rng.integers(60, 90, (*SIZE, 3), dtype=np.uint8)
        if is_labelled(k):
            left, top, right, bottom = box_of(k)
            picture[top:bottom, left:right] = (200, 60, 40)
            cv2.fillPoly(picture, [np.array(triangle_of(k), dtype=np.int32)], (40, 60, 220))
        (folder / f"{stem}{suffix}").write_bytes(cv2.imencode(suffix, picture)[1].tobytes())


def _write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_yolo(base: Path, crack_as_box: bool = False) -> Path:
    """Ultralytics' layout; the box of a bolt is a line of five numbers, the crack one of seven."""
    write_pictures(base / "images" / "train")
    rows, columns = SIZE
    for k, stem in enumerate(STEMS[:-1]):
        left, top, right, bottom = box_of(k)
        box = (left + right) / 2 / columns, (top + bottom) / 2 / rows, (right - left) / columns, (bottom - top) / rows
        polygon = [value for x, y in triangle_of(k) for value in (x / columns, y / rows)]
        if crack_as_box:
            (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in (polygon[::2], polygon[1::2]))
            polygon = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        lines = [f"{c} " + " ".join(f"{v:.8f}" for v in numbers) for c, numbers in enumerate((box, polygon))]
        _write(base / "labels" / "train" / f"{stem}.txt", "\n".join(lines) + "\n")
    _write(base / "data.yaml", "path: /content/datasets/mine\ntrain: images/train\nnames:\n  0: bolt\n  1: crack\n")
    return base


def write_labelme(base: Path) -> Path:
    """Version 5: JSON beside the images; the bolt a rectangle, the crack a polygon, and a line, which is no object."""
    write_pictures(base)
    for k, stem in enumerate(STEMS):
        left, top, right, bottom = box_of(k)
        common = {"group_id": None, "description": "", "flags": {}, "mask": None}
        shapes = [
            {"label": "bolt", "points": [[left, top], [right, bottom]], "shape_type": "rectangle", **common},
            {"label": "crack", "points": triangle_of(k), "shape_type": "polygon", **common},
            {"label": "ruler", "points": [[0, 0], [5, 5]], "shape_type": "line", **common},
        ]
        about = {
            "imagePath": f"..\\photos\\{stem}.jpg",
            "imageData": None,
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
        }
        _write(
            base / f"{stem}.json",
            {"version": "5.4.1", "flags": {}, "shapes": shapes if is_labelled(k) else [], **about},
        )
    return base


def labelme_mask(mask: np.ndarray) -> dict:
    """A shape of a mask, cut to its box, as labelme writes it."""
    rows, columns = mask.nonzero()
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
    png = cv2.imencode(".png", mask[top : bottom + 1, left : right + 1].astype(np.uint8) * 255)[1].tobytes()
    points = [[int(left), int(top)], [int(right), int(bottom)]]
    return {"label": "bolt", "points": points, "shape_type": "mask", "mask": base64.b64encode(png).decode()}


def write_voc(base: Path) -> Path:
    write_pictures(base / "JPEGImages")
    for k, stem in enumerate(STEMS):
        left, top, right, bottom = box_of(k)
        box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        item = (
            f"<object><name>bolt</name><difficult>{k % 2}</difficult><bndbox>{box}</bndbox></object>"
            if is_labelled(k)
            else ""
        )
        size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
        head = f"<folder>VOC</folder><filename>{stem}.jpg</filename>{size}<segmented>0</segmented>"
        _write(base / "Annotations" / f"{stem}.xml", f"<annotation>{head}{item}</annotation>")
    return base


def write_cvat(base: Path) -> Path:
    """Bolts are boxes in the first picture, painted masks in the second; and a tag and points, which are no objects."""
    write_pictures(base / "images")
    labels = "".join(f"<label><name>{n}</name><color>#3d3df5</color><attributes></attributes></label>" for n in CLASSES)
    images = ""
    for k, stem in enumerate(STEMS):
        left, top, right, bottom = box_of(k)
        box = f'<box label="bolt" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"></box>'
        width, height = right - left, bottom - top
        runs = f"2, {width * height - 2}"  # the first two pixels of its first row are outside
        mask = f'<mask label="bolt" rle="{runs}" left="{left}" top="{top}" width="{width}" height="{height}"></mask>'
        points = ";".join(f"{x}.00,{y}.00" for x, y in triangle_of(k))
        items = (
            mask if k else box
        ) + f'<polygon label="crack" source="manual" occluded="0" points="{points}"></polygon>'
        items += '<tag label="crack"></tag><points label="bolt" points="3.0,4.0"></points>'
        head = f'id="{k}" name="{stem}.jpg" width="{SIZE[1]}" height="{SIZE[0]}"'
        images += f"<image {head}>{items if is_labelled(k) else ''}</image>"
    meta = f"<meta><task><id>1</id><name>mine</name><labels>{labels}</labels></task></meta>"
    xml = f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{images}</annotations>'
    _write(base / "annotations.xml", xml)
    return base


def pack_brush(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio's brush writes it: RGBA values in thi.ng/rle-pack, runs of one value only."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    starts = np.flatnonzero(np.diff(values.astype(int), prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        while start < end:
            length = min(end - start, 1 << 16)
            bits += f"1{3:02b}{length - 1:016b}{values[start]:08b}"
            start += length
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def write_label_studio(base: Path) -> Path:
    """The bolt is a rectangle in the first picture, a brush mask in the second."""
    write_pictures(base / "images")
    rows, columns = SIZE
    tasks = []
    for k, stem in enumerate(STEMS):
        left, top, right, bottom = box_of(k)
        common = {"original_width": columns, "original_height": rows, "image_rotation": 0, "to_name": "image"}
        mask = np.zeros(SIZE, dtype=bool)
        mask[top:bottom, left:right] = True
        rectangle = {"x": 100 * left / columns, "y": 100 * top / rows, "rotation": 0, "rectanglelabels": ["bolt"]}
        rectangle |= {"width": 100 * (right - left) / columns, "height": 100 * (bottom - top) / rows}
        brush = {"format": "rle", "rle": pack_brush(mask), "brushlabels": ["bolt"]}
        polygon = {"points": [[100 * x / columns, 100 * y / rows] for x, y in triangle_of(k)], "closed": True}
        polygon["polygonlabels"] = ["crack"]
        result = [
            {"id": "r1", "type": "brushlabels", "value": brush, **common}
            if k
            else {"id": "r1", "type": "rectanglelabels", "value": rectangle, **common},
            {"id": "r2", "type": "polygonlabels", "value": polygon, **common},
            {
                "id": "r3",
                "type": "choices",
                "value": {"choices": ["sharp"]},
                "from_name": "quality",
                "to_name": "image",
            },
        ]
        done = [{"id": k, "was_cancelled": True, "result": []}, {"id": 9, "was_cancelled": False, "result": result}]
        data = {"image": f"/data/upload/4/3f2a90bc-{stem.replace(' ', '%20')}.jpg"}
        done = done if is_labelled(k) else [{"id": 5, "was_cancelled": False, "result": []}]
        tasks.append({"id": 11 + k, "annotations": done, "predictions": [], "data": data, "project": 4})
    _write(base / "project-4-at-2024-05-01.json", tasks)
    return base


def via_records() -> dict:
    records = {}
    for k, stem in enumerate(STEMS):
        left, top, right, bottom = box_of(k)
        rect = {"name": "rect", "x": left, "y": top, "width": right - left, "height": bottom - top}
        xs, ys = zip(*triangle_of(k), strict=True)
        polygon = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
        regions = [
            {"shape_attributes": shape, "region_attributes": {"kind": name}}
            for shape, name in ((rect, "bolt"), (polygon, "crack"), ({"name": "point", "cx": 1, "cy": 2}, "bolt"))
        ]
        name = f"{stem}.jpg"
        records[f"{name}1234"] = {
            "filename": name,
            "size": 1234,
            "regions": regions if is_labelled(k) else [],
            "file_attributes": {},
        }
    return records


def write_via(base: Path) -> Path:
    """A project of version 2."""
    write_pictures(base / "images")
    attribute = {
        "kind": {"type": "dropdown", "description": "", "options": dict.fromkeys(CLASSES, ""), "default_options": {}}
    }
    project = {
        "_via_settings": {},
        "_via_img_metadata": via_records(),
        "_via_attributes": {"region": attribute, "file": {}},
    }
    _write(base / "via_project_1May2024.json", project)
    return base


def write_via_csv(base: Path) -> Path:
    write_pictures(base / "images")
    lines = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    quoted = lambda value: '"' + json.dumps(value).replace('"', '""') + '"'  # noqa: E731
    for record in via_records().values():
        for number, region in enumerate(record["regions"] or [{"shape_attributes": {}, "region_attributes": {}}]):
            count = len(record["regions"])
            shape, about = quoted(region["shape_attributes"]), quoted(region["region_attributes"])
            lines.append(f'{record["filename"]},1234,"{{}}",{count},{number},{shape},{about}')
    _write(base / "via_export_csv.csv", "\n".join(lines))
    return base


def write_coco(base: Path) -> Path:
    write_pictures(base / "images")
    images, annotations = [], []
    for k, stem in enumerate(STEMS):
        images.append({"id": k, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]})
        left, top, right, bottom = box_of(k)
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        for category, points, share in ((1, corners, 1.0), (2, triangle_of(k), 0.5)):
            xs, ys = zip(*points, strict=True)
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            segmentation = [[value for point in points for value in point]]
            about = {"id": len(annotations) + 1, "image_id": k, "category_id": category, "iscrowd": 0}
            if is_labelled(k):
                annotations.append(about | {"bbox": box, "area": share * box[2] * box[3], "segmentation": segmentation})
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(CLASSES, 1)]
    _write(base / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})
    return base


def _mask(points) -> np.ndarray:
    return cv2.fillPoly(np.zeros(SIZE, np.uint8), [np.array(points, dtype=np.int32)], 1)


def _masks_of(k: int) -> dict[str, np.ndarray]:
    """Masks of picture ``k`` by class."""
    if not is_labelled(k):
        return {}
    left, top, right, bottom = box_of(k)
    corners = [(left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1)]
    return {"bolt": _mask(corners), "crack": _mask(triangle_of(k))}


def write_label_maps(base: Path) -> Path:
    """0 is the ground, 1 a bolt, 2 a crack; the first row is void."""
    write_pictures(base / "images")
    (base / "labels").mkdir()
    for k, stem in enumerate(STEMS):
        values = np.zeros(SIZE, np.uint8)
        for number, mask in enumerate(_masks_of(k).values(), 1):
            values[mask == 1] = number
        values[0] = 255
        (base / f"labels/{stem}.png").write_bytes(cv2.imencode(".png", values)[1].tobytes())
    return base


def write_mask_folders(base: Path) -> Path:
    write_pictures(base / "images")
    for k, stem in enumerate(STEMS):
        (base / "masks" / stem).mkdir(parents=True)
        for name, mask in _masks_of(k).items():
            (base / f"masks/{stem}/{name}_1.png").write_bytes(cv2.imencode(".png", mask * 255)[1].tobytes())
    return base


WRITERS = {
    "yolo": write_yolo,
    "yolo_boxes": partial(write_yolo, crack_as_box=True),
    "labelme": write_labelme,
    "voc": write_voc,
    "cvat": write_cvat,
    "label_studio": write_label_studio,
    "via": write_via,
    "via_csv": write_via_csv,
    "coco": write_coco,
    "label_maps": write_label_maps,
    "mask_folders": write_mask_folders,
}
"""By form."""

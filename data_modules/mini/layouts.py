"""Writes scenes in the official layouts of ADE20K, COCO panoptic and Objects365 v2 (facts: docs of those datasets).

Each writer takes the scenes of one split in order and leaves a finished split behind; what a scene shows but the
vocabulary does not name is "other" in ADE, VOID in COCO, and unlabelled in Objects365. mini-Open has COCO's layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_modules.mini.datasets import ADE, COCO, OBJECTS365, OPEN, MiniDataset
from data_modules.mini.scenes import VOID, Scene
from data_modules.mini.sprites import Array
from dataseg.io.rle import encode_mask, rle_to_json

Record = dict[str, Any]
NumberedScenes = Iterable[tuple[np.random.Generator, Scene]]
"""Scenes with the generator of further choices (ids, noise of boxes), in the order of the files."""

_INFO = {"description": "dataseg mini suite: rendered pictures", "version": "1.0"}
_OBJECTS365_PATCHES = {"train": (0, 1, 2, 16, 17), "val": (0, 1, 16)}


def write_image(path: Path, rgb_or_gray: Array, quality: int = 95) -> None:
    """Store uint8 ``[H, W, 3]`` RGB or ``[H, W]`` as the path's suffix says."""
    pixels = rgb_or_gray if rgb_or_gray.ndim == 2 else cv2.cvtColor(rgb_or_gray, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    done, encoded = cv2.imencode(path.suffix, pixels, options)
    assert done, path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def box_of(mask: Array) -> list[int]:
    """``[x, y, width, height]`` of a non-empty bool mask ``[H, W]``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def id_to_rgb(ids: Array) -> Array:
    """Panoptic ids ``[H, W]`` below 2^24 -> uint8 ``[H, W, 3]``: id = R + 256 G + 65536 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def unique_ids(rng: np.random.Generator, count: int) -> list[int]:
    """Different random panoptic ids in 1 .. 2^24 - 1."""
    ids: list[int] = []
    while len(ids) < count:
        candidate = int(rng.integers(1, 2**24))
        if candidate not in ids:
            ids.append(candidate)
    return ids


# ------------------------------------------------------------------------------------------------------------ ADE20K


def write_ade(root: Path, split: str, scenes: NumberedScenes) -> None:
    """``ADEChallengeData2016``: label PNGs (0 = other); for validation also instances and panoptic ground truth.

    Args:
        split: "training" or "validation".
    """
    base, short = root / "ADEChallengeData2016", "train" if split == "training" else "val"
    vocabulary = ADE.load_vocabulary()
    label_of = {ADE.kinds[c.name]: c.id for c in vocabulary.classes}
    things = [c.id for c in vocabulary.classes if c.is_thing]
    images, annotations = [], []
    for number, (rng, scene) in enumerate(scenes, start=1):
        stem = f"ADE_{short}_{number:08d}"
        labels = [label_of.get(region.kind, 0) for region in scene.regions]
        label_map = np.array([*labels, 0], dtype=np.uint8)[scene.ids]
        write_image(base / "images" / split / f"{stem}.jpg", scene.rgb, scene.quality)
        write_image(base / "annotations" / split / f"{stem}.png", label_map)
        if split == "training":
            continue
        instances = _ade_instances(scene, labels, things)
        write_image(base / "annotations_instance" / split / f"{stem}.png", instances)
        segments, id_map = _ade_panoptic(rng, label_map, instances, things)
        write_image(base / "ade20k_panoptic_val" / f"{stem}.png", id_to_rgb(id_map))
        size = {"width": scene.ids.shape[1], "height": scene.ids.shape[0]}
        images.append({"id": stem, "file_name": f"{stem}.jpg", **size})
        annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
    if split == "validation":
        categories = [
            {"id": c.id - 1, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
            for c in vocabulary.classes
        ]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(base / "ade20k_panoptic_val.json", content)


def _ade_instances(scene: Scene, labels: list[int], things: list[int]) -> Array:
    """uint8 ``[H, W, 3]``: R = 1-based position among the thing classes, G = instance number of the image, B = 0."""
    table = np.zeros((len(labels) + 1, 3), dtype=np.uint8)
    instance = 0
    for row, label in enumerate(labels):
        if label in things and (scene.ids == row).any():
            instance += 1
            table[row, :2] = things.index(label) + 1, instance
    return table[scene.ids]


def _ade_panoptic(
    rng: np.random.Generator, label_map: Array, instances: Array, things: list[int]
) -> tuple[list[Record], Array]:
    """Join label map and instances as the common preparation does: stuff from the one, things from the other."""
    masks = [(label, label_map == label) for label in np.unique(label_map).tolist() if label and label not in things]
    for instance in np.unique(instances[..., 1]).tolist():
        if instance:
            mask = instances[..., 1] == instance
            masks.append((things[int(instances[..., 0][mask][0]) - 1], mask))
    id_map = np.zeros(label_map.shape, dtype=np.int64)
    segments = []
    for identifier, (label, mask) in zip(unique_ids(rng, len(masks)), masks, strict=True):
        id_map[mask] = identifier
        segments.append(
            {"id": identifier, "category_id": label - 1, "iscrowd": 0, "bbox": box_of(mask), "area": int(mask.sum())}
        )
    return segments, id_map


# ------------------------------------------------------------------------------------------------------ COCO panoptic


def write_coco(root: Path, split: str, scenes: NumberedScenes) -> None:
    """``coco``: images, panoptic PNGs with ids above 2^16, and the panoptic JSON.

    About one image in 120 has no segment, some things have an unlabelled rim, and groups are crowds.

    Args:
        split: "train2017" or "val2017".
    """
    _write_panoptic(root / "coco", COCO, split, scenes, first_id=0 if split == "train2017" else 500_000)


def write_open(root: Path, split: str, scenes: NumberedScenes) -> None:
    """``open``: mini-Open's split "val" as `write_coco` writes one."""
    _write_panoptic(root / "open", OPEN, split, scenes, first_id=900_000)


def _write_panoptic(base: Path, dataset: MiniDataset, split: str, scenes: NumberedScenes, first_id: int) -> None:
    vocabulary = dataset.load_vocabulary()
    class_of = {dataset.kinds[c.name]: c for c in vocabulary.classes}
    images, annotations = [], []
    for number, (rng, scene) in enumerate(scenes, start=1):
        identifier = first_id + number * 37
        stem = f"{identifier:012d}"
        ids = _unlabel_rims(rng, scene)
        segments: list[Record] = []
        id_map = np.zeros(ids.shape, dtype=np.int64)
        masks = {} if number % 120 == 119 else _coco_masks(scene, ids, {k: c.is_thing for k, c in class_of.items()})
        for (kind, _, crowd), segment, mask in zip(masks, unique_ids(rng, len(masks)), masks.values(), strict=True):
            id_map[mask] = segment
            area, box = int(mask.sum()), box_of(mask)
            category = class_of[kind].id
            segments.append({"id": segment, "category_id": category, "iscrowd": int(crowd), "bbox": box, "area": area})
        write_image(base / split / f"{stem}.jpg", scene.rgb, scene.quality)
        write_image(base / "annotations" / f"panoptic_{split}" / f"{stem}.png", id_to_rgb(id_map))
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        images.append({"id": identifier, "file_name": f"{stem}.jpg", **size})
        annotations.append({"image_id": identifier, "file_name": f"{stem}.png", "segments_info": segments})
    categories = [
        {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color), "supercategory": "mini"}
        for c in vocabulary.classes
    ]
    content = {"info": _INFO, "images": images, "annotations": annotations, "categories": categories}
    write_json(base / "annotations" / f"panoptic_{split}.json", content)


def _coco_masks(scene: Scene, ids: Array, is_thing: Mapping[str, bool]) -> dict[tuple[str, int, bool], Array]:
    """Visible masks by (kind, instance, crowd); stuff of one kind is one segment, its instance is -1."""
    masks: dict[tuple[str, int, bool], Array] = {}
    for row, region in enumerate(scene.regions):
        mask = ids == row
        if region.kind not in is_thing or not mask.any():
            continue
        key = (region.kind, row if is_thing[region.kind] else -1, region.is_crowd)
        masks[key] = masks[key] | mask if key in masks else mask
    return masks


def _unlabel_rims(rng: np.random.Generator, scene: Scene, share: float = 0.3) -> Array:
    """Take the label from a one-pixel rim around some regions, as hand-drawn borders leave it."""
    ids = scene.ids.copy()
    for row in range(len(scene.regions)):
        if rng.random() < share:
            mask = (scene.ids == row).astype(np.uint8)
            rim = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > mask
            ids[rim] = VOID
    return ids


# --------------------------------------------------------------------------------------------------------- Objects365


def write_objects365(root: Path, split: str, scenes: NumberedScenes) -> None:
    """``objects365``: boxes, a few of them out of bounds or given twice; for val also a JSON with instance masks.

    Args:
        split: "train" or "val".
    """
    base = root / "objects365"
    vocabulary = OBJECTS365.load_vocabulary()
    id_of = {OBJECTS365.kinds[c.name]: c.id for c in vocabulary.classes}
    images: list[Record] = []
    boxes: list[Record] = []
    masks: list[Record] = []
    patches = _OBJECTS365_PATCHES[split]
    for number, (rng, scene) in enumerate(scenes, start=1):
        patch = patches[number % len(patches)]
        version = "v1" if patch < 16 else "v2"
        identifier = number * 11 + (0 if split == "train" else 700_000)
        name = f"patch{patch}/objects365_{version}_{identifier:08d}.jpg"
        folder = base / "train" if split == "train" else base / "val" / "images" / version
        write_image(folder / name, scene.rgb, scene.quality)
        size = {"height": scene.ids.shape[0], "width": scene.ids.shape[1]}
        images.append({"id": identifier, "file_name": f"images/{version}/{name}", "license": 5, "url": "", **size})
        for record, mask in _objects(rng, scene, id_of):
            record |= {"image_id": identifier, "isfake": 0, "isreflected": 0}
            boxes.append(record | {"id": len(boxes) + 1})
            if rng.random() < 0.03:
                boxes.append(record | {"id": len(boxes) + 1})
            if split == "val":
                masks.append(record | {"id": len(masks) + 1} | _mask_fields(rng, record, mask))
    categories = [{"id": c.id, "name": c.name} for c in vocabulary.classes]
    content: Record = {"info": _INFO, "licenses": [], "images": images, "categories": categories}
    write_json(base / split / f"zhiyuan_objv2_{split}.json", content | {"annotations": boxes})
    if split == "val":
        write_json(base / "o365_instance_seg_val.json", content | {"annotations": masks})


def _objects(rng: np.random.Generator, scene: Scene, id_of: Mapping[str, int]) -> Iterable[tuple[Record, Array]]:
    """Box records and visible masks of what the vocabulary names; boxes are drawn by a slightly unsteady hand."""
    for row, region in enumerate(scene.regions):
        mask = scene.ids == row
        if region.kind not in id_of or not mask.any():
            continue
        x, y, width, height = box_of(mask)
        x0, y0, x1, y1 = np.array([x, y, x + width, y + height]) + rng.normal(0, 0.3, size=4)
        rows, columns = mask.shape
        if rng.random() < 0.4:  # a thing that the frame cuts is boxed with the part nobody can see
            beyond = rng.uniform(1, 8, size=4)
            x0, y0 = x0 - beyond[0] * (x == 0), y0 - beyond[1] * (y == 0)
            x1, y1 = x1 + beyond[2] * (x + width == columns), y1 + beyond[3] * (y + height == rows)
        box = [round(float(v), 4) for v in (x0, y0, x1 - x0, y1 - y0)]
        area = round(box[2] * box[3], 4)
        yield {"iscrowd": int(region.is_crowd), "area": area, "bbox": box, "category_id": id_of[region.kind]}, mask


def _mask_fields(rng: np.random.Generator, record: Record, mask: Array) -> Record:
    """Segmentation of an instance: RLE or polygons; none for crowds and for a few that were skipped."""
    if record["iscrowd"] or rng.random() < 0.04:
        return {}
    polygons = polygons_of(mask)
    if polygons and rng.random() < 0.5:
        return {"area": int(mask.sum()), "segmentation": polygons}
    return {"area": int(mask.sum()), "segmentation": rle_to_json(encode_mask(mask))}


def polygons_of(mask: Array, fineness: int = 4) -> list[list[float]]:
    """Outlines of a bool mask ``[H, W]`` as COCO polygons ``[x, y, x, y, ...]``; none if it has a hole.

    Traced on pixel corners, for which the mask is enlarged ``fineness`` times.
    """
    large = np.asarray(np.kron(mask, np.ones((fineness, fineness))), dtype=np.uint8)
    outlines, hierarchy = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if hierarchy is None or (hierarchy[0, :, 3] >= 0).any():  # column 3: the outline that this one is a hole of
        return []
    polygons = [((outline[:, 0].astype(float) + 0.5) / fineness).round(2).ravel().tolist() for outline in outlines]
    return [p for p in polygons if len(p) >= 6]

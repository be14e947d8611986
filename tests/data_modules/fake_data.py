"""Small datasets written in the exact official layouts: rectangles of colour, cheap and deterministic."""

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (40, 56)  # rows, columns


def _picture(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    colors = rng.integers(30, 226, (int(ids.max()) + 1, 3), dtype=np.uint8)
    noise = rng.integers(0, 20, (*ids.shape, 3), dtype=np.uint8)
    return colors[ids] + noise


def _layout(rng: np.random.Generator, count: int) -> np.ndarray:
    """Row numbers ``0..count-1``: a background and rectangles, later over earlier; every one visible."""
    while True:
        ids = np.zeros(SIZE, dtype=np.int64)
        for k in range(1, count):
            y, x = rng.integers(0, SIZE[0] - 10), rng.integers(0, SIZE[1] - 10)
            h, w = rng.integers(6, 20, 2)
            ids[y : y + h, x : x + w] = k
        if len(np.unique(ids)) == count:
            return ids


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def color_of(number: np.ndarray) -> np.ndarray:
    number = np.asarray(number)
    return np.stack([number % 256, number // 256 % 256, number // 65536], axis=-1).astype(np.uint8)


def write_ade(root: Path, count: int = 5, split: str = "training", seed: int = 0) -> Path:
    """``root/ADEChallengeData2016`` with images, label PNGs (0 = other) and the panoptic form of them."""
    rng = np.random.default_rng([seed, 1])
    base = root / "ADEChallengeData2016"
    short = {"training": "train", "validation": "val"}[split]
    images, annotations = [], []
    for i in range(count):
        ids = _layout(rng, 5)
        classes = np.array([0, *rng.choice(np.arange(1, 151), 4, replace=False)])
        name = f"ADE_{short}_{i + 1:08d}"
        _write(base / "images" / split / f"{name}.jpg", _picture(rng, ids))
        _write(base / "annotations" / split / f"{name}.png", classes[ids].astype(np.uint8))
        numbers = np.array([0, 500, 70000, 300, 65536])
        _write(base / f"ade20k_panoptic_{short}" / f"{name}.png", color_of(numbers[ids]))
        images.append({"id": name, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [
            # areas are stated too large on purpose: the real file's stuff areas are stale
            {"id": int(numbers[k]), "category_id": int(classes[k]) - 1, "area": int((ids == k).sum()) + 7, "iscrowd": 0}
            for k in range(1, 5)
        ]
        annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": []}
    (base / f"ade20k_panoptic_{short}.json").write_text(json.dumps(content))
    return base


def write_coco(root: Path, count: int = 6, split: str = "train2017", seed: int = 0) -> Path:
    """``root/coco`` with images, panoptic JSON and PNGs: void, a crowd, and one image without any segment."""
    rng = np.random.default_rng([seed, 2])
    base = root / "coco"
    folder = base / "annotations" / f"panoptic_{split}"
    images, annotations = [], []
    for i in range(count):
        ids = _layout(rng, 5) if i else np.zeros(SIZE, dtype=np.int64)
        name = f"{100 + i:012d}"
        numbers = np.array([0, 3_000_000, 1, 256, 77_777])
        _write(base / split / f"{name}.jpg", _picture(rng, ids))
        _write(folder / f"{name}.png", color_of(numbers[ids]))
        images.append({"id": 100 + i, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [
            {
                "id": int(numbers[k]),
                "category_id": category,
                "area": int((ids == k).sum()),
                "iscrowd": crowd,
                "bbox": [0, 0, 1, 1],
            }
            for k, category, crowd in [(1, 1, 0), (2, 1, 1), (3, 200, 0), (4, 17, 0)]
            if i
        ]
        annotations.append({"image_id": 100 + i, "file_name": f"{name}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": []}
    folder.with_suffix(".json").write_text(json.dumps(content))
    return base


def write_objects365(root: Path, count: int = 7, split: str = "train", seed: int = 0, masks: bool = False) -> Path:
    """``root/objects365``: nested and flat patches, boxes out of bounds, duplicates, a crowd, an image without boxes.

    With ``masks``, also ``o365_instance_seg_val.json``: polygons, run lengths, and instances whose mask is missing.
    """
    rng = np.random.default_rng([seed, 3])
    base = root / "objects365"
    images, annotations = [], []
    for i in range(count):
        ids = _layout(rng, 4)
        patch = f"patch{i % 2}"
        name = f"objects365_v1_{i:08d}.jpg"
        on_disk = f"images/v1/{patch}" if split == "val" else patch
        _write(base / split / on_disk / name, _picture(rng, ids))
        images.append({"id": i, "file_name": f"images/v1/{patch}/{name}", "height": SIZE[0], "width": SIZE[1]})
        if i == 0:
            continue
        for k in range(1, 4):
            y, x = np.nonzero(ids == k)
            box = [int(x.min()), int(y.min()), int(x.max() - x.min() + 1), int(y.max() - y.min() + 1)]
            annotations.append({"image_id": i, "category_id": k * 100, "bbox": box, "iscrowd": 0})
        annotations.append({**annotations[-1]})  # the same again
        annotations.append({"image_id": i, "category_id": 5, "bbox": [-4, 30, 20, 30], "iscrowd": 0})
        annotations.append({"image_id": i, "category_id": 6, "bbox": [SIZE[1] + 2, 3, 9, 9], "iscrowd": 0})
        annotations.append({"image_id": i, "category_id": 1, "bbox": [5, 5, 30, 30], "iscrowd": 1})
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3], "isfake": 0}
    content = {"images": images, "annotations": annotations, "categories": []}
    (base / split / f"zhiyuan_objv2_{split}.json").write_text(json.dumps(content))
    if masks:
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            if annotation["category_id"] == 100:
                annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            elif annotation["category_id"] == 200:
                annotation["segmentation"] = {
                    "size": list(SIZE),
                    "counts": [x * SIZE[0] + y, h, SIZE[0] * (SIZE[1] - x) - y - h],
                }
            elif annotation["category_id"] == 300:
                annotation["segmentation"] = []
        (base / "o365_instance_seg_val.json").write_text(json.dumps(content))
    return base

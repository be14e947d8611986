"""Writes an annotation file of the size and form of Objects365 v2's training set, out of random numbers.

    python benchmarks/make_objects365.py /tmp/big.json                               # 5.6 GB
    python benchmarks/make_objects365.py /tmp/tenth.json --images 174229 --boxes 2500000

The boxes of an image lie scattered over the whole file, which is the hardest case for whoever groups them. One in a
hundred reaches out of its image, one in five hundred is a crowd, one in a thousand is written twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import IO

import numpy as np

IMAGES, BOXES = 1_742_289, 25_000_000
STEP = 200_000

_IMAGE = (
    '{{"height": {}, "id": {}, "license": 5, "width": {}, '
    '"file_name": "images/v{}/patch{}/objects365_v{}_{:08d}.jpg", "url": ""}}'
)
_BOX = (
    '{{"id": {}, "iscrowd": {}, "isfake": 0, "area": {}, "isreflected": 0, '
    '"bbox": [{}, {}, {}, {}], "image_id": {}, "category_id": {}}}'
)


def image_ids(count: int) -> np.ndarray:
    """As in the real file: rising, with gaps."""
    return 420_000 + np.cumsum(1 + np.arange(count) % 3 // 2)


def write(path: Path, images: int = IMAGES, boxes: int = BOXES, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    ids = image_ids(images)
    sizes = np.stack([rng.integers(360, 1080, images), rng.integers(480, 1920, images)], axis=1)
    with path.open("w") as file:
        file.write('{"images": [')
        for start in range(0, images, STEP):
            _write_images(file, start, ids[start : start + STEP], sizes[start : start + STEP])
        file.write('], "annotations": [')
        for start in range(0, boxes, STEP):
            _write_boxes(file, rng, start, min(STEP, boxes - start), ids, sizes)
        categories = ", ".join(f'{{"name": "class {k}", "id": {k}}}' for k in range(1, 366))
        file.write(f'], "categories": [{categories}], "licenses": []}}')


def _write_images(file: IO[str], start: int, ids: np.ndarray, sizes: np.ndarray) -> None:
    rows = zip(ids.tolist(), sizes.tolist(), strict=True)
    parts = (
        _IMAGE.format(size[0], number, size[1], version, k % 51, version, number)
        for k, (number, size) in enumerate(rows, start)
        for version in (1 if k % 51 < 16 else 2,)
    )
    file.write((", " if start else "") + ", ".join(parts))


def _write_boxes(
    file: IO[str], rng: np.random.Generator, start: int, count: int, ids: np.ndarray, sizes: np.ndarray
) -> None:
    image = rng.integers(len(ids), size=count)
    extent = sizes[image][:, ::-1]
    side = rng.uniform(2, 0.9 * extent)
    corner = rng.random((count, 2)) * (extent - side)
    corner[rng.random(count) < 0.01] -= 20
    boxes = np.concatenate([corner, side], axis=1)
    classes = rng.integers(1, 366, count)
    crowd = (rng.random(count) < 0.002).astype(int)
    twice = np.flatnonzero(rng.random(count - 1) < 0.001)
    for column in (image, boxes, classes):
        column[twice + 1] = column[twice]
    columns = (crowd.tolist(), boxes.prod(axis=1, where=[False, False, True, True]).tolist(), boxes.round(10).tolist())
    rows = zip(*columns, ids[image].tolist(), classes.tolist(), strict=True)
    text = ", ".join(_BOX.format(k, c, area, *box, i, label) for k, (c, area, box, i, label) in enumerate(rows, start))
    file.write((", " if start else "") + text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--boxes", type=int, default=BOXES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.path, options.images, options.boxes, options.seed)
    print(f"{options.path}: {options.path.stat().st_size / 1e9:.1f} GB")


if __name__ == "__main__":
    main()

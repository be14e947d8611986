"""Pictures of what a reader gives: class colours over the image, one line around every segment, names beside boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_modules.formats.base import ImageArray, Reader
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Target, UserError, Vocabulary

CELL = 320
"""Side of one picture in a grid, pixels."""


def grid(reader: Reader, indices: Sequence[int], columns: int = 4) -> ImageArray:
    """Images with their targets drawn, side by side; ones that cannot be read stay black. Uint8 ``[H, W, 3]``, RGB."""
    rows = -(-len(indices) // columns)
    canvas = np.zeros((rows * CELL, columns * CELL, 3), dtype=np.uint8)
    for place, index in enumerate(indices):
        try:
            picture = fit(draw(*reader.load(index), reader.vocabulary), CELL)
        except UserError:
            continue  # the check lists it
        top, left = place // columns * CELL, place % columns * CELL
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize so that the longer side is ``side``."""
    scale = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=interpolation).astype(np.uint8, copy=False)


def write(path: Path, image: ImageArray) -> None:
    """A picture file; its ending says which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(content.tobytes())


def draw(image: ImageArray, target: Target, vocabulary: Vocabulary) -> ImageArray:
    """Lay the target over the image, both of one size; uint8 ``[H, W, 3]``. Void stays image, crowds are hatched."""
    colors = vocabulary.colors.numpy()[target.labels.numpy()]
    picture = image.copy()
    if isinstance(target, SegmentMap):
        _draw_map(picture, target, colors)
    elif isinstance(target, InstanceMasks):
        _draw_masks(picture, target, colors)
    else:
        _draw_boxes(picture, target, colors, vocabulary.names)
    return picture


def _draw_map(picture: ImageArray, target: SegmentMap, colors: NDArray[np.uint8]) -> None:
    ids = target.ids.numpy().astype(np.int64)
    covered = ids != VOID
    if target.is_crowd is not None and bool(target.is_crowd.any()):
        y, x = np.indices(ids.shape)
        crowd = np.append(target.is_crowd.numpy(), False)[ids]  # VOID indexes the appended entry
        covered &= ~crowd | ((x + y) % 8 < 3)
    picture[covered] = (0.45 * picture[covered] + 0.55 * colors[ids[covered]]).astype(np.uint8)
    edge = np.zeros(ids.shape, dtype=bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = 255


def _draw_masks(picture: ImageArray, target: InstanceMasks, colors: NDArray[np.uint8]) -> None:
    for rle, color in zip(target.rles, colors, strict=True):
        if rle is None:
            continue
        mask = coco_mask.decode(rle)
        picture[mask == 1] = (0.45 * picture[mask == 1] + 0.55 * color).astype(np.uint8)
        lines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, lines, -1, (255, 255, 255), 1)
    if target.boxes is not None:  # instances without a mask: their box is all that is known
        for rle, box in zip(target.rles, target.boxes.int().tolist(), strict=True):
            if rle is None:
                cv2.rectangle(picture, box[:2], box[2:], (255, 255, 255), 1)


def _draw_boxes(picture: ImageArray, target: Boxes, colors: NDArray[np.uint8], names: list[str]) -> None:
    thickness = max(1, round(max(picture.shape[:2]) / 400))
    for box, label, color in zip(target.xyxy.int().tolist(), target.labels.tolist(), colors.tolist(), strict=True):
        cv2.rectangle(picture, box[:2], box[2:], color, thickness)
        size = max(picture.shape[:2]) / 1200
        cv2.putText(picture, names[label], (box[0] + 2, box[1] + 12), cv2.FONT_HERSHEY_SIMPLEX, size, color, 1)

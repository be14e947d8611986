"""Grids of pictures of what a reader gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data_modules.formats.base import ImageArray, Reader
from dataseg.drawing import draw
from dataseg.structures import Boxes, UserError

CELL = 320
"""Side of one picture in a grid, pixels."""


def grid(reader: Reader, indices: Sequence[int], columns: int = 4) -> ImageArray:
    """Images with their targets drawn, side by side; ones that cannot be read stay black. Uint8 ``[H, W, 3]``, RGB."""
    columns = max(1, min(columns, len(indices)))
    rows = -(-len(indices) // columns)
    canvas = np.zeros((rows * CELL, columns * CELL, 3), dtype=np.uint8)
    for place, index in enumerate(indices):
        try:
            image, target = reader.load(index)
            picture = fit(draw(image, target, reader.vocabulary, names=isinstance(target, Boxes)), CELL)
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

"""Grids of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 320
"""Side of one picture in a grid, pixels."""


def grid(pictures: Sequence[NDArray[np.uint8] | None], columns: int = 4) -> NDArray[np.uint8]:
    """Pictures side by side, uint8 ``[H, W, 3]``, RGB; the place of None stays black."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    canvas = np.zeros((rows * CELL, columns * CELL, 3), dtype=np.uint8)
    for place, picture in enumerate(pictures):
        if picture is None:
            continue
        cell = fit(picture, CELL)
        top, left = place // columns * CELL, place % columns * CELL
        canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return canvas


def fit(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize so that the longer side is ``side``."""
    scale = side / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=interpolation).astype(np.uint8, copy=False)


def write(path: Path, image: NDArray[np.uint8]) -> None:
    """A picture file; its ending says which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(content.tobytes())

"""Grids of pictures, and pictures as files and in pages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CELL = 320
"""Side of one picture in a grid, pixels."""


def grid(pictures: Sequence[NDArray[np.uint8] | None], columns: int = 4) -> NDArray[np.uint8]:
    """Pictures side by side on grey, uint8 ``[H, W, 3]``, RGB.

    Args:
        pictures: of at most `CELL` pixels a side; the place of None stays empty.
    """
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * CELL, columns * CELL, 3), 235, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        if picture is None:
            continue
        top, left = place // columns * CELL, place % columns * CELL
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def write(path: Path, image: NDArray[np.uint8]) -> None:
    """A picture file; its ending says which kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(content.tobytes())


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture, uint8 ``[H, W, 3]``, RGB, as a JPEG within an HTML page."""
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return f"data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}"

"""The size of evaluation images: one rule for evaluation, prediction and exported models.

Shape legend: ``H, W`` = rows and columns of the image on disk, ``H', W'`` = of the evaluation image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataseg.structures import UserError

LARGEST = 10_000
"""Bound of an evaluation image's longer side, pixels: what a model from somebody else may ask memory for."""


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Size of the evaluation image.

    Attributes:
        size: its shorter side, pixels.
        max_size: its longer side at most; goes before ``size``.
    """

    size: int = 640
    max_size: int = 1333

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.max_size <= LARGEST:
            raise UserError(f"need 0 < size <= max_size <= {LARGEST:,}, got {self.size} and {self.max_size}")

    def __str__(self) -> str:
        return f"shorter side {self.size} px, longer at most {self.max_size} px"

    def __call__(self, rows: int, columns: int) -> tuple[int, int]:
        """(H', W') of an image of H x W."""
        scale = min(self.size / min(rows, columns), self.max_size / max(rows, columns))
        return max(1, round(rows * scale)), max(1, round(columns * scale))

    def resize(self, image: NDArray[Any]) -> NDArray[Any]:
        """``[H, W, 3]`` -> ``[H', W', 3]``."""
        return resize(image, self(image.shape[0], image.shape[1]))


def resize(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Bilinear to enlarge, area average to shrink (bilinear would skip pixels); ``size`` is (rows, columns)."""
    if image.shape[:2] == tuple(size):
        return np.ascontiguousarray(image)
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def to_tensor(image: NDArray[Any]) -> Tensor:
    """``[H, W, 3]`` -> contiguous ``[3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

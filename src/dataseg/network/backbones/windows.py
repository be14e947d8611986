"""Feature maps cut into windows, and put together again.

Shape legend: B = batch, H, W = rows, columns of a map, C = channels, S = window side, N = windows of all maps.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def pad_to_windows(x: Tensor, side: int) -> Tensor:
    """``[B, H, W, C]`` -> the same with zeros at the bottom and right, up to multiples of ``side``."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % side, 0, -x.shape[1] % side))


def cut_windows(x: Tensor, side: int) -> Tensor:
    """``[B, H, W, C]``, multiples of the side -> ``[N, S * S, C]``; a window's pixels in row-major order."""
    B, H, W, C = x.shape
    grid = x.reshape(B, H // side, side, W // side, side, C)
    return grid.transpose(2, 3).reshape(B * (H // side) * (W // side), side * side, C)


def join_windows(windows: Tensor, side: int, shape: tuple[int, int, int]) -> Tensor:
    """Undo `cut_windows` for maps of (B, H, W): ``[N, S * S, C]`` -> ``[B, H, W, C]``."""
    (B, H, W), C = shape, windows.shape[2]
    grid = windows.reshape(B, H // side, W // side, side, side, C)
    return grid.transpose(2, 3).reshape(B, H, W, C)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """``[B, H, W, C]`` -> ``[B, height, width, C]``, a copy: so an export need not tell whether anything was cut."""
    return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))

"""Sine position encoding of feature maps (DETR's, as Mask2Former uses it).

Shape legend: D = channels, N = h * w pixels of a feature map in row-major order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
EPSILON = 1e-6


def sine_position_encoding(height: int, width: int, dim: int, like: Tensor) -> Tensor:
    """Encode each pixel's row in the first half of the channels and its column in the second.

    Positions are 1-based and scaled so that the last one is 2 pi; channels alternate sine and cosine. The result is
    at least float32: bfloat16 cannot tell neighbouring pixels of a large map apart.

    Args:
        height: rows of the map.
        width: columns of the map.
        dim: channels, a multiple of 4.
        like: gives the device and the precision.

    Returns:
        ``[N, D]``.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    exponent = torch.arange(dim // 4, device=like.device, dtype=dtype) * (4 / dim)
    wavelength = TEMPERATURE**exponent
    rows = _encode_axis(height, wavelength)[:, None].expand(height, width, dim // 2)
    columns = _encode_axis(width, wavelength)[None].expand(height, width, dim // 2)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _encode_axis(length: int, wavelength: Tensor) -> Tensor:
    """``[length, 2 * len(wavelength)]``: sine and cosine of every wavelength, interleaved."""
    position = torch.arange(1, length + 1, device=wavelength.device, dtype=wavelength.dtype)
    angle = (position / (length + EPSILON) * (2 * math.pi))[:, None] / wavelength
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

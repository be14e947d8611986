"""Swin for images of any size, as its authors have it for dense prediction.

Shape legend: B = batch, H, W = rows, columns of a feature map, C = channels, S = window side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn


class DenseSwinBlock(nn.Module):
    """A timm block's layers, under the same names, with the map padded to whole windows *before* it is shifted.

    timm shifts first. Wherever windows do not divide the map the two differ, and published detection and segmentation
    weights were trained with the former (arXiv 2103.14030, official object detection code).
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window_size: tuple[int, int] = block.window_size
        self.shift_size: tuple[int, int] = block.shift_size

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``."""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        H, W, C = x.shape[1:]
        side_y, side_x = self.window_size
        shift_y, shift_x = self.shift_size
        x = F.pad(x, (0, 0, 0, -W % side_x, 0, -H % side_y))
        padded = (x.shape[1], x.shape[2])
        shifted = any(self.shift_size)
        if shifted:
            x = torch.roll(x, shifts=(-shift_y, -shift_x), dims=(1, 2))
        windows = window_partition(x, self.window_size).flatten(1, 2)
        mask = self._shift_mask(padded, like=x) if shifted else None
        windows = self.attn(windows, mask=mask).unflatten(1, self.window_size)
        x = window_reverse(windows, self.window_size, *padded)
        if shifted:
            x = torch.roll(x, shifts=self.shift_size, dims=(1, 2))
        return x[:, :H, :W].reshape(-1, H, W, C)

    def _shift_mask(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """``[windows, S * S, S * S]``: -100 between pixels that only the shift has brought together, else 0."""
        rows = _shift_regions(size[0], self.window_size[0], self.shift_size[0], like.device)
        columns = _shift_regions(size[1], self.window_size[1], self.shift_size[1], like.device)
        region = (3 * rows[:, None] + columns)[None, :, :, None]
        region = window_partition(region, self.window_size).flatten(1)
        apart = region[:, None] != region[:, :, None]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)


def _shift_regions(length: int, side: int, shift: int, device: torch.device) -> Tensor:
    """``[length]``: 0 for whole windows, 1 and 2 for the two parts of the last one that lay apart before the shift."""
    index = torch.arange(length, device=device)
    return (index >= length - side).long() + (index >= length - shift).long()


def pad_before_shifting(model: nn.Module) -> None:
    """Replace every Swin block in a timm model by a `DenseSwinBlock`; other models stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, SwinTransformerBlock):
                setattr(module, name, DenseSwinBlock(child))

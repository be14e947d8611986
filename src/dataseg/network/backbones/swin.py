"""Swin for images of any size, as its authors have it for dense prediction.

Shape legend: B = batch, H, W = rows, columns of a feature map, C = channels, S = window side.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from dataseg.network.backbones.windows import crop, cut_windows, join_windows, pad_to_windows
from dataseg.structures import UserError


class DenseSwinBlock(nn.Module):
    """A timm block's layers, under the same names, with the map padded to whole windows *before* it is shifted.

    timm shifts first. Wherever windows do not divide the map the two differ, and published detection and segmentation
    weights were trained with the former (arXiv 2103.14030, official object detection code).
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.side: int = block.window_size[0]
        self.shift: int = block.shift_size[0]
        if block.window_size[1] != self.side:
            raise UserError(f"Swin's windows must be squares, not {block.window_size}")

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``."""
        x = x + self.drop_path1(self._attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        x = pad_to_windows(x, self.side)
        shape = (x.shape[0], x.shape[1], x.shape[2])
        if not self.shift:
            return crop(join_windows(self.attn(cut_windows(x, self.side)), self.side, shape), H, W)
        x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(cut_windows(x, self.side), mask=self._shift_mask(shape[1:], like=x))
        x = torch.roll(join_windows(windows, self.side, shape), shifts=(self.shift, self.shift), dims=(1, 2))
        return crop(x, H, W)

    def _shift_mask(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """``[windows, S * S, S * S]``: -100 between pixels that only the shift has brought together, else 0."""
        rows, columns = (self._regions(length, like.device) for length in size)
        region = (3 * rows[:, None] + columns)[None, :, :, None]
        region = cut_windows(region, self.side)[..., 0]
        apart = region[:, None] != region[:, :, None]
        return torch.zeros_like(apart, dtype=like.dtype).masked_fill(apart, -100.0)

    def _regions(self, length: int, device: torch.device) -> Tensor:
        """``[length]``: 0 for whole windows, 1 and 2 for the parts of the last one that lay apart before the shift."""
        index = torch.arange(length, device=device)
        return (index >= length - self.side).long() + (index >= length - self.shift).long()


def pad_before_shifting(model: nn.Module) -> None:
    """Replace every Swin block in a timm model by a `DenseSwinBlock`; other models stay as they are."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, SwinTransformerBlock):
                setattr(module, name, DenseSwinBlock(child))

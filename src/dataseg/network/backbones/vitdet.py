"""ViTDet: a plain vision transformer as a backbone (arXiv 2203.16527).

Shape legend: B = batch, h, w = rows, columns of tokens (one per patch of 16 x 16 pixels), C = width.
"""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F  # noqa: N812
from timm.layers import LayerNorm2d  # type: ignore[attr-defined]
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dataseg.network import recompute
from dataseg.network.backbones.base import IMAGENET_MEAN, IMAGENET_STD, STRIDES, Backbone
from dataseg.network.backbones.timm_factory import create_model, probe_model
from dataseg.network.backbones.windows import crop, cut_windows, join_windows, pad_to_windows
from dataseg.structures import UserError

PATCH = 16


class ViTDet(Backbone):
    """A plain ViT of timm, most of its blocks restricted to windows, and a simple feature pyramid on its last map.

    The position embedding is resampled to the size of the images, whatever it is. Class and register tokens and the
    final norm take no part.

    Args:
        name: of the timm model, e.g. ``vit_base_patch16_224.mae``, ``vit_large_patch16_224.mae``,
            ``vit_base_patch16_224.dino``; for other patch sizes give ``{patch_size: 16}`` as option.
        pretrained: start from timm's weights (downloaded once to the Hugging Face cache).
        out_channels: of the four maps.
        window: side of the windows, in tokens.
        global_blocks: blocks with global attention; the last of each of so many equal parts of the depth.
        lr_decay: layer-wise learning-rate decay: factor from each block to the one before it. The paper takes 0.7 for
            ViT-B and 0.8 for ViT-L.
        checkpointing: compute each block's activations again in the backward pass, to save memory.
        options: further arguments of the timm model, e.g. ``{drop_path_rate: 0.1}`` (the paper's for ViT-B; 0.4: L).

    Raises:
        UserError: no such model or option, no plain ViT, another patch size, or a depth that is not divisible.
    """

    def __init__(
        self,
        name: str = "vit_base_patch16_224.mae",
        pretrained: bool = True,
        out_channels: int = 256,
        window: int = 14,
        global_blocks: int = 4,
        lr_decay: float = 0.7,
        checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        probe = probe_model(name, options)
        _check_plain(name, probe, global_blocks)
        vit = create_model(name, pretrained, **options)
        self.mean = tuple(vit.pretrained_cfg.get("mean", IMAGENET_MEAN))
        self.std = tuple(vit.pretrained_cfg.get("std", IMAGENET_STD))
        self.patch_embed = vit.patch_embed.proj
        self.norm_pre = vit.norm_pre
        grid = vit.patch_embed.grid_size
        patches = vit.pos_embed[:, -grid[0] * grid[1] :].detach()  # without those of class and register tokens
        self.pos_embed = nn.Parameter(patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous())
        part = len(vit.blocks) // global_blocks
        self.blocks = nn.ModuleList(
            WindowedBlock(block, None if (index + 1) % part == 0 else window) for index, block in enumerate(vit.blocks)
        )
        self.pyramid = SimpleFeaturePyramid(vit.embed_dim, out_channels)
        self.channels = (out_channels,) * len(STRIDES)
        self.lr_decay = lr_decay
        self.checkpointing = checkpointing

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`; sizes that patches do not divide are filled up with zeros, the mean colour."""
        H, W = images.shape[-2:]
        maps = self.pyramid(self.encode(F.pad(images, (0, -W % PATCH, 0, -H % PATCH))))
        return [m[..., : -(-H // s), : -(-W // s)] for m, s in zip(maps, STRIDES, strict=True)]

    def encode(self, images: Tensor) -> Tensor:
        """``[B, 3, 16 h, 16 w]`` -> the last block's map ``[B, C, h, w]``, before the pyramid."""
        tokens = self.patch_embed(images)
        position = F.interpolate(self.pos_embed, size=tokens.shape[-2:], mode="bicubic", align_corners=False)
        x = self.norm_pre((tokens + position).permute(0, 2, 3, 1))
        for block in self.blocks:
            x = recompute.run(block, x, again=self.checkpointing and self.training)
        return x.permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def checkpoint_activations(self) -> None:
        """See `Backbone.checkpoint_activations`: of each block."""
        self.checkpointing = True

    def fsdp_blocks(self) -> list[nn.Module]:
        """See `Backbone.fsdp_blocks`."""
        return [*self.blocks, self.pyramid]

    def lr_scale(self, parameter: str) -> float:
        """See `Backbone.lr_scale`: 1 for the pyramid, and one more factor of ``lr_decay`` for each block down."""
        block = re.match(r"blocks\.(\d+)\.", parameter)
        if block:
            layer = int(block[1]) + 1
        elif parameter.startswith("pyramid."):
            layer = len(self.blocks) + 1
        else:
            layer = 0
        return float(self.lr_decay ** (len(self.blocks) + 1 - layer))

    def no_weight_decay(self) -> set[str]:
        """See `Backbone.no_weight_decay`."""
        return {"pos_embed"}


class WindowedBlock(nn.Module):
    """A timm ViT block's layers, under the same names; attention sees one window, or everything.

    Args:
        block: of timm.
        window: side of the windows, in tokens; None = global attention.
    """

    def __init__(self, block: Any, window: int | None) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = block.norm1, block.attn, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """``[B, h, w, C]`` -> ``[B, h, w, C]``."""
        x = x + self.drop_path1(self.ls1(self._attend(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        if self.window is None:
            return self.attn(x.flatten(1, 2)).unflatten(1, (h, w))  # type: ignore[no-any-return]
        x = pad_to_windows(x, self.window)
        windows = self.attn(cut_windows(x, self.window))
        return crop(join_windows(windows, self.window, (x.shape[0], x.shape[1], x.shape[2])), h, w)


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 from the one of stride 16 (ViTDet, section 3)."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.resize = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
                    LayerNorm2d(dim // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2),
                ),
                nn.ConvTranspose2d(dim, dim // 2, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),  # the half patch of an odd number counts
            ]
        )
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in (dim // 4, dim // 2, dim, dim)
        )

    def forward(self, feature: Tensor) -> list[Tensor]:
        """``[B, C, h, w]`` -> ``[B, out_channels, ., .]`` of 4, 2, 1 and 1/2 times the size (rounded up)."""
        return [project(resize(feature)) for resize, project in zip(self.resize, self.project, strict=True)]


def _check_plain(name: str, probe: Any, global_blocks: int) -> None:
    blocks = getattr(probe, "blocks", [])
    if not len(blocks) or not all(type(block) is Block for block in blocks):
        raise UserError(f"backbone {name!r} is no plain vision transformer: take dataseg.network.TimmBackbone")
    if probe.pos_embed is None:
        raise UserError(f"backbone {name!r} has no absolute position embedding that could be resampled")
    if tuple(probe.patch_embed.patch_size) != (PATCH, PATCH):
        raise UserError(
            f"backbone {name!r} has patches of {tuple(probe.patch_embed.patch_size)} pixels, but the pyramid's strides"
            f" need {PATCH}: set options: {{patch_size: {PATCH}}}, which resamples them"
        )
    if len(blocks) % global_blocks:
        raise UserError(f"backbone {name!r} has {len(blocks)} blocks, which {global_blocks} global ones cannot share")

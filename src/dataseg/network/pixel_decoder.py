"""Pixel decoder: multi-scale deformable attention in plain PyTorch, then one FPN step (Mask2Former, section 3.1).

Shape legend::

    B = batch   D = hidden channels   N = pixels of the strides 32, 16 and 8 maps, concatenated in that order
    M = heads   E = D / M channels of a head   L = 3 levels   P = 4 sampling points of a head in a level
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dataseg.network import recompute
from dataseg.network.position_encoding import sine_position_encoding
from dataseg.structures import UserError

NUM_LEVELS = 3
"""Maps that both decoders attend to: strides 32, 16 and 8."""
NUM_POINTS = 4
NORM_GROUPS = 32


@dataclass(frozen=True)
class Levels:
    """Where the tokens of the three maps lie.

    Attributes:
        sizes: (rows, columns) of each map; the areas sum to N.
        position: ``[N, D]``, position encoding plus level embedding.
        grid: ``[N, 2]``, (x, y) of each pixel's centre as `torch.nn.functional.grid_sample` counts it, -1 to 1.
        pixel: ``[L, 2]``, (x, y) size of a level's pixel in the same unit.
    """

    sizes: list[tuple[int, int]]
    position: Tensor
    grid: Tensor
    pixel: Tensor


class MultiScaleDeformableAttention(nn.Module):
    """Each pixel samples a few learnt positions around itself, in every level (Deformable DETR, arXiv 2010.04159)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sampling_offsets = nn.Linear(dim, num_heads * NUM_LEVELS * NUM_POINTS * 2)
        self.attention_weights = nn.Linear(dim, num_heads * NUM_LEVELS * NUM_POINTS)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with equal weights on points that lie 1 to P pixels away, each head looking in its own direction."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, NUM_POINTS + 1, dtype=torch.float32)
        offsets_MLP2 = (direction[:, None, None] * distance[:, None]).expand(-1, NUM_LEVELS, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets_MLP2.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, value: Tensor, levels: Levels) -> Tensor:
        """Sample and mix values.

        Args:
            query: ``[B, N, D]``, position included.
            value: ``[B, N, D]``.
            levels: of the N tokens.

        Returns:
            ``[B, N, D]``.
        """
        B, N, D = value.shape
        M, L, P = self.num_heads, NUM_LEVELS, NUM_POINTS
        value_BDN = self.value_proj(value).transpose(1, 2)
        offsets_BMNLP2 = self.sampling_offsets(query).view(B, N, M, L, P, 2).transpose(1, 2)
        weights = self.attention_weights(query).view(B, N, M, L * P).softmax(-1)
        weights_BMNLP = weights.view(B, N, M, L, P).transpose(1, 2)
        mixed: Tensor | None = None
        values = value_BDN.split([h * w for h, w in levels.sizes], dim=2)
        for level, (level_value, (h, w)) in enumerate(zip(values, levels.sizes, strict=True)):
            positions = levels.grid[:, None] + offsets_BMNLP2[:, :, :, level] * levels.pixel[level]
            sampled = F.grid_sample(
                level_value.reshape(B * M, D // M, h, w).to(positions.dtype),
                positions.flatten(0, 1),
                align_corners=False,
            )
            part = (sampled * weights_BMNLP[:, :, :, level].reshape(B * M, 1, N, P)).sum(-1)
            mixed = part if mixed is None else mixed + part
        assert mixed is not None
        return self.output_proj(mixed.view(B, D, N).transpose(1, 2))  # type: ignore[no-any-return]


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by its norm."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(dim, num_heads)
        self.attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, tokens: Tensor, levels: Levels) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, D]``."""
        tokens = self.attention_norm(tokens + self.attention(tokens + levels.position, tokens, levels))
        return self.feedforward_norm(tokens + self.linear2(F.relu(self.linear1(tokens))))  # type: ignore[no-any-return]


class PixelDecoder(nn.Module):
    """What the network asks of a pixel decoder."""

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: four maps ``[B, C, h, w]`` of strides 4, 8, 16, 32; C may differ.

        Returns:
            Mask features ``[B, D, h, w]`` at the size of the stride-4 map, and `NUM_LEVELS` maps ``[B, D, h, w]`` of
            the strides 32, 16, 8, in that order.
        """
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass from now on, in training mode, to save memory.

        Raises:
            UserError: this pixel decoder cannot.
        """
        raise UserError(f"{type(self).__name__} offers no activation_checkpointing: take none")

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is gathered and freed at a time in sharded training; the rest is gathered with the whole network."""
        return []


class DeformablePixelDecoder(PixelDecoder):
    """Mask2Former's pixel decoder: deformable attention over the strides 32, 16, 8, then one FPN step to stride 4.

    Args:
        in_channels: of the backbone's strides 4, 8, 16, 32.
        dim: hidden channels, a multiple of 32 (group norm) and of ``num_heads``.
    """

    def __init__(
        self, in_channels: Sequence[int], dim: int, num_layers: int, num_heads: int, feedforward_dim: int
    ) -> None:
        super().__init__()
        self.dim = dim
        self.input_projections = nn.ModuleList(  # strides 32, 16, 8
            nn.Sequential(nn.Conv2d(channels, dim, 1), nn.GroupNorm(NORM_GROUPS, dim))
            for channels in reversed(in_channels[1:])
        )
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.layers = nn.ModuleList(DeformableEncoderLayer(dim, num_heads, feedforward_dim) for _ in range(num_layers))
        self.lateral = nn.Sequential(nn.Conv2d(in_channels[0], dim, 1, bias=False), nn.GroupNorm(NORM_GROUPS, dim))
        self.output = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.GroupNorm(NORM_GROUPS, dim), nn.ReLU()
        )
        self.mask_projection = nn.Conv2d(dim, dim, 1)
        self._checkpointing = False
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        for conv in (self.lateral[0], self.output[0], self.mask_projection):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
        assert self.mask_projection.bias is not None
        nn.init.zeros_(self.mask_projection.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See `PixelDecoder.forward`."""
        finest, *rest = features
        maps = [project(f) for project, f in zip(self.input_projections, reversed(rest), strict=True)]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        levels = self._levels([(m.shape[2], m.shape[3]) for m in maps], like=tokens)
        for layer in self.layers:
            tokens = recompute.run(layer, tokens, levels, again=self._checkpointing and self.training)

        sizes = levels.sizes
        split = torch.split(tokens.transpose(1, 2), [h * w for h, w in sizes], dim=2)
        maps = [part.reshape(tokens.shape[0], self.dim, h, w) for part, (h, w) in zip(split, sizes, strict=True)]
        finest = self.lateral(finest)
        upsampled = F.interpolate(maps[-1], size=finest.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_projection(self.output(finest + upsampled)), maps

    def checkpoint_activations(self) -> None:
        """See `PixelDecoder.checkpoint_activations`: of each deformable layer."""
        self._checkpointing = True

    def fsdp_blocks(self) -> list[nn.Module]:
        """See `PixelDecoder.fsdp_blocks`."""
        return list(self.layers)

    def _levels(self, sizes: list[tuple[int, int]], like: Tensor) -> Levels:
        position = torch.cat(
            [
                sine_position_encoding(h, w, self.dim, like=like) + level
                for (h, w), level in zip(sizes, self.level_embed.weight, strict=True)
            ]
        )
        return Levels(
            sizes=sizes,
            position=position,
            grid=torch.cat([_pixel_centres(h, w, like=position) for h, w in sizes]),
            pixel=2 / torch.tensor([(w, h) for h, w in sizes], device=like.device, dtype=position.dtype),
        )


def _pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """``[height * width, 2]``: (x, y) of pixel centres, where -1 and 1 are the map's borders."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)

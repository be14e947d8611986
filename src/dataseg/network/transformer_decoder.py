"""Transformer decoder with masked attention (Mask2Former, section 3.2).

Shape legend::

    B = batch   Q = queries   D = hidden channels   M = heads   N = pixels of one feature map
    H, W = rows, columns of the mask features (stride 4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dataseg.network import recompute
from dataseg.network.base import mask_head
from dataseg.network.pixel_decoder import NUM_LEVELS
from dataseg.network.position_encoding import sine_position_encoding


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            # The bound of torch's own attention, which draws the three matrices as one [3D, D]
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``[B, Q, D]``.
            key: ``[B, N, D]``.
            value: ``[B, N, D]``.
            visible: bool ``[B, Q, N]``, what a query may look at; at least one True in each row. None = everything.

        Returns:
            ``[B, Q, D]``.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = None if visible is None else visible[:, None]
        mixed_BMQE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed_BMQE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and a feed-forward network, each followed by its norm."""

    def __init__(self, dim: int, num_heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.cross_attention = Attention(dim, num_heads)
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads)
        self.self_attention_norm = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor, query_position: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """``[B, Q, D]`` -> ``[B, Q, D]``; query_position is ``[Q, D]``, the rest as in `Attention`."""
        attended = self.cross_attention(queries + query_position, key, value, visible)
        queries = self.cross_attention_norm(queries + attended)
        positioned = queries + query_position
        queries = self.self_attention_norm(queries + self.self_attention(positioned, positioned, queries))
        return self.feedforward_norm(queries + self.linear2(F.relu(self.linear1(queries))))  # type: ignore[no-any-return]


class TransformerDecoder(nn.Module):
    """Learnt queries that gather what belongs to them from the strides 32, 16, 8, layer by layer, in turn."""

    def __init__(self, dim: int, num_queries: int, num_layers: int, num_heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.query_features = nn.Embedding(num_queries, dim)
        self.query_positions = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.layers = nn.ModuleList(DecoderLayer(dim, num_heads, feedforward_dim) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.mask_embed = mask_head(dim, nn.ReLU)
        self._checkpointing = False

    def forward(self, mask_features: Tensor, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Decode.

        Args:
            mask_features: ``[B, D, H, W]``.
            maps: three maps ``[B, D, h, w]`` of the strides 32, 16, 8.

        Returns:
            (queries ``[B, Q, D]`` after the decoder's norm, mask logits ``[B, Q, H, W]``) before the first layer and
            after each layer: one more than there are layers, the last one being the result.
        """
        values = [m.flatten(2).transpose(1, 2) + level for m, level in zip(maps, self.level_embed.weight, strict=True)]
        keys = [
            value + sine_position_encoding(m.shape[2], m.shape[3], self.dim, like=value)
            for m, value in zip(maps, values, strict=True)
        ]
        queries = self.query_features.weight.expand(mask_features.shape[0], -1, -1)
        predictions = [self._predict(queries, mask_features)]
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            visible = visible_pixels(predictions[-1][1], (maps[level].shape[2], maps[level].shape[3]))
            inputs = queries, self.query_positions.weight, keys[level], values[level], visible
            queries = recompute.run(layer, *inputs, again=self._checkpointing and self.training)
            predictions.append(self._predict(queries, mask_features))
        return predictions

    def checkpoint_activations(self) -> None:
        """Compute each layer's activations again in the backward pass from now on, in training mode."""
        self._checkpointing = True

    def _predict(self, queries: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.norm(queries)
        return queries, torch.einsum("bqd,bdhw->bqhw", self.mask_embed(queries), mask_features)


@torch.no_grad()
def visible_pixels(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of a feature map each query may look at: those its own mask covers, or all if it covers none.

    Args:
        mask_logits: ``[B, Q, H, W]``.
        size: (rows, columns) of the feature map, h and w.

    Returns:
        bool ``[B, Q, h * w]``.
    """
    covered = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).flatten(2) >= 0
    return covered | ~covered.any(-1, keepdim=True)

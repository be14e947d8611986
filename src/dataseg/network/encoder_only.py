"""The encoder-only network: a plain ViT with queries in its last blocks (EoMT, arXiv 2503.19108).

Shape legend: B = batch, Q = queries, D = width, N = tokens (queries, prefix, patches), H, W = image rows, columns,
h, w = rows, columns of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import LayerNorm2d  # type: ignore[attr-defined]
from torch import Tensor, nn

from dataseg.network.base import Queries, SegmentationNetwork, mask_head
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.mask_annealing import mask_probability, masked_queries, published_intervals
from dataseg.network.vit import PATCH, PlainViT
from dataseg.structures import UserError


class EncoderOnlyNetwork(SegmentationNetwork):
    """A plain ViT whose last blocks attend jointly to learnt queries and patches; there is no decoder.

    While training, the network predicts before each of these blocks too, and a query of the block may look only at
    patches that its own mask covers; less and less often so in the course of training (see
    `dataseg.network.mask_annealing`). In evaluation mode there is one prediction, and no mask.

    Args:
        backbone: the ViT.
        num_queries: Q, proposals an image.
        num_blocks: last blocks of the ViT that the queries go through; the authors take 3 for ViT-S and ViT-B, 4 for
            L, 5 for g.
        text_dim: width of the text embeddings (768: CLIP ViT-L/14).
        classifier: in place of a `TextClassifier` of ``text_dim``.
        annealing: start and end of each block's mask annealing, as fractions of the run; None = the published ones.
        activation_checkpointing: "all": the blocks' activations are computed again in the backward pass, to save
            memory.

    Raises:
        UserError: the ViT has too few blocks, or ``annealing`` is not one rising interval for each block.
    """

    checkpointing = ("none", "all")

    backbone: PlainViT
    mask_probability: Tensor

    def __init__(
        self,
        backbone: PlainViT,
        num_queries: int = 200,
        num_blocks: int = 4,
        text_dim: int = 768,
        classifier: Classifier | None = None,
        annealing: list[tuple[float, float]] | None = None,
        activation_checkpointing: Literal["none", "all"] = "none",
    ) -> None:
        super().__init__(backbone.mean, backbone.std)
        if not 0 < num_blocks <= backbone.depth:
            raise UserError(f"num_blocks must be 1 to {backbone.depth}, the ViT's blocks; got {num_blocks}")
        self.annealing = _checked(annealing, num_blocks) if annealing else published_intervals(num_blocks)
        self.num_queries, self.num_blocks = num_queries, num_blocks
        self.backbone = backbone
        if activation_checkpointing == "all":
            backbone.checkpoint_activations()
        backbone.expect_queries(num_blocks, num_queries)
        self.queries = nn.Embedding(num_queries, backbone.width)
        self.mask_head = mask_head(backbone.width, nn.GELU)
        self.upscale = nn.Sequential(_upscale_block(backbone.width), _upscale_block(backbone.width))
        self.classifier = classifier or TextClassifier(backbone.width, text_dim)
        self.register_buffer("mask_probability", torch.ones(num_blocks))
        self._masked: list[Tensor | bool] = [True] * num_blocks

    def fsdp_blocks(self) -> list[nn.Module]:
        """See `SegmentationNetwork.fsdp_blocks`: the ViT's blocks."""
        return list(self.backbone.vit.blocks)

    def start_step(self, seed: int, step: int, total_steps: int) -> None:
        """See `SegmentationNetwork.start_step`; until then all queries are masked."""
        probabilities = [mask_probability(step / total_steps, interval) for interval in self.annealing]
        self.mask_probability.copy_(torch.tensor(probabilities))
        self._masked = [
            bool(p) if p in (0, 1) else masked_queries(seed, step, block, self.num_queries, p)
            for block, p in enumerate(probabilities)
        ]

    def decode(self, normalized: Tensor) -> list[Queries]:
        """See `SegmentationNetwork.decode`; sizes that patches do not divide are filled up with zeros, the mean colour.

        Returns:
            Queries before each of the last ``num_blocks`` blocks (deep supervision; in training mode only) and after
            the last.
        """
        H, W = normalized.shape[-2:]
        padded = F.pad(normalized, (0, -W % PATCH, 0, -H % PATCH))
        grid = padded.shape[-2] // PATCH, padded.shape[-1] // PATCH
        tokens, rotary = self.backbone.embed(padded)
        first = self.backbone.depth - self.num_blocks
        for index in range(first):
            tokens = self.backbone.run_block(index, tokens, rotary)
        tokens = torch.cat([self.queries.weight.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        found: list[Queries] = []
        for block in range(self.num_blocks):
            visible = None
            if self.training:
                found.append(self._predict(tokens, grid))
                visible = self._visible(block, found[-1].mask_logits, grid, tokens.shape[1])
            tokens = self.backbone.run_block(first + block, tokens, rotary, visible)
        found.append(self._predict(tokens, grid))
        h, w = -(-H // 4), -(-W // 4)
        return [Queries(queries.embeddings, queries.mask_logits[..., :h, :w]) for queries in found]

    def _predict(self, tokens: Tensor, grid: tuple[int, int]) -> Queries:
        """Queries, with mask logits of the padded image, ``[B, Q, 4 h, 4 w]``."""
        normed = self.backbone.vit.norm(tokens)
        embeddings = normed[:, : self.num_queries]
        patches = normed[:, self.num_queries + self.backbone.vit.num_prefix_tokens :]
        features = self.upscale(patches.transpose(1, 2).unflatten(2, grid))
        return Queries(embeddings, torch.einsum("bqd,bdhw->bqhw", self.mask_head(embeddings), features))

    @torch.no_grad()
    def _visible(self, block: int, mask_logits: Tensor, grid: tuple[int, int], num_tokens: int) -> Tensor | None:
        """What each token may look at in one of the last blocks, bool ``[B, 1, N, N]``; None = everything.

        A masked query sees the patches that its mask covers, the other queries and the prefix tokens.
        """
        masked = self._masked[block]
        if masked is False:
            return None
        covered = F.interpolate(mask_logits, size=grid, mode="bilinear", align_corners=False).flatten(2) > 0
        visible = covered.new_ones(len(covered), num_tokens, num_tokens)
        if isinstance(masked, Tensor):
            covered = covered | ~masked.to(covered.device)[:, None]
        visible[:, : self.num_queries, -covered.shape[2] :] = covered
        return visible[:, None]


def _upscale_block(dim: int) -> nn.Sequential:
    """``[B, D, h, w]`` -> ``[B, D, 2 h, 2 w]``."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        nn.GELU(),
        nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False),
        LayerNorm2d(dim),
    )


def _checked(annealing: Sequence[tuple[float, float]], num_blocks: int) -> list[tuple[float, float]]:
    if len(annealing) != num_blocks or not all(0 <= start < end <= 1 for start, end in annealing):
        raise UserError(
            f"annealing needs a start and a later end in [0, 1] for each of {num_blocks} blocks, got {annealing}"
        )
    return list(annealing)

"""Plain vision transformers of timm, run block by block.

Shape legend: B = batch, h, w = rows, columns of patches (16 x 16 pixels), P = prefix tokens (class, registers),
N = tokens, D = width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.layers import PatchEmbed  # type: ignore[attr-defined]
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dataseg.network import recompute
from dataseg.network.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from dataseg.network.backbones.timm_factory import create_model, probe_model
from dataseg.structures import UserError

PATCH = 16


class PlainViT(nn.Module):
    """A plain ViT of timm for images of any size: DINOv2, DINOv3, MAE, EVA-02, SigLIP 2, ...

    Other patches are resampled to 16 x 16 pixels, and absolute position embeddings to the size of the images; rotary
    ones are computed, and turn patches alone. Pooling and heads are left out; the final norm stays.

    Args:
        name: of the timm model, e.g. ``vit_large_patch14_reg4_dinov2``, ``vit_large_patch16_dinov3_qkvb``,
            ``vit_base_patch16_224.mae``, ``eva02_base_patch14_448``, ``vit_base_patch16_siglip_512.v2_webli``.
        pretrained: start from timm's weights (downloaded once to the Hugging Face cache).
        lr_decay: layer-wise learning-rate decay: factor from each block to the one before it.
        checkpointing: compute each block's activations again in the backward pass, to save memory.
        options: further arguments of the timm model, e.g. ``{drop_path_rate: 0.1}``, or ``{img_size: 640}``: the size
            for which position embeddings are kept.

    Attributes:
        mean: RGB of the images it was trained on, of values in [0, 1].
        std: likewise.

    Raises:
        UserError: no such model or option, no weights, or no plain ViT whose attention can be masked.
    """

    def __init__(
        self,
        name: str = "vit_large_patch14_reg4_dinov2",
        pretrained: bool = True,
        lr_decay: float = 0.8,
        checkpointing: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        _check_plain(name, probe_model(name, options))
        options = {"patch_size": PATCH, "dynamic_img_size": True, "num_classes": 0} | options
        _check_masking(name, _without_head(name, probe_model(name, options)))
        self.vit = _without_head(name, create_model(name, pretrained, **options))
        self.mean = tuple(self.vit.pretrained_cfg.get("mean", IMAGENET_MEAN))
        self.std = tuple(self.vit.pretrained_cfg.get("std", IMAGENET_STD))
        self.lr_decay = lr_decay
        self.checkpointing = checkpointing

    @property
    def width(self) -> int:
        """D."""
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images ``[B, 3, 16 h, 16 w]``, normalised -> tokens ``[B, P + h * w, D]``, rotary embedding or None."""
        return _embed(self.vit, images)

    def run_block(self, index: int, tokens: Tensor, rotary: Tensor | None, visible: Tensor | None = None) -> Tensor:
        """One block, ``[B, N, D]`` -> ``[B, N, D]``.

        Args:
            index: of the block, from 0.
            tokens: patches last.
            rotary: from `embed`.
            visible: bool ``[B, 1, N, N]``, what each token may look at; at least one True in each row. None =
                everything.
        """
        return _run_block(self.vit, index, tokens, rotary, visible, self.checkpointing and self.training)

    def checkpoint_activations(self) -> None:
        """Compute each block's activations again in the backward pass from now on, in training mode."""
        self.checkpointing = True

    def expect_queries(self, blocks: int, queries: int) -> None:
        """Let the last blocks find more tokens in front of the patches, which rotary embeddings do not turn."""
        for part in self.vit.blocks[-blocks:].modules():
            if hasattr(part, "num_prefix_tokens"):
                part.num_prefix_tokens += queries

    def lr_scale(self, parameter: str) -> float:
        """Factor on the learning rate of a parameter, by its name in `named_parameters`.

        1 for the last block and the final norm, one more factor of ``lr_decay`` for each block down; embeddings are
        the first block's.
        """
        if parameter.startswith("vit.norm."):
            return 1.0
        block = re.match(r"vit\.blocks\.(\d+)\.", parameter)
        return float(self.lr_decay ** (self.depth - 1 - (int(block[1]) if block else 0)))

    def no_weight_decay(self) -> set[str]:
        """What timm excuses from weight decay, by the names in `named_parameters`."""
        excused: set[str] = self.vit.no_weight_decay()
        return {f"vit.{name}" for name in excused}


def _embed(vit: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    embedded = vit._pos_embed(vit.patch_embed(images))
    tokens, rotary = embedded if isinstance(embedded, tuple) else (embedded, None)
    return vit.norm_pre(tokens), rotary


def _run_block(
    vit: Any, index: int, tokens: Tensor, rotary: Tensor | None, visible: Tensor | None, again: bool = False
) -> Tensor:
    block: nn.Module = vit.blocks[index]
    options: dict[str, Any] = {"attn_mask": visible}
    if rotary is not None:
        options["rope"] = rotary[index] if vit.rope_mixed else rotary  # mixed: one for each block
    return recompute.run(block, tokens, again=again, **options)


def _without_head(name: str, vit: Any) -> Any:
    """Leave out what comes behind the final norm: parameters without a gradient would stop distributed training."""
    if isinstance(vit.norm, nn.Identity):
        vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()  # as models with average pooling have it
    if isinstance(vit.norm, nn.Identity):
        raise UserError(f"backbone {name!r} has no final norm, which the mask module reads from")
    vit.fc_norm = vit.head = nn.Identity()
    vit.attn_pool = None
    return vit


def _check_plain(name: str, probe: Any) -> None:
    if not isinstance(probe, VisionTransformer | Eva) or not isinstance(probe.patch_embed, PatchEmbed):
        raise UserError(
            f"backbone {name!r} is a {type(probe).__name__}, no plain vision transformer: take one of timm's"
            " VisionTransformer or Eva models, such as vit_base_patch14_reg4_dinov2"
        )
    if isinstance(probe.patch_drop, nn.Module) and not isinstance(probe.patch_drop, nn.Identity):
        raise UserError(f"backbone {name!r}: every patch is needed, so patch_drop_rate must be 0")


def _check_masking(name: str, probe: Any) -> None:
    """Try a model on the meta device, with a mask in its attention."""
    if tuple(probe.patch_embed.patch_size) != (PATCH, PATCH):
        raise UserError(
            f"backbone {name!r} has patches of {tuple(probe.patch_embed.patch_size)} pixels, but masks of stride 4 need"
            f" {PATCH}: leave patch_size out of the options, then they are resampled"
        )
    try:
        tokens, rotary = _embed(probe, torch.zeros(1, 3, 2 * PATCH, 3 * PATCH, device="meta"))
        N = tokens.shape[1]
        _run_block(probe, 0, tokens, rotary, torch.ones(1, 1, N, N, dtype=torch.bool, device="meta"))
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"backbone {name!r} does not take images of any size with a mask in its attention"
            f" ({type(error).__name__}: {error}): take another, such as vit_base_patch14_reg4_dinov2"
        ) from error

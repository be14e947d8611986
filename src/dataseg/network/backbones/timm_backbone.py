"""Backbones: images -> four feature maps of strides 4, 8, 16 and 32.

Shape legend: B = batch, H, W = image rows, columns.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]
from timm.models import FeatureListNet
from torch import Tensor, nn

from dataseg.network.backbones.base import IMAGENET_MEAN, IMAGENET_STD, STRIDES, Backbone
from dataseg.network.backbones.folding import convolutions_before_norms, fold
from dataseg.network.backbones.swin import pad_before_shifting
from dataseg.network.backbones.timm_factory import create_model, probe_model
from dataseg.structures import UserError

_PROBED = (65, 97)
"""Rows and columns of the image that models are tried on."""


class TimmBackbone(Backbone):
    """Any timm model with features at strides 4, 8, 16 and 32 that takes images of any size, or of multiples of 32.

    Channels and strides are what timm reports.

    Args:
        name: of the timm model, with or without a pretrained tag.
        pretrained: start from timm's weights (downloaded once to the Hugging Face cache).
        freeze_norm: fix the statistics and the affine parameters of every batch norm, in training mode too, as
            detectron2's FrozenBatchNorm2d does. Other norms are left alone. Needs pretrained weights to make sense. The
            convolutions before them compute them too.
        output_norm: a layer norm on each map, as Swin has it for dense prediction.
        options: further arguments of the timm model, e.g. ``{drop_path_rate: 0.1}``.

    Raises:
        UserError: no such model or option, no features at some stride, images of one size only, or no weights.
    """

    def __init__(
        self,
        name: str = "resnet50",
        pretrained: bool = True,
        freeze_norm: bool = True,
        output_norm: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(options or {})
        probe = probe_model(name, options)
        indices = _stride_indices(name, probe)
        self.mean = tuple(probe.pretrained_cfg.get("mean", IMAGENET_MEAN))
        self.std = tuple(probe.pretrained_cfg.get("std", IMAGENET_STD))
        of_features = {"features_only": True, "out_indices": indices} | _any_size_options(probe) | options
        features = probe_model(name, of_features)
        self._divisor = _size_divisor(name, features, _patch_divisor(probe))
        self.model = create_model(name, pretrained, **of_features)
        pad_before_shifting(self.model)
        if freeze_norm:
            self.model = freeze_batch_norm_2d(self.model)  # type: ignore[no-untyped-call]
            fold(self.model, convolutions_before_norms(features, torch.zeros(1, 3, 64, 64, device="meta")))
        self.channels = tuple(self.model.feature_info.channels())
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels) if output_norm else None
        self._channels_last = _is_channels_last(self.model)
        self._checkpointing = False
        self._undecayed = tuple(_flat(key) for key in getattr(probe, "no_weight_decay", set)())

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`; sizes that the model does not take are filled up with zeros, the mean colour."""
        H, W = images.shape[-2:]
        padding = (0, -W % self._divisor, 0, -H % self._divisor)
        features = self.model(F.pad(images, padding) if any(padding) else images)
        maps = []
        for index, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
            map_BHWC = feature if self._channels_last else feature.permute(0, 2, 3, 1)
            map_BHWC = map_BHWC[:, : -(-H // stride), : -(-W // stride)]
            if self.norms is not None:
                map_BHWC = self.norms[index](map_BHWC)
            maps.append(map_BHWC.permute(0, 3, 1, 2))
        return maps

    def checkpoint_activations(self) -> None:
        """See `Backbone.checkpoint_activations`: of each stage, as timm does it."""
        if not hasattr(self.model, "set_grad_checkpointing"):
            super().checkpoint_activations()
        self._checkpointing = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's."""
        if self._checkpointing:
            self.model.set_grad_checkpointing(mode)
        return super().train(mode)

    def fsdp_blocks(self) -> list[nn.Module]:
        """The model's stages, if it runs them as modules of their own."""
        stages = self.model.children() if isinstance(self.model, FeatureListNet) else ()
        return [stage for stage in stages if any(True for _ in stage.parameters())]

    def no_weight_decay(self) -> set[str]:
        """What timm says of the whole model."""
        return {name for name, _ in self.named_parameters() if _flat(name).endswith(self._undecayed)}


def _flat(parameter: str) -> str:
    """A name as it ends whether features are taken or not, which makes ``layers.0`` ``model.layers_0``."""
    return "_" + parameter.replace(".", "_")


def _stride_indices(name: str, probe: Any) -> list[int]:
    """Which of the model's features to take: the last of each stride."""
    info = probe.feature_info if isinstance(probe.feature_info, list) else probe.feature_info.get_dicts()
    reductions = [int(entry["reduction"]) for entry in info]
    missing = sorted(set(STRIDES) - set(reductions))
    if missing:
        raise UserError(
            f"backbone {name!r} offers features at strides {sorted(set(reductions))}, but {missing} are needed too:"
            " take a hierarchical model, or dataseg.network.ViTDet for a plain vision transformer"
        )
    return [max(i for i, reduction in enumerate(reductions) if reduction == stride) for stride in STRIDES]


def _any_size_options(probe: Any) -> dict[str, Any]:
    """What makes the model take images of any size, if its class has such a switch (Swin).

    Swin must also keep its windows as they are; timm would shrink them where the nominal image is smaller.
    """
    accepted = inspect.signature(type(probe).__init__).parameters
    wanted = {"strict_img_size": False, "always_partition": True}
    return {key: value for key, value in wanted.items() if key in accepted}


def _patch_divisor(probe: nn.Module) -> int:
    """Image sizes must be multiples of this for no pixel to be lost in a convolution that does not overlap."""
    product = math.prod(
        m.stride[0]
        for m in probe.modules()
        if isinstance(m, nn.Conv2d) and m.stride[0] > 1 and m.kernel_size == m.stride and m.padding == (0, 0)
    )
    return min(product, STRIDES[-1])


def _is_channels_last(model: nn.Module) -> bool:
    return bool(getattr(model, "output_fmt", "NCHW") == "NHWC")


def _size_divisor(name: str, model: nn.Module, patch_divisor: int) -> int:
    """What image sizes are filled up to multiples of: patches if that will do, else the largest stride.

    Tried without weights on sizes just past a multiple of 32: there models that round down lose a row at every stride,
    and those that add maps of several strides fail.

    Args:
        model: of features, on the meta device; changed.
        patch_divisor: from `_patch_divisor`.

    Raises:
        UserError: the maps are not of the sizes needed even for multiples of the largest stride.
    """
    pad_before_shifting(model)
    model.eval()
    H, W = _PROBED
    failure: Exception | None = None
    for divisor in (patch_divisor, STRIDES[-1]):
        images = torch.zeros(1, 3, H + -H % divisor, W + -W % divisor, device="meta")
        H, W = images.shape[-2:]
        try:
            maps = model(images)
        except (AssertionError, RuntimeError, ValueError) as error:
            what, failure = f"takes images of one size only: {H} x {W} fails with {type(error).__name__}", error
            continue
        first = 1 if _is_channels_last(model) else 2
        sizes = [tuple(m.shape[first : first + 2]) for m in maps]
        if all(h * stride >= H and w * stride >= W for (h, w), stride in zip(sizes, STRIDES, strict=True)):
            return divisor
        what, failure = f"leaves out the border of images: of {H} x {W} its maps are {sizes}", None
    reason = f" ({failure})" if failure and str(failure) else ""
    raise UserError(f"backbone {name!r} {what}{reason}. Take another, such as a ResNet, ConvNeXt or Swin") from failure

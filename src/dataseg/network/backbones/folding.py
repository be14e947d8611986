"""Frozen batch norms computed by the convolutions before them.

A frozen batch norm is a fixed scale and shift of each channel, so a convolution with scaled weights and a bias gives
its result: without two more maps of every layer in memory, and under autocast in 16 bits throughout. Parameters and
buffers keep their places and names.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]


class _FoldingConv2d(nn.Conv2d):
    """A convolution and the frozen norm after it, which stays registered where it was."""

    folded: tuple[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        norm: Any = self.folded[0]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias * scale
        return self._conv_forward(input, self.weight * scale[:, None, None, None], shift)  # type: ignore[no-any-return]


class _FoldedNorm(FrozenBatchNorm2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return x


class _FoldedNormAct(FrozenBatchNormAct2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))  # type: ignore[no-any-return]


_FOLDED = {FrozenBatchNorm2d: _FoldedNorm, FrozenBatchNormAct2d: _FoldedNormAct}


def convolutions_before_norms(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Names of the batch norms that take a convolution's output as it is, and of that convolution.

    Args:
        model: with or without weights; run once.
        images: that it takes.
    """
    names = {module: name for name, module in model.named_modules()}
    outputs: list[tuple[Tensor, str]] = []  # kept, so that no other tensor gets the identity of one of them
    found: dict[str, str] = {}

    def after_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append((output, names[module]))

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for output, convolution in outputs:
            if output is inputs[0]:
                found[names[module]] = convolution

    hooks = [m.register_forward_hook(after_convolution) for m in names if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(before_norm) for m in names if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def fold(model: nn.Module, convolutions: dict[str, str]) -> None:
    """Let convolutions compute the frozen norms after them; in place.

    Args:
        model: whose batch norms are frozen.
        convolutions: from `convolutions_before_norms`; those of norms that are not frozen stay as they are.
    """
    for norm_name, conv_name in convolutions.items():
        norm, conv = model.get_submodule(norm_name), model.get_submodule(conv_name)
        if type(norm) in _FOLDED:
            norm.__class__ = _FOLDED[type(norm)]
            conv.__class__ = _FoldingConv2d
            conv.folded = (norm,)  # type: ignore[assignment]  # a tuple, so that the norm is registered once

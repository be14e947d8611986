"""Activations that are computed again in the backward pass, to save memory."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *inputs: Any, again: bool, **options: Any) -> Tensor:
    """A module's output.

    Args:
        again: its activations are not kept, but computed again in the backward pass.
    """
    if again:
        return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False, **options))
    return cast(Tensor, module(*inputs, **options))

"""AdamW parameter groups and learning-rate schedule (Mask2Former's recipe)."""

from __future__ import annotations

import fnmatch
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dataseg.structures import UserError


@dataclass(frozen=True)
class Optimization:
    """AdamW with warm-up and decay.

    Attributes:
        lr: peak learning rate of everything but the backbone.
        weight_decay: of the parameters that ``decayed`` says.
        decayed: "weights": not norms, embeddings, biases and other one-dimensional parameters, as usual for AdamW with
            transformers (default). "official": biases of layers and the pixel decoder's level embedding too, as the
            official Mask2Former code: 135 tensors of the decoders, and 49 of Swin-T. "all" (EoMT's authors).
        backbone_lr_factor: backbone's learning rate / lr.
        warmup_steps: linear from 0 to the peak over these optimisation steps.
        backbone_warmup_steps: the backbone's rate is 0 during ``warmup_steps``, and then rises over these steps (EoMT);
            0 = it rises with the others.
        schedule: "step" multiplies by ``step_factor`` at each of ``milestones``; "poly" decays as
            (1 - progress) ** ``poly_power``; "constant" does neither.
        milestones: fractions of the run, in (0, 1); default: as the Mask2Former paper states them. The official
            configurations have 0.889 and 0.963.
        frozen: patterns of names of the network's parameters that are not trained, with ``*`` for any part of a name:
            ``["backbone.*"]``. Running statistics of batch norms are another matter: see the backbone's freeze_norm.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    decayed: Literal["weights", "official", "all"] = "weights"
    backbone_lr_factor: float = 0.1
    warmup_steps: int = 0
    backbone_warmup_steps: int = 0
    schedule: Literal["step", "poly", "constant"] = "step"
    milestones: tuple[float, ...] = (0.9, 0.95)
    step_factor: float = 0.1
    poly_power: float = 0.9
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"optimization.lr must be > 0, got {self.lr}")
        if not all(0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise UserError(f"optimization.milestones are rising fractions of the run in (0, 1), got {self.milestones}")


FUSED = {"cpu", "cuda"}
"""Devices on which AdamW runs as one kernel for all parameters of a group: some 2,000 operations a step fewer."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
LEVEL_EMBEDDING = "pixel_decoder.level_embed.weight"
"""A plain parameter in the official code, so that it decays there; the transformer decoder's is an embedding."""


def _without_decay(network: nn.Module, official: bool) -> set[int]:
    """Ids of the parameters that take no weight decay: one-dimensional ones, embeddings, what the backbone names."""
    ids = {id(p) for p in network.parameters() if p.ndim <= 1}
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            ids |= {id(p) for p in module.parameters(recurse=False)}
        bias = getattr(module, "bias", None)
        if official and isinstance(bias, nn.Parameter) and not isinstance(module, NORMS):
            ids.discard(id(bias))
    own = dict(network.named_parameters())
    if official and LEVEL_EMBEDDING in own:
        ids.discard(id(own[LEVEL_EMBEDDING]))
    excused: set[str] = getattr(getattr(network, "backbone", None), "no_weight_decay", set)()
    return ids | {id(p) for name, p in own.items() if name.removeprefix("backbone.") in excused}


def freeze(network: nn.Module, patterns: Sequence[str]) -> None:
    """Leave the parameters that `Optimization.frozen` names out of training.

    Raises:
        UserError: a pattern that no parameter has, or nothing is left to train.
    """
    own = dict(network.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(own, pattern)
        if not found:
            parts = ", ".join(f"{part}.*" for part in dict.fromkeys(name.partition(".")[0] for name in own))
            raise UserError(f"optimization.frozen: no parameter is called {pattern!r}; the network has {parts}")
        for name in found:
            own[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in own.values()):
        raise UserError(f"optimization.frozen={list(patterns)} leaves nothing to train")


def parameter_groups(network: nn.Module, options: Optimization) -> list[dict[str, Any]]:
    """Groups by learning-rate factor and decay: every trainable parameter stands in exactly one.

    Parameters under ``network.backbone`` take ``backbone_lr_factor``, times ``backbone.lr_scale(name)`` where the
    backbone states one (layer-wise decay).
    """
    undecayed = set() if options.decayed == "all" else _without_decay(network, official=options.decayed == "official")
    lr_scale: Callable[[str], float] = getattr(getattr(network, "backbone", None), "lr_scale", lambda name: 1.0)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        part, factor = "head", 1.0
        if name.startswith("backbone."):
            part, factor = "backbone", options.backbone_lr_factor * lr_scale(name.removeprefix("backbone."))
        decay = 0.0 if id(parameter) in undecayed else options.weight_decay
        title = f"{part}_x{factor:g}_decay{decay:g}"
        late = part == "backbone" and options.backbone_warmup_steps > 0
        group = groups.setdefault(
            (factor, decay, late), {"params": [], "lr": options.lr * factor, "weight_decay": decay, "name": title}
        )
        group["params"].append(parameter)
    return list(groups.values())


def lr_factor(step: int, total_steps: int, options: Optimization, late: bool = False) -> float:
    """Learning rate at an optimisation step, as a fraction of the peak, in [0, 1].

    Args:
        late: of the backbone, where it has a warm-up of its own.
    """
    start, length = (options.warmup_steps, options.backbone_warmup_steps) if late else (0, options.warmup_steps)
    warm = min(1.0, max(0, step + 1 - start) / length) if length else 1.0
    progress = min(1.0, step / total_steps)
    match options.schedule:
        case "step":
            return warm * options.step_factor ** bisect_right(options.milestones, progress)
        case "poly":
            return float(warm * (1 - progress) ** options.poly_power)
        case "constant":
            return warm


def build(network: nn.Module, total_steps: int, options: Optimization) -> tuple[AdamW, LambdaLR]:
    """The optimiser and its schedule, to be stepped once per optimisation step."""
    devices = {parameter.device.type for parameter in network.parameters()}
    optimizer = AdamW(parameter_groups(network, options), fused=devices <= FUSED or None)
    # so that a gradient scaler divides before gradients are clipped, as with every other optimiser
    optimizer._step_supports_amp_scaling = False

    def factor(late: bool) -> Callable[[int], float]:
        return lambda step: lr_factor(step, total_steps, options, late)

    in_backbone = [group["name"].startswith("backbone") for group in optimizer.param_groups]
    return optimizer, LambdaLR(
        optimizer, [factor(inside and options.backbone_warmup_steps > 0) for inside in in_backbone]
    )


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the configuration says of each parameter group, as `build` has put it there."""
    return [{key: group[key] for key in ("name", "initial_lr", "weight_decay")} for group in optimizer.param_groups]


def configure(optimizer: Optimizer, schedule: LambdaLR, wanted: list[dict[str, Any]]) -> list[str]:
    """Put the configuration's `settings` in place of those that came with a checkpoint's optimiser state.

    Returns:
        what is different now, in words.
    """
    changes = []
    for group, new, factor in zip(optimizer.param_groups, wanted, schedule.lr_lambdas, strict=True):
        for key, what in (("initial_lr", "lr"), ("weight_decay", "weight decay")):
            if group[key] != new[key]:
                changes.append(f"{what} of {new['name']} {new[key]:g}, was {group[key]:g}")
        group.update(new, lr=new["initial_lr"] * factor(schedule.last_epoch))
    schedule.base_lrs = [new["initial_lr"] for new in wanted]
    return changes

"""Mask terms, for all pairs of a query and a target (costs) and for matched pairs (losses).

Shape legend: ``Q`` = queries, ``K`` = target segments, ``M`` = matched pairs, ``P`` = points,
``h, w`` = rows and columns of the mask logits; ``...`` = any leading dimensions, e.g. decoder layers.

Everything is float32: callers leave autocast first. No term averages over segments: the criterion divides by the
number of segments over all ranks.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

MaskLoss: TypeAlias = Literal["bce", "focal"]

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""RetinaNet's values (arXiv 1708.02002), as in MaskFormer."""


def _focal_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss of each logit if its target is 1, and if it is 0."""
    probs = logits.sigmoid()
    positive = FOCAL_ALPHA * (1 - probs) ** FOCAL_GAMMA * functional.softplus(-logits)
    negative = (1 - FOCAL_ALPHA) * probs**FOCAL_GAMMA * functional.softplus(logits)
    return positive, negative


# ------------------------------------------------------------------------------------------- points: mask, dice


def pair_mask_cost(logits_QP: Tensor, values_KP: Tensor, valid_P: Tensor, kind: MaskLoss = "bce") -> Tensor:
    """Mean point loss of every (query, target) pair, ``[..., Q, K]``; the leading dimensions are the same in all.

    Costs of matching have no gradient: buffers are used again.

    Args:
        logits_QP: ``[..., Q, P]``.
        values_KP: ``[..., K, P]`` in [0, 1].
        valid_P: bool ``[..., P]``; other points do not count.
        kind: binary cross-entropy (Mask2Former) or focal.
    """
    valid_1P = valid_P[..., None, :].to(logits_QP.dtype)
    count = valid_1P.sum(-1, keepdim=True).clamp(min=1)
    inside_KP = values_KP * valid_1P
    if kind == "bce":  # t * softplus(-x) + (1 - t) * softplus(x) = softplus(x) - t * x: one product, not two
        # softplus(x) = max(x, 0) - log sigmoid|x|: CPU kernels of these are vectorised, softplus' is not
        background_QP = logits_QP.relu().sub_(logits_QP.abs().sigmoid_().log_())
        return (background_QP.mul_(valid_1P).sum(-1, keepdim=True) - _products(logits_QP, inside_KP)) / count
    positive_QP, negative_QP = _focal_parts(logits_QP)
    outside_KP = (1 - values_KP) * valid_1P
    return (_products(positive_QP, inside_KP) + _products(negative_QP, outside_KP)) / count


def _products(of_queries_QP: Tensor, of_targets_KP: Tensor) -> Tensor:
    """Sums over points, ``[..., Q, K]``; in this order because few targets on the right are slow on a CPU."""
    return (of_targets_KP @ of_queries_QP.mT).mT


def mask_loss(logits_MP: Tensor, values_MP: Tensor, valid_MP: Tensor, kind: MaskLoss = "bce") -> Tensor:
    """Mean point loss of each matched pair, ``[..., M]``; arguments ``[..., M, P]``, valid bool."""
    if kind == "bce":
        loss_MP = functional.binary_cross_entropy_with_logits(logits_MP, values_MP, reduction="none")
    else:
        positive_MP, negative_MP = _focal_parts(logits_MP)
        loss_MP = values_MP * positive_MP + (1 - values_MP) * negative_MP
    return (loss_MP * valid_MP).sum(-1) / valid_MP.sum(-1).clamp(min=1)


def pair_dice_cost(logits_QP: Tensor, values_KP: Tensor, valid_P: Tensor) -> Tensor:
    """Dice loss of every (query, target) pair, ``[..., Q, K]`` in [0, 1]; arguments as `pair_mask_cost`."""
    valid_1P = valid_P[..., None, :].to(logits_QP.dtype)
    probs_QP, inside_KP = logits_QP.sigmoid().mul_(valid_1P), values_KP * valid_1P
    total_QK = probs_QP.sum(-1, keepdim=True) + inside_KP.sum(-1)[..., None, :]
    return 1 - (2 * _products(probs_QP, inside_KP) + 1) / (total_QK + 1)


def dice_loss(logits_MP: Tensor, values_MP: Tensor, valid_MP: Tensor) -> Tensor:
    """Dice loss of each matched pair, ``[..., M]`` in [0, 1]; smoothed by 1 as in Mask2Former."""
    probs_MP = logits_MP.sigmoid() * valid_MP
    overlap_M, area_M = (probs_MP * values_MP).sum(-1), (values_MP * valid_MP).sum(-1)
    return 1 - (2 * overlap_M + 1) / (probs_MP.sum(-1) + area_M + 1)


def class_cost(class_logits_QC: Tensor, labels_K: Tensor) -> Tensor:
    """-p(class of the target), ``[..., Q, K]`` in [-1, 0].

    Args:
        class_logits_QC: ``[..., Q, C + 1]``, background last.
        labels_K: int64 ``[..., K]``.
    """
    labels_QK = labels_K[..., None, :].expand(*class_logits_QC.shape[:-1], -1)
    return -class_logits_QC.softmax(-1).gather(-1, labels_QK)


# ------------------------------------------------------------------------------------------- boxes: projection


def _interval_profile(low_K: Tensor, high_K: Tensor, cells: int, step: float, last: Tensor | int) -> Tensor:
    centres = (torch.arange(cells, device=low_K.device, dtype=low_K.dtype) + 0.5) * step
    inside_Kn = (centres >= low_K[..., None]) & (centres < high_K[..., None])
    middle_K = ((low_K + high_K) / (2 * step)).long().clamp(min=0).clamp(max=last)
    return inside_Kn.to(low_K.dtype).scatter(-1, middle_K[..., None], 1.0)


def box_profiles(
    xyxy_K4: Tensor, grid: tuple[int, int], steps: tuple[float, float], last: tuple[Tensor | int, Tensor | int]
) -> tuple[Tensor, Tensor]:
    """Projections of boxes onto the axes of a grid: 1 where a cell's centre is inside, and at the box's own centre.

    Args:
        xyxy_K4: pixels, ``[..., K, 4]``.
        grid: rows and columns over the padded input.
        steps: pixels per cell, vertically and horizontally.
        last: last row and column that belong to the image; numbers, or int64 ``[..., 1]``.

    Returns:
        Onto x, float32 ``[..., K, columns]``, and onto y, ``[..., K, rows]``; at least one cell of each is 1.
    """
    x1_K, y1_K, x2_K, y2_K = xyxy_K4.float().unbind(-1)
    onto_x = _interval_profile(x1_K, x2_K, grid[1], steps[1], last[1])
    return onto_x, _interval_profile(y1_K, y2_K, grid[0], steps[0], last[0])


def mask_profiles(logits_hw: Tensor) -> tuple[Tensor, Tensor]:
    """Projections of masks by maximum: probabilities onto x, ``[..., columns]``, and onto y, ``[..., rows]``.

    The maximum is taken of the logits, which is the same and spares the sigmoid of every cell.
    """
    return logits_hw.amax(-2).float().sigmoid(), logits_hw.amax(-1).float().sigmoid()


def _profile_dice(overlap: Tensor, squares: Tensor) -> Tensor:
    return 1 - 2 * overlap / squares.clamp(min=1e-5)


def pair_projection_cost(mask: tuple[Tensor, Tensor], box: tuple[Tensor, Tensor]) -> Tensor:
    """Projection loss of every (query, box) pair, ``[..., Q, K]`` in [0, 2].

    Args:
        mask: `mask_profiles` of the queries, ``[..., Q, columns]`` and ``[..., Q, rows]``.
        box: `box_profiles`, ``[..., K, columns]`` and ``[..., K, rows]``.
    """
    x, y = (
        _profile_dice(m @ b.mT, (m * m).sum(-1)[..., None] + (b * b).sum(-1)[..., None, :])
        for m, b in zip(mask, box, strict=True)
    )
    return x + y


def projection_loss(mask: tuple[Tensor, Tensor], box: tuple[Tensor, Tensor]) -> Tensor:
    """Sum over both axes of the dice loss between projections, ``[..., M]`` in [0, 2] (BoxInst, arXiv 2012.02310).

    Dice with squares in the denominator, as BoxInst has it. Arguments as `pair_projection_cost`, one box per mask.
    """
    x, y = (_profile_dice((m * b).sum(-1), (m * m).sum(-1) + (b * b).sum(-1)) for m, b in zip(mask, box, strict=True))
    return x + y

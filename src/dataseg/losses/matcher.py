"""Hungarian matching of queries to target segments, for all images and decoder layers with one device sync.

Shape legend: ``L`` = decoder layers that predict, ``B`` = batch, ``Q`` = queries, ``K`` = target segments of an image,
``M = min(Q, K)`` = matched pairs of an image, ``T`` = sum of M over the batch, ``P`` = points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dataseg.losses.points import sample_logits
from dataseg.losses.terms import (
    MaskLoss,
    class_cost,
    mask_profiles,
    pair_dice_cost,
    pair_mask_cost,
    pair_projection_cost,
)
from dataseg.structures import Proposals


class NonFiniteCostError(ValueError):
    """The network's output is NaN or infinite, so that nothing can be matched.

    Attributes:
        image_ids: the images concerned.
    """

    def __init__(self, image_ids: list[str]) -> None:
        self.image_ids = image_ids
        super().__init__(
            f"non-finite matching cost for the images {image_ids}: the network's class or mask logits are NaN or"
            " infinite there. Look at the loss before this step, lower the learning rate or clip gradients harder;"
            " with 16-mixed precision try bf16-mixed"
        )


@dataclass(frozen=True)
class PointTargets:
    """Masks of one image's targets at points.

    Attributes:
        points: float ``[P, 2]``, in [0, 1] of the padded input.
        values: float ``[K, P]`` in [0, 1].
        valid: bool ``[P]``; clear of VOID.
    """

    points: Tensor
    values: Tensor
    valid: Tensor


@dataclass(frozen=True)
class BoxTargets:
    """Projections of one image's boxes.

    Attributes:
        profiles: onto x, ``[K, columns]``, and onto y, ``[K, rows]``.
        cells: rows and columns of the mask logits' grid that belong to the image.
    """

    profiles: tuple[Tensor, Tensor]
    cells: tuple[int, int]


@dataclass(frozen=True)
class Matches:
    """Who is matched to whom.

    Attributes:
        queries: int64 ``[L, T]`` on the proposals' device; images one after another, ascending within an image.
        segments: int64 ``[L, T]``, in ``0..K - 1`` of the pair's own image.
        counts: M of each image; its sum is T.
    """

    queries: Tensor
    segments: Tensor
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class HungarianMatcher:
    """One-to-one assignment of least total cost, per image and layer (Mask2Former, arXiv 2112.01527).

    Cost of masks: -p(class), mask loss and dice loss at points. Cost of boxes: -p(class) and projection loss.
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    projection_weight: float
    mask_loss: MaskLoss = "bce"

    def costs(
        self, proposals: Sequence[Proposals], image: int, labels_K: Tensor, target: PointTargets | BoxTargets
    ) -> Tensor:
        """Cost matrices of one image, float32 ``[L, Q, K]``."""
        logits_LQC = torch.stack([p.class_logits[image] for p in proposals]).float()
        cost_LQK = self.class_weight * class_cost(logits_LQC, labels_K)
        if isinstance(target, BoxTargets):
            profiles = [mask_profiles(p.mask_logits[image], target.cells) for p in proposals]
            masks = torch.stack([x for x, _ in profiles]), torch.stack([y for _, y in profiles])
            return cost_LQK + self.projection_weight * pair_projection_cost(masks, target.profiles)
        logits_LQP = torch.cat(
            [sample_logits(p.mask_logits[image, None].float(), target.points[None]) for p in proposals]
        )
        cost_LQK = cost_LQK + self.dice_weight * pair_dice_cost(logits_LQP, target.values, target.valid)
        mask_cost_LQK = pair_mask_cost(logits_LQP, target.values, target.valid, self.mask_loss)
        return cost_LQK + self.mask_weight * mask_cost_LQK

    @torch.no_grad()
    def __call__(
        self,
        proposals: Sequence[Proposals],
        labels: Sequence[Tensor],
        targets: Sequence[PointTargets | BoxTargets | None],
        image_ids: Sequence[str],
        representatives: Tensor | None = None,
    ) -> Matches:
        """Match a batch.

        Args:
            proposals: one per layer.
            labels: int64 ``[K]`` per image.
            targets: per image; None where K is 0.
            image_ids: named in errors.
            representatives: int64 ``[L, B, Q]``, the query that stands for each; those that do not stand for
                themselves are matched only where segments outnumber the others. None = each stands for itself.

        Raises:
            NonFiniteCostError: a cost is NaN or infinite; names the images.
        """
        device = proposals[0].class_logits.device
        costs = [
            None if target is None else self.costs(proposals, i, labels[i], target) for i, target in enumerate(targets)
        ]
        if representatives is not None:
            follows_LBQ = representatives != torch.arange(representatives.shape[2], device=device)
            costs = [None if cost is None else _put_last(cost, follows_LBQ[:, i]) for i, cost in enumerate(costs)]
        host = _to_host(costs)
        broken = [image_ids[i] for i, cost in enumerate(host) if not np.isfinite(cost).all()]
        if broken:
            raise NonFiniteCostError(broken)
        pairs = [
            np.asarray([linear_sum_assignment(cost_QK) for cost_QK in cost_LQK]) for cost_LQK in host if cost_LQK.size
        ]
        counts = [min(cost.shape[1:]) if cost.size else 0 for cost in host]
        empty = np.zeros((len(proposals), 2, 0), dtype=np.int64)
        joined_L2T = torch.from_numpy(np.concatenate([empty, *pairs], axis=2).astype(np.int64)).to(device)
        return Matches(queries=joined_L2T[:, 0], segments=joined_L2T[:, 1], counts=counts)


def _put_last(cost_LQK: Tensor, follows_LQ: Tensor) -> Tensor:
    """Cost with so much on top for some queries that as few of them as possible are matched."""
    span_L11 = cost_LQK.amax((1, 2), keepdim=True) - cost_LQK.amin((1, 2), keepdim=True)
    return cost_LQK + follows_LQ[..., None] * (1 + span_L11) * min(cost_LQK.shape[1:])


def _to_host(costs: Sequence[Tensor | None]) -> list[np.ndarray]:
    """All cost matrices in host memory, moved in one transfer; an empty array for None."""
    present = [cost for cost in costs if cost is not None]
    if not present:
        return [np.zeros((0, 0, 0), dtype=np.float32) for _ in costs]
    flat = torch.cat([cost.flatten() for cost in present]).cpu().numpy()
    arrays = iter(np.split(flat, np.cumsum([cost.numel() for cost in present])[:-1]))
    return [np.zeros((0, 0, 0), np.float32) if cost is None else next(arrays).reshape(cost.shape) for cost in costs]

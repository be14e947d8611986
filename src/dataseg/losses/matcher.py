"""Hungarian matching of queries to target segments, for all images and decoder layers with one device sync.

Shape legend: ``L`` = decoder layers that predict, ``B`` = images of one kind of target, ``Q`` = queries, ``K`` = their
largest number of segments, ``M = min(Q, K)`` = pairs, ``P`` = points, ``h, w`` = rows and columns of the mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dataseg.losses.points import SharedPoints
from dataseg.losses.terms import (
    MaskLoss,
    class_cost,
    mask_profiles,
    pair_dice_cost,
    pair_mask_cost,
    pair_projection_cost,
)
from dataseg.structures import Proposals

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}
"""Numbers in the largest intermediate of layers or images that go together: 8 MiB in float32 on a CPU, whose allocator
asks the system anew for each of 32 MiB or more; 512 MiB on a GPU, where each operation costs a launch."""


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
    """Masks of the targets at points.

    Attributes:
        points: float ``[B, P, 2]``, in [0, 1] of the padded input.
        values: float ``[B, K, P]`` in [0, 1].
        valid: bool ``[B, P]``; clear of VOID.
    """

    points: Tensor
    values: Tensor
    valid: Tensor


@dataclass(frozen=True)
class BoxTargets:
    """Projections of the boxes.

    Attributes:
        profiles: onto x, ``[B, K, w]``, and onto y, ``[B, K, h]``.
        inside: bool ``[B, h, w]``, cells of the mask logits that count; None = all.
    """

    profiles: tuple[Tensor, Tensor]
    inside: Tensor | None = None

    def profiles_of(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`mask_profiles` of mask logits ``[..., B, N, h, w]`` over the cells that count."""
        if self.inside is not None:
            logits = logits.masked_fill(~self.inside[:, None], -torch.inf)
        return mask_profiles(logits)


@dataclass(frozen=True)
class Targets:
    """Images of a batch whose targets are of one kind.

    Attributes:
        images: positions in the batch, ascending.
        labels: int64 ``[B, K]``, filled up with 0.
        counts: segments of each.
        masks: what mask costs are made of; None = there is no segment.
    """

    images: list[int]
    labels: Tensor
    counts: list[int]
    masks: PointTargets | BoxTargets | None

    def of(self, values: Tensor) -> Tensor:
        """Rows of these images, of the whole batch's."""
        return values if len(self.images) == len(values) else values[self.images]


@dataclass(frozen=True)
class Matches:
    """Who is matched to whom, in the images of one `Targets`; filled up to M pairs.

    Attributes:
        queries: int64 ``[L, B, M]`` on the proposals' device, ascending; then 0.
        segments: int64 ``[L, B, M]``, of the image's own; then 0.
        real: bool ``[B, M]``; the others are no pairs.
    """

    queries: Tensor
    segments: Tensor
    real: Tensor


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

    def costs(self, proposals: Sequence[Proposals], targets: Targets) -> Tensor:
        """Cost matrices, float32 ``[B, L, Q, K]``."""
        class_logits = torch.cat([targets.of(p.class_logits).float() for p in proposals], 1)
        mask_logits = [targets.of(p.mask_logits) for p in proposals]
        cost = self.class_weight * class_cost(class_logits, targets.labels)
        if isinstance(targets.masks, BoxTargets):
            cost += self._box_costs(mask_logits, targets.masks)
        elif targets.masks is not None:
            cost += self._point_costs(mask_logits, targets.masks)
        return cost.view(len(cost), len(proposals), -1, cost.shape[2])

    def _box_costs(self, mask_logits: Sequence[Tensor], boxes: BoxTargets) -> Tensor:
        """``[B, L * Q, K]``: of one product per image for all layers."""
        profiles = [boxes.profiles_of(logits) for logits in mask_logits]
        of_masks = torch.cat([x for x, _ in profiles], 1), torch.cat([y for _, y in profiles], 1)
        return self.projection_weight * pair_projection_cost(of_masks, boxes.profiles)

    def _point_costs(self, mask_logits: Sequence[Tensor], masks: PointTargets) -> Tensor:
        """``[B, L * Q, K]``."""
        images, queries, height, width = mask_logits[0].shape
        values = queries * masks.points.shape[1]
        rows = []
        for some in chunks(images, values, masks.points.device):
            points = SharedPoints.of(masks.points[some], height, width)
            parts = []
            for part in chunks(len(mask_logits), points.images * values, masks.points.device):
                layers = [logits[some] for logits in mask_logits[part]]
                logits = points.sample(layers[0] if len(layers) == 1 else torch.cat(layers, 1))
                dice = pair_dice_cost(logits, masks.values[some], masks.valid[some])
                mask = pair_mask_cost(logits, masks.values[some], masks.valid[some], self.mask_loss)
                parts.append(self.dice_weight * dice + self.mask_weight * mask)
            rows.append(torch.cat(parts, 1))
        return torch.cat(rows)

    @torch.no_grad()
    def __call__(
        self,
        proposals: Sequence[Proposals],
        groups: Sequence[Targets],
        image_ids: Sequence[str],
        representatives: Tensor | None = None,
    ) -> list[Matches]:
        """Match a batch.

        Args:
            proposals: one per layer.
            groups: the batch's images.
            image_ids: of the batch, named in errors.
            representatives: int64 ``[L, B, Q]``, the query that stands for each; those that do not stand for
                themselves are matched only where segments outnumber the others. None = each stands for itself.

        Returns:
            Matches of each group.

        Raises:
            NonFiniteCostError: a cost is NaN or infinite; names the images.
        """
        device, queries = proposals[0].class_logits.device, proposals[0].class_logits.shape[1]
        present = [group for group in groups if group.masks is not None]
        wanted = [self.costs(proposals, group) for group in present]
        if representatives is not None:
            follows_LBQ = representatives != torch.arange(queries, device=device)
            wanted += [group.of(follows_LBQ.transpose(0, 1)).float() for group in present]
        arrays = _to_host(wanted)
        costs, follows = arrays[: len(present)], arrays[len(present) :]
        _require_finite(present, costs, image_ids)
        found = [
            _assign(cost, group.counts, follows[i] if follows else None)
            for i, (group, cost) in enumerate(zip(present, costs, strict=True))
        ]
        matched = iter(_to_device(found, device))
        nothing = np.zeros((len(proposals), 0), dtype=np.int64)
        matches = []
        for group in groups:
            if group.masks is None:
                empty = torch.from_numpy(nothing).to(device)[:, None].expand(-1, len(group.images), -1)
                matches.append(Matches(empty, empty, empty[0].bool()))
            else:
                pairs = torch.tensor([min(count, queries) for count in group.counts], device=device)
                queries_LBM, segments_LBM = next(matched).unbind(2)
                real_BM = torch.arange(queries_LBM.shape[2], device=device) < pairs[:, None]
                matches.append(Matches(queries_LBM, segments_LBM, real_BM))
        return matches


def chunks(count: int, elements: int, device: torch.device) -> list[slice]:
    """Layers or images that are gone through together, if the largest intermediate of one has ``elements`` numbers."""
    step = max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cpu"]) // max(1, elements))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _assign(cost_BLQK: NDArray[np.float32], counts: Sequence[int], follows_BLQ: NDArray[Any] | None) -> NDArray[Any]:
    """Pairs of least cost: queries and segments, int64 ``[L, B, 2, M]``."""
    _, layers, queries, most = cost_BLQK.shape
    found_LB2M = np.zeros((layers, len(counts), 2, min(queries, most)), dtype=np.int64)
    for i, count in enumerate(counts):
        pairs = min(queries, count)
        for layer in range(layers if count else 0):
            cost_QK = cost_BLQK[i, layer, :, :count]
            if follows_BLQ is not None:  # so much on top that as few of them as possible are matched
                cost_QK = cost_QK + follows_BLQ[i, layer][:, None] * (1 + np.ptp(cost_QK)) * pairs
            found_LB2M[layer, i, :, :pairs] = linear_sum_assignment(cost_QK)
    return found_LB2M


def _require_finite(groups: Sequence[Targets], costs: Sequence[NDArray[Any]], image_ids: Sequence[str]) -> None:
    broken = sorted(
        position
        for group, cost in zip(groups, costs, strict=True)
        for position, count, cost_LQK in zip(group.images, group.counts, cost, strict=True)
        if not np.isfinite(cost_LQK[..., :count]).all()
    )
    if broken:
        raise NonFiniteCostError([image_ids[position] for position in broken])


def _to_host(tensors: Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """All in host memory, moved in one transfer."""
    if not tensors:
        return []
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    host = torch.empty(flat.shape, pin_memory=flat.is_cuda).copy_(flat, non_blocking=True)
    if flat.is_cuda:
        torch.cuda.current_stream(flat.device).synchronize()
    parts = torch.split(host, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


def _to_device(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """The reverse, without waiting."""
    if not arrays:
        return []
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    flat = flat.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else flat.to(device)
    parts = torch.split(flat, [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

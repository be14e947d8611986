"""MERGE of a batch's predictions before the loss, in place of its targets: an ablation (`dataseg.merge` is the rule).

Shape legend: see `dataseg.structures`; L = decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dataseg.merge import MergeMode, one_mask_per_class
from dataseg.structures import Proposals, SegmentMap, Target, Task

MERGED_EPS = 1e-6
"""Bound of a merged mask's probabilities from 0 and 1: the logit stays within 13.8."""


def query_groups(class_logits: Tensor, is_thing: Tensor, task: Task) -> Tensor:
    """Which proposals are one before the loss: those that agree on their most likely class, if the task merges it.

    Args:
        class_logits: ``[..., Q, C + 1]``, the background last; a proposal that takes itself for it stays alone.
        is_thing: bool ``[C]``.

    Returns:
        representative: int64 ``[..., Q]``, for each query the one of its group that is most sure of the class;
            itself if it is alone or the representative.
    """
    surest, label = class_logits.detach().float().log_softmax(-1).max(-1)
    merges = torch.cat([one_mask_per_class(is_thing, task), is_thing.new_zeros(1)]).to(label.device)[label]
    together = (label[..., :, None] == label[..., None, :]) & merges[..., None]
    alone = torch.eye(label.shape[-1], dtype=torch.bool, device=label.device)
    return surest[..., None, :].masked_fill(~(together | alone), -torch.inf).argmax(-1)


def merge_before_loss(
    proposals: Sequence[Proposals],
    targets: Sequence[Target],
    is_thing: Tensor,
    task: Task,
    mode: MergeMode = "sum",
) -> tuple[list[Proposals], Tensor | None]:
    """MERGE of a batch's predictions in place of its targets; see `query_groups` and `merge_proposals`.

    As with targets, boxes and masks that may overlap are not merged: images that have them keep their proposals.

    Args:
        proposals: one per decoder layer.
        targets: of each image; only their kind is looked at.
        is_thing: bool ``[C]``.
        task: of the batch.
        mode: see `merge_proposals`.

    Returns:
        Proposals of each layer; and the representatives, int64 ``[L, B, Q]``, or None where the task merges nothing.
    """
    has_map = [isinstance(target, SegmentMap) for target in targets]
    if task is Task.INSTANCE or not any(has_map):
        return list(proposals), None
    representatives_LBQ = torch.stack([query_groups(p.class_logits, is_thing, task) for p in proposals])
    own_Q = torch.arange(representatives_LBQ.shape[2], device=representatives_LBQ.device)
    representatives_LBQ = torch.where(torch.tensor(has_map, device=own_Q.device)[:, None], representatives_LBQ, own_Q)
    merged = [
        merge_proposals(p, representative, mode)
        for p, representative in zip(proposals, representatives_LBQ, strict=True)
    ]
    return merged, representatives_LBQ


def merge_proposals(proposals: Proposals, representative: Tensor, mode: MergeMode = "sum") -> Proposals:
    """MERGE of the predictions before the loss: each group's mask takes the place of its representative's.

    "sum" adds mask probabilities and stops at 1; "max" takes the highest. They are not weighted by p(class): weighted,
    as in `merge_predictions`, they are scores that classes compete with, while a mask loss asks for a mask; the class
    is learnt by its own term; and a query that is alone stays what it is.

    Gradients of "max" go to the highest member of each pixel; those of "sum" to all members by their share of the sum
    (logit to logit, so at most 1). The clamped sum's own gradient is no use: it is 0 beyond 1, where many
    undecided queries of one class begin, and without bound just below.

    Args:
        proposals: ``[B, Q]`` of them.
        representative: int64 ``[B, Q]``, see `query_groups`.
        mode: see there.

    Returns:
        Class logits as they were; mask logits float32 ``[B, Q, h, w]``: a group's for its representative, finite
        if theirs are; its own for every other query.
    """
    logits_BQhw = proposals.mask_logits.float()
    own_Q = torch.arange(representative.shape[1], device=representative.device)
    member_BQQ = own_Q[:, None] == representative[:, None, :]  # rows: representatives, columns: their groups
    with torch.autocast(logits_BQhw.device.type, enabled=False):
        merged_BQhw = _summed(logits_BQhw, member_BQQ) if mode == "sum" else _highest(logits_BQhw, representative)
    joint_BQ = member_BQQ.sum(-1) > 1
    return Proposals(proposals.class_logits, torch.where(joint_BQ[..., None, None], merged_BQhw, logits_BQhw))


def _summed(logits_BQhw: Tensor, member_BQQ: Tensor) -> Tensor:
    """Clamped sum of each representative's group, as a logit; other rows mean nothing."""
    logits_BQP = logits_BQhw.flatten(2)
    members_BQQ = member_BQQ.to(logits_BQP.dtype)  # sums are products, whose order is the same every time
    with torch.no_grad():
        probs_BQP = logits_BQP.sigmoid()
        sum_BQP = members_BQQ @ probs_BQP
        own_sum_BQP = members_BQQ.transpose(1, 2) @ sum_BQP
        share_BQP = probs_BQP / own_sum_BQP.clamp(min=torch.finfo(probs_BQP.dtype).tiny)
        value_BQP = sum_BQP.logit(MERGED_EPS)
    path_BQP = members_BQQ @ (share_BQP * logits_BQP)  # for its gradient
    return (value_BQP + (path_BQP - path_BQP.detach())).view_as(logits_BQhw)


def _highest(logits_BQhw: Tensor, representative_BQ: Tensor) -> Tensor:
    """Maximum of each representative's group; -inf in other rows."""
    logits_BQP = logits_BQhw.flatten(2)
    index_BQP = representative_BQ[..., None].expand_as(logits_BQP)
    nothing_BQP = torch.full_like(logits_BQP, -torch.inf)
    return nothing_BQP.scatter_reduce(1, index_BQP, logits_BQP, "amax").view_as(logits_BQhw)

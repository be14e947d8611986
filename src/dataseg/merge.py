"""MERGE: what counts as one segment, by task. The single owner of that rule (DaTaSeg, method section "MERGE").

=========  ======================  ==================
task       thing classes           stuff classes
=========  ======================  ==================
semantic   one mask per class      one mask per class
panoptic   one mask per instance   one mask per class
instance   one mask per instance   absent
=========  ======================  ==================

Training applies it to targets (`merge_target`) or, as an ablation, to predictions (`merge_proposals`), post-processing
to predictions (`merge_groups`, `merge_predictions`); nobody else decides what one segment is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dataseg.structures import VOID, Boxes, InstanceMasks, Proposals, SegmentMap, Target, Task

MergeMode = Literal["sum", "max"]

MERGED_EPS = 1e-6
"""Bound of a merged mask's probabilities from 0 and 1: the logit stays within 13.8."""


def one_mask_per_class(is_thing: Tensor, task: Task) -> Tensor:
    """Bool ``[C]``: classes whose segments become one. In the instance task none do: what it merges it does not have.

    Args:
        is_thing: bool ``[C]``.
    """
    if task is Task.SEMANTIC:
        return torch.ones_like(is_thing)
    return torch.zeros_like(is_thing) if task is Task.INSTANCE else ~is_thing


def merge_groups(labels: Tensor, is_thing: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Which segments become one.

    Args:
        labels: int64 ``[K]``, class of each segment.
        is_thing: bool ``[C]``.

    Returns:
        group: int64 ``[K]``, ``0..G-1`` in order of first appearance, or `VOID` for segments that the task does
            not have; and the label of each group, int64 ``[G]``.
    """
    thing = is_thing.to(labels.device)[labels]
    merged = one_mask_per_class(is_thing.to(labels.device), task)[labels]
    order = torch.arange(len(labels), device=labels.device)
    first_of_class = order.new_full((len(is_thing),), len(labels)).scatter_reduce(0, labels, order, "amin")
    leader = torch.where(merged, first_of_class[labels], order)
    kept = thing if task is Task.INSTANCE else torch.ones_like(thing)
    is_leader = (leader == order) & kept
    number = torch.cumsum(is_leader, 0) - 1
    return torch.where(kept, number[leader], VOID), labels[is_leader]


def merge_target(target: Target, is_thing: Tensor, task: Task) -> Target:
    """Apply MERGE to one image's target.

    A map stays a map (its ids go through a look-up table). Boxes and RLE masks are kept, less those of stuff classes,
    in instance and panoptic tasks.

    Raises:
        ValueError: boxes or overlapping masks with a semantic task, whose merged shape they do not determine.
    """
    group, labels = merge_groups(target.labels, is_thing, task)
    if isinstance(target, SegmentMap):
        table = torch.cat([group, group.new_full((1,), VOID)]).to(target.ids.dtype)
        return SegmentMap(ids=table[target.ids.long()], labels=labels)
    if task is Task.SEMANTIC:
        raise ValueError(f"a semantic task needs a label map, not {type(target).__name__}: use panoptic or instance")
    keep = group != VOID
    if isinstance(target, Boxes):
        return Boxes(xyxy=target.xyxy[keep], labels=target.labels[keep])
    rles = [rle for rle, k in zip(target.rles, keep.tolist(), strict=True) if k]
    optional = {name: getattr(target, name) for name in ("scores", "is_crowd", "areas", "boxes")}  # crowds: see losses
    kept = {name: None if value is None else value[keep] for name, value in optional.items()}
    return InstanceMasks(rles=rles, labels=target.labels[keep], size=target.size, **kept)


def unmerged_target(target: Target, is_thing: Tensor, task: Task) -> Target:
    """One image's target where the predictions are merged in its place: only what the task lacks is dropped.

    Raises:
        ValueError: as `merge_target`.
    """
    if isinstance(target, SegmentMap) and task is not Task.INSTANCE:
        return target
    return merge_target(target, is_thing, task)


def merge_predictions(class_probs: Tensor, mask_probs: Tensor, mode: MergeMode = "sum") -> Tensor:
    """Merge proposals into one score map per class.

    Args:
        class_probs: ``[Q, C]`` in [0, 1], background left out.
        mask_probs: ``[Q, H, W]`` in [0, 1].
        mode: "sum" over queries of p(class) x mask (Mask2Former), or their element-wise "max".

    Returns:
        ``[C, H, W]``, >= 0; not bounded by 1 for "sum".
    """
    if mode == "sum":
        return torch.einsum("qc,qhw->chw", class_probs, mask_probs)
    merged = mask_probs.new_zeros(class_probs.shape[1], *mask_probs.shape[1:])
    for probs_C, mask_HW in zip(class_probs, mask_probs, strict=True):  # one query at a time keeps memory at [C, H, W]
        merged = torch.maximum(merged, probs_C[:, None, None] * mask_HW)
    return merged


def query_groups(class_logits: Tensor, is_thing: Tensor, task: Task) -> Tensor:
    """Which proposals are one before the loss: those that agree on their most likely class, if the task merges it.

    Args:
        class_logits: ``[..., Q, C + 1]``, the background last; a proposal that takes itself for it stays alone.
        is_thing: bool ``[C]``.

    Returns:
        leader: int64 ``[..., Q]``, for each query the one of its group that is most sure of the class; itself if it is
            alone or the leader.
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
        Proposals of each layer; and the leaders, int64 ``[L, B, Q]``, or None where the task merges nothing.
    """
    has_map = [isinstance(target, SegmentMap) for target in targets]
    if task is Task.INSTANCE or not any(has_map):
        return list(proposals), None
    leaders_LBQ = torch.stack([query_groups(p.class_logits, is_thing, task) for p in proposals])
    own_Q = torch.arange(leaders_LBQ.shape[2], device=leaders_LBQ.device)
    leaders_LBQ = torch.where(torch.tensor(has_map, device=own_Q.device)[:, None], leaders_LBQ, own_Q)
    merged = [merge_proposals(p, leader, mode) for p, leader in zip(proposals, leaders_LBQ, strict=True)]
    return merged, leaders_LBQ


def merge_proposals(proposals: Proposals, leader: Tensor, mode: MergeMode = "sum") -> Proposals:
    """MERGE of the predictions before the loss: each group's mask takes the place of its leader's.

    "sum" adds mask probabilities and stops at 1; "max" takes the highest. They are not weighted by p(class): weighted,
    as in `merge_predictions`, they are scores that classes compete with, while a mask loss asks for a mask; the class
    is taught by its own term; and a query that is alone stays what it is.

    Gradients of "max" go to the highest member of each pixel; those of "sum" to all members by their share of the sum
    (logit to logit, so at most 1). The clamped sum's own gradient is no use: it is 0 beyond 1, where many
    undecided queries of one class begin, and without bound just below.

    Args:
        proposals: ``[B, Q]`` of them.
        leader: int64 ``[B, Q]``, see `query_groups`.
        mode: see there.

    Returns:
        Class logits as they were; mask logits float32 ``[B, Q, h, w]``: a group's for its leader, finite if theirs
        are; its own for every other query.
    """
    logits_BQhw = proposals.mask_logits.float()
    own_Q = torch.arange(leader.shape[1], device=leader.device)
    member_BQQ = own_Q[:, None] == leader[:, None, :]  # rows: leaders, columns: their groups
    with torch.autocast(logits_BQhw.device.type, enabled=False):
        merged_BQhw = _summed(logits_BQhw, member_BQQ) if mode == "sum" else _highest(logits_BQhw, leader)
    joint_BQ = member_BQQ.sum(-1) > 1
    return Proposals(proposals.class_logits, torch.where(joint_BQ[..., None, None], merged_BQhw, logits_BQhw))


def _summed(logits_BQhw: Tensor, member_BQQ: Tensor) -> Tensor:
    """Clamped sum of each leader's group, as a logit; other rows mean nothing."""
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


def _highest(logits_BQhw: Tensor, leader_BQ: Tensor) -> Tensor:
    """Maximum of each leader's group; -inf in other rows."""
    logits_BQP = logits_BQhw.flatten(2)
    index_BQP = leader_BQ[..., None].expand_as(logits_BQP)
    nothing_BQP = torch.full_like(logits_BQP, -torch.inf)
    return nothing_BQP.scatter_reduce(1, index_BQP, logits_BQP, "amax").view_as(logits_BQhw)

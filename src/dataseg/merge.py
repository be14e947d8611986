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

from typing import Literal

import torch
from torch import Tensor

from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Target, Task

MergeMode = Literal["sum", "max"]


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
    representative = torch.where(merged, first_of_class[labels], order)
    kept = thing if task is Task.INSTANCE else torch.ones_like(thing)
    is_representative = (representative == order) & kept
    number = torch.cumsum(is_representative, 0) - 1
    return torch.where(kept, number[representative], VOID), labels[is_representative]


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

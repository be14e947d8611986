"""Proposals -> Segments at the image's original size, one function per task (method: Post-processing).

Shape legend: ``Q`` = queries, ``C`` = classes, ``h, w`` = rows and columns of the mask logits, ``H, W`` = rows and
columns of the original image, ``r`` = rows of a strip of it, ``G`` = queries that are kept.

Masks of the whole image at its original size never exist at once: it is gone through in strips of rows, so that
4,000 x 5,000 pixels and 459 classes fit. MERGE of predictions comes from `dataseg.merge`, the owner of that rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from dataseg.inference.mask_resampling import strips
from dataseg.inference.view_merging import View, merged_strips
from dataseg.merge import MergeMode, merge_groups
from dataseg.structures import VOID, Batch, InstanceMasks, Proposals, SegmentMap, Segments, Task
from dataseg.structures.geometry import ImageGeometry

STRIP_ELEMENTS = 2**24
"""Numbers in the largest intermediate of a strip: 64 MiB in float32."""


@dataclass(frozen=True)
class SemanticOptions:
    """Options of `semantic`.

    Attributes:
        merge: how the proposals of a class become one score map.
        resize: what is brought to the original size: the "masks", before they are merged (Mask2Former's panoptic and
            instance configurations), or the merged "scores" (its semantic-only ones; 0 to 0.7 % of pixels differ).
    """

    merge: MergeMode = "sum"
    resize: Literal["masks", "scores"] = "masks"


@dataclass(frozen=True)
class PanopticOptions:
    """Options of `panoptic`; values of Mask2Former.

    Attributes:
        score_threshold: queries whose class is less probable take no part; in [0, 1].
        overlap_threshold: a query that wins less than this share of its own mask's area is dropped; in [0, 1].
        mask_threshold: mask probability from which a pixel belongs to a mask; in [0, 1].
    """

    score_threshold: float = 0.8
    overlap_threshold: float = 0.8
    mask_threshold: float = 0.5


@dataclass(frozen=True)
class InstanceOptions:
    """Options of `instance`; values of Mask2Former.

    Attributes:
        max_instances: (query, class) pairs of highest class probability that are handed out.
        candidates: which pairs are ranked for them. "all" (Mask2Former): of every class, and pairs of stuff are
            dropped afterwards, so that fewer may be left; or "things" alone.
    """

    max_instances: int = 100
    candidates: Literal["all", "things"] = "all"


# ------------------------------------------------------------------------------------------------ one image


def semantic(
    class_logits_QC: Tensor,
    mask_logits_Qhw: Tensor,
    geometry: ImageGeometry,
    options: SemanticOptions = SemanticOptions(),
    strip_elements: int = STRIP_ELEMENTS,
) -> SegmentMap:
    """Every pixel to the class of highest merged score, never the background.

    Args:
        class_logits_QC: ``[Q, C + 1]``, background last.
        mask_logits_Qhw: ``[Q, h, w]``.
        geometry: sizes.
        options: see there.
        strip_elements: bound on the memory of a strip.

    Returns:
        Ids int32 ``[H, W]``; one segment for each class that occurs, ascending.
    """
    view = View(geometry, lambda: (class_logits_QC, mask_logits_Qhw))
    return semantic_of_views([view], options, strip_elements)


def semantic_of_views(
    views: Sequence[View], options: SemanticOptions = SemanticOptions(), strip_elements: int = STRIP_ELEMENTS
) -> SegmentMap:
    """As `semantic`, from the weighted sum of several views' scores (see `merged_strips`)."""
    strips = merged_strips(views, options.merge, options.resize, strip_elements)
    classes_HW = torch.cat([_row_of_largest(scores_CrW) for _, scores_CrW in strips])
    present = torch.bincount(classes_HW.flatten()) > 0
    table = (torch.cumsum(present, 0) - 1).int()
    return SegmentMap(ids=table[classes_HW], labels=present.nonzero()[:, 0])


def panoptic(
    class_logits_QC: Tensor,
    mask_logits_Qhw: Tensor,
    geometry: ImageGeometry,
    is_thing: Tensor,
    options: PanopticOptions = PanopticOptions(),
    strip_elements: int = STRIP_ELEMENTS,
) -> SegmentMap:
    """Confident queries compete for each pixel by class probability x mask probability (Mask2Former).

    A pixel belongs to its winner if the winner's mask probability reaches the threshold; a winner of less than the
    overlap threshold's share of its own mask is dropped with its pixels; stuff of one class is merged.

    Args:
        class_logits_QC: ``[Q, C + 1]``, background last.
        mask_logits_Qhw: ``[Q, h, w]``.
        geometry: sizes.
        is_thing: bool ``[C]``.
        options: see there.
        strip_elements: bound on the memory of a strip.

    Returns:
        Ids int32 ``[H, W]``, VOID where there is no segment; scores are class probabilities, a merged segment's the
        highest of its queries.
    """
    scores_Q, labels_Q = class_logits_QC.float().softmax(-1).max(-1)
    confident = (labels_Q != class_logits_QC.shape[1] - 1) & (scores_Q > options.score_threshold)
    scores_G, labels_G = scores_Q[confident], labels_Q[confident]
    ids_HW = torch.full(geometry.output, VOID, dtype=torch.int32, device=mask_logits_Qhw.device)
    count = len(labels_G)
    if not count:
        return SegmentMap(ids=ids_HW, labels=labels_G, scores=scores_G)
    areas_3G = torch.zeros(3, count, dtype=torch.int64, device=ids_HW.device)  # won, own mask, both
    for rows, logits_GrW in strips(geometry, mask_logits_Qhw[confident], strip_elements):
        masks_GrW = logits_GrW.sigmoid()
        winner_rW = _row_of_largest(masks_GrW * scores_G[:, None, None])
        inside_rW = masks_GrW.gather(0, winner_rW[None].long())[0] >= options.mask_threshold
        areas_3G[0] += torch.bincount(winner_rW.flatten(), minlength=count)
        areas_3G[1] += (masks_GrW >= options.mask_threshold).sum((1, 2))
        areas_3G[2] += torch.bincount(winner_rW[inside_rW], minlength=count)
        ids_HW[rows] = torch.where(inside_rW, winner_rW, VOID)
    won_G, own_G, both_G = areas_3G
    kept = (both_G > 0) & (won_G / own_G.clamp(min=1) >= options.overlap_threshold)
    return _merge_stuff(ids_HW, kept, labels_G, scores_G, is_thing)


def _row_of_largest(values_Nrc: Tensor) -> Tensor:
    """Which of N is largest at each pixel, the first of equals, int32 ``[r, c]``.

    As ``argmax(0)``, which takes 2 to 7 times as long on a CPU: along the first axis it is not vectorised.
    """
    count = len(values_Nrc)
    places_N11 = torch.arange(count, 0, -1, dtype=torch.int32, device=values_Nrc.device)[:, None, None]
    found_rc = count - (values_Nrc >= values_Nrc.amax(0)).int().mul_(places_N11).amax(0)
    return found_rc.clamp_(max=count - 1)  # of NaN, nothing is largest


def _merge_stuff(ids_HW: Tensor, kept: Tensor, labels_G: Tensor, scores_G: Tensor, is_thing: Tensor) -> SegmentMap:
    """Drop queries that are not ``kept`` (bool ``[G]``) and merge the others by MERGE's rule."""
    group, labels = merge_groups(labels_G[kept], is_thing, Task.PANOPTIC)
    table = group.new_full((len(kept) + 1,), VOID)  # the last entry is VOID's own
    table[:-1][kept] = group
    scores = scores_G.new_zeros(len(labels)).scatter_reduce(0, group, scores_G[kept], "amax")
    return SegmentMap(ids=table.int()[ids_HW], labels=labels, scores=scores)


def instance(
    class_logits_QC: Tensor,
    mask_logits_Qhw: Tensor,
    geometry: ImageGeometry,
    is_thing: Tensor,
    options: InstanceOptions = InstanceOptions(),
    strip_elements: int = STRIP_ELEMENTS,
) -> InstanceMasks:
    """The (query, thing class) pairs of highest class probability; masks may overlap.

    A query's mask is where its probability exceeds 0.5; score = class probability x mean mask probability inside it
    (Mask2Former). Pairs with an empty mask are left out: their score is 0.

    Args:
        class_logits_QC: ``[Q, C + 1]``, background last.
        mask_logits_Qhw: ``[Q, h, w]``.
        geometry: sizes.
        is_thing: bool ``[C]``; stuff is absent from the task.
        options: see there.
        strip_elements: bound on the memory of a strip.

    Returns:
        At most ``max_instances``, best first. Labels and scores are on the host, as the RLE is.
    """
    things = is_thing.to(class_logits_QC.device)
    candidates = (torch.ones_like(things) if options.candidates == "all" else things).nonzero()[:, 0]
    probs_QT = class_logits_QC.float().softmax(-1)[:, :-1][:, candidates]
    best = probs_QT.flatten().topk(min(options.max_instances, probs_QT.numel()))
    pair_query, pair_label = best.indices // len(candidates), candidates[best.indices % len(candidates)]
    kept = things[pair_label]
    pair_score, pair_query, pair_label = best.values[kept], pair_query[kept], pair_label[kept]
    if not len(pair_query):
        return InstanceMasks([], torch.zeros(0, dtype=torch.int64), geometry.output, scores=torch.zeros(0))
    queries, mask_of_pair = torch.unique(pair_query, return_inverse=True)
    rles, means = _encode_masks(mask_logits_Qhw[queries], geometry, strip_elements)
    scores = (pair_score * means[mask_of_pair]).cpu()
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > 0]
    labels, masks = pair_label.cpu()[order], mask_of_pair.cpu()[order]
    return InstanceMasks([rles[m] for m in masks.tolist()], labels, geometry.output, scores=scores[order])


def _encode_masks(
    mask_logits_Ghw: Tensor, geometry: ImageGeometry, strip_elements: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """RLE of each mask, and its mean probability inside, float32 ``[G]`` (0 if it is empty)."""
    height, width = geometry.output
    rles: list[dict[str, Any]] = []
    means = []
    for some_ghw in torch.split(mask_logits_Ghw, max(1, 4 * strip_elements // (height * width))):  # uint8, not float
        masks_gWH = np.zeros((len(some_ghw), width, height), dtype=np.uint8)  # column by column, as RLE counts
        sums_2g = torch.zeros(2, len(some_ghw), device=some_ghw.device, dtype=torch.float64)
        for rows, logits_grW in strips(geometry, some_ghw, strip_elements):
            inside_grW = logits_grW > 0
            sums_2g[0] += (logits_grW.sigmoid() * inside_grW).sum((1, 2))
            sums_2g[1] += inside_grW.sum((1, 2))
            masks_gWH[:, :, rows] = inside_grW.transpose(1, 2).cpu().numpy()
        rles += coco_mask.encode(masks_gWH.transpose(2, 1, 0))
        means.append(sums_2g[0] / sums_2g[1].clamp(min=1))
    return rles, torch.cat(means).float()


# ---------------------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class PostProcessor:
    """Post-processing of all three tasks.

    Args:
        semantic: options of the semantic task.
        panoptic: options of the panoptic task.
        instance: options of the instance task.
    """

    semantic: SemanticOptions = field(default_factory=SemanticOptions)
    panoptic: PanopticOptions = field(default_factory=PanopticOptions)
    instance: InstanceOptions = field(default_factory=InstanceOptions)

    @torch.no_grad()
    def __call__(self, proposals: Proposals, batch: Batch, is_thing: Tensor, task: Task) -> list[Segments]:
        """Segments of each image of a batch at its original size; in float32, whatever the proposals are in."""
        padded = batch.images.shape[2], batch.images.shape[3]
        segments: list[Segments] = []
        with torch.autocast(device_type=proposals.mask_logits.device.type, enabled=False):
            for i, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
                image = proposals.class_logits[i], proposals.mask_logits[i], ImageGeometry(padded, size, original)
                if task is Task.SEMANTIC:
                    segments.append(semantic(*image, self.semantic))
                elif task is Task.PANOPTIC:
                    segments.append(panoptic(*image, is_thing, self.panoptic))
                else:
                    segments.append(instance(*image, is_thing, self.instance))
        return segments

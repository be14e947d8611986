"""COCO's matching and averaging for mask AP, as pycocotools.cocoeval does them, on arrays.

Legend: D = predictions of one class in one image, G = its ground truth, N = predictions of one class in all images,
A = area ranges, T = IoU thresholds, R = recall levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""Square pixels, both ends included, so that an area of exactly 1024 is small and medium."""
MAX_DETECTIONS = 100
"""Best-scored predictions of one class in one image that take part."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def outside_ranges(areas: NDArray[Any]) -> Bools:
    """Which areas lie outside each range: ``[A, len(areas)]``."""
    bounds = np.array(list(AREA_RANGES.values()))
    return (areas[None] < bounds[:, :1]) | (areas[None] > bounds[:, 1:])


def match_instances(iou_DG: Floats, crowd_G: Bools, ignored_AG: Bools) -> tuple[Bools, Bools]:
    """Greedy matching of one class in one image, at every area range and threshold at once.

    Predictions choose in order of score. Each takes the free ground truth with the largest IoU, counted ones before
    ignored ones, the later one on a tie; a crowd stays free.

    Args:
        iou_DG: ``[D, G]``, predictions by descending score; for crowds the intersection over the prediction's area.
        crowd_G: ``[G]``.
        ignored_AG: ``[A, G]``, crowds and those outside the range.

    Returns:
        ``[A, T, D]`` twice: matched to counted ground truth; matched to ignored ground truth.
    """
    ranges, (predictions, instances), levels = len(ignored_AG), iou_DG.shape, len(IOU_THRESHOLDS)
    hit = np.zeros((ranges, levels, predictions), dtype=bool)
    excused = np.zeros_like(hit)
    enough_DTG = iou_DG[:, None, :] >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    # A rank in place of the IoU: the later of two equal ones is larger, and any counted one beats any ignored one.
    order_DG = np.argsort(np.argsort(iou_DG, axis=1, kind="stable"), axis=1, kind="stable")
    bonus_A1G = np.where(ignored_AG, 0, instances)[:, None, :]
    free_ATG = np.ones((ranges, levels, instances), dtype=bool)
    grid_a, grid_t = np.ogrid[:ranges, :levels]
    for d in np.flatnonzero(enough_DTG[:, 0].any(axis=1)):
        preference_ATG = np.where(free_ATG & enough_DTG[d], order_DG[d] + bonus_A1G, -1)
        choice_AT = preference_ATG.argmax(axis=2)
        found_AT = preference_ATG.max(axis=2) >= 0
        counted_AT = ~ignored_AG[grid_a, choice_AT]
        hit[:, :, d] = found_AT & counted_AT
        excused[:, :, d] = found_AT & ~counted_AT
        free_ATG[grid_a, grid_t, choice_AT] &= ~found_AT | crowd_G[choice_AT]
    return hit, excused


def precision_at_recalls(hit_TN: Bools, ignored_TN: Bools, instances: int) -> Floats:
    """Interpolated precision at `RECALL_LEVELS`, float64 ``[T, R]``; 0 beyond the recall reached.

    Args:
        hit_TN: ``[T, N]``, by descending score.
        ignored_TN: ``[T, N]``, neither right nor wrong.
        instances: counted ground truth, > 0.
    """
    precision_TR = np.zeros((len(hit_TN), len(RECALL_LEVELS)))
    if hit_TN.shape[1] == 0:
        return precision_TR
    right_TN = np.cumsum(hit_TN, axis=1).astype(float)
    wrong_TN = np.cumsum(~hit_TN & ~ignored_TN, axis=1).astype(float)
    recall_TN = right_TN / instances
    raw_TN = right_TN / (wrong_TN + right_TN + np.spacing(1))
    envelope_TN = np.maximum.accumulate(raw_TN[:, ::-1], axis=1)[:, ::-1]
    for t, recall_N in enumerate(recall_TN):
        position_R = np.searchsorted(recall_N, RECALL_LEVELS, side="left")
        reached = position_R < len(recall_N)
        precision_TR[t, reached] = envelope_TN[t, position_R[reached]]
    return precision_TR

"""Shapes and types that public docstrings state, of functions whose other tests compare values only."""

import numpy as np
import pytest
import torch

from dataseg.inference.mask_resampling import strips
from dataseg.inference.resize import to_tensor
from dataseg.losses.affinity import affinity_loss, color_similarity, rgb_to_lab
from dataseg.losses.points import MaskTargets, select_uncertain
from dataseg.losses.terms import (
    box_profiles,
    class_cost,
    dice_loss,
    mask_loss,
    mask_profiles,
    pair_dice_cost,
    pair_mask_cost,
    pair_projection_cost,
    projection_loss,
)
from dataseg.merge import merge_groups, merge_predictions, one_mask_per_class
from dataseg.merge_predictions import merge_proposals, query_groups
from dataseg.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    RECALL_LEVELS,
    match_instances,
    outside_ranges,
    precision_at_recalls,
)
from dataseg.metrics.panoptic_quality import class_scores
from dataseg.structures import Proposals, Task
from dataseg.structures.geometry import ImageGeometry

L, B, Q, K, C, P, H, W = 2, 3, 5, 4, 6, 7, 9, 11
IS_THING = torch.arange(C) % 2 == 0
GEOMETRY = ImageGeometry((32, 64), (30, 50), (61, 103))
MASKS, BOXES = (torch.rand(L, Q, W), torch.rand(L, Q, H)), (torch.rand(K, W), torch.rand(K, H))
A, T, R = len(AREA_RANGES), len(IOU_THRESHOLDS), len(RECALL_LEVELS)


def proposals():
    return Proposals(torch.randn(B, Q, C + 1), torch.randn(B, Q, H, W))


def targets():
    return MaskTargets(None, torch.ones(B, K, H, W, dtype=torch.uint8), torch.zeros(B, H, W, dtype=torch.bool), K)


CASES = {
    "rgb_to_lab": lambda: (rgb_to_lab(torch.rand(3, H, W)), (3, H, W), torch.float32),
    "color_similarity": lambda: (
        color_similarity(torch.zeros(3, 32, 64, dtype=torch.uint8), (7, 12), (8, 16)),
        (8, 7, 12),
        torch.float32,
    ),
    "affinity_loss": lambda: (
        affinity_loss(torch.randn(L, K, H, W), torch.rand(8, H, W), torch.ones(L, K, H, W), 0.3),
        (L, K),
        torch.float32,
    ),
    "MaskTargets.at": lambda: (targets().at(torch.rand(B, P, 2))[0], (B, K, P), torch.float32),
    "MaskTargets.at, clear": lambda: (targets().at(torch.rand(B, P, 2))[1], (B, P), torch.bool),
    "select_uncertain": lambda: (
        select_uncertain(torch.randn(B, K, P), torch.ones(B, P, dtype=torch.bool), 3),
        (B, K, 3),
        torch.int64,
    ),
    "pair_mask_cost": lambda: (
        pair_mask_cost(torch.randn(B, Q, P), torch.rand(B, K, P), torch.ones(B, P, dtype=torch.bool)),
        (B, Q, K),
        torch.float32,
    ),
    "pair_dice_cost": lambda: (
        pair_dice_cost(torch.randn(B, Q, P), torch.rand(B, K, P), torch.ones(B, P, dtype=torch.bool)),
        (B, Q, K),
        torch.float32,
    ),
    "mask_loss": lambda: (
        mask_loss(torch.randn(L, K, P), torch.rand(L, K, P), torch.ones(L, K, P, dtype=torch.bool)),
        (L, K),
        torch.float32,
    ),
    "dice_loss": lambda: (
        dice_loss(torch.randn(L, K, P), torch.rand(L, K, P), torch.ones(L, K, P, dtype=torch.bool)),
        (L, K),
        torch.float32,
    ),
    "class_cost": lambda: (
        class_cost(torch.randn(B, Q, C + 1), torch.zeros(B, K, dtype=torch.int64)),
        (B, Q, K),
        torch.float32,
    ),
    "box_profiles, x": lambda: (
        box_profiles(torch.rand(K, 4), (H, W), (4.0, 4.0), (H - 1, W - 1))[0],
        (K, W),
        torch.float32,
    ),
    "box_profiles, y": lambda: (
        box_profiles(torch.rand(K, 4), (H, W), (4.0, 4.0), (H - 1, W - 1))[1],
        (K, H),
        torch.float32,
    ),
    "mask_profiles, x": lambda: (mask_profiles(torch.randn(L, Q, H, W))[0], (L, Q, W), torch.float32),
    "mask_profiles, y": lambda: (mask_profiles(torch.randn(L, Q, H, W))[1], (L, Q, H), torch.float32),
    "pair_projection_cost": lambda: (pair_projection_cost(MASKS, BOXES), (L, Q, K), torch.float32),
    "projection_loss": lambda: (projection_loss((MASKS[0][:, :K], MASKS[1][:, :K]), BOXES), (L, K), torch.float32),
    "one_mask_per_class": lambda: (one_mask_per_class(IS_THING, Task.PANOPTIC), (C,), torch.bool),
    "merge_groups": lambda: (merge_groups(torch.tensor([0, 1, 1, 3]), IS_THING, Task.PANOPTIC)[0], (4,), torch.int64),
    "merge_groups, labels": lambda: (
        merge_groups(torch.tensor([0, 1, 1, 3]), IS_THING, Task.PANOPTIC)[1],
        (3,),
        torch.int64,
    ),
    "merge_predictions": lambda: (
        merge_predictions(torch.rand(Q, C), torch.rand(Q, H, W), "max"),
        (C, H, W),
        torch.float32,
    ),
    "query_groups": lambda: (query_groups(torch.randn(B, Q, C + 1), IS_THING, Task.SEMANTIC), (B, Q), torch.int64),
    "merge_proposals": lambda: (
        merge_proposals(proposals(), torch.zeros(B, Q, dtype=torch.int64)).mask_logits,
        (B, Q, H, W),
        torch.float32,
    ),
    "strips": lambda: (
        torch.cat([strip for _, strip in strips(GEOMETRY, torch.randn(Q, 8, 16), 4000)], 1),
        (Q, 61, 103),
        torch.float32,
    ),
    "to_tensor": lambda: (to_tensor(np.zeros((H, W, 3), np.uint8)), (3, H, W), torch.uint8),
    "outside_ranges": lambda: (outside_ranges(np.ones(K)), (A, K), np.bool_),
    "match_instances": lambda: (
        match_instances(np.zeros((Q, K)), np.zeros(K, bool), np.zeros((A, K), bool))[1],
        (A, T, Q),
        np.bool_,
    ),
    "precision_at_recalls": lambda: (
        precision_at_recalls(np.ones((T, P), bool), np.zeros((T, P), bool), 3),
        (T, R),
        np.float64,
    ),
    "class_scores": lambda: (class_scores(torch.ones(4, C, dtype=torch.float64))[0], (C,), torch.float64),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_types_are_those_of_the_docstring(name):
    found, shape, dtype = CASES[name]()
    assert tuple(found.shape) == shape
    assert found.dtype == dtype

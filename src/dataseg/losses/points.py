"""Points at which masks are compared, read straight from id maps or RLE: nobody builds K masks of an image.

Shape legend: ``N`` = independent images or layers, ``M`` = masks that share points, ``K`` = target segments,
``P`` = points, ``H, W`` = image rows and columns, ``h, w`` = rows and columns of the mask logits.

Points are ``(x, y)`` relative to the **image without its padding**: in [0, 1] inside of it, beyond 1 in the padding,
which belongs to no segment. `ImageGeometry.to_padded` moves them to the padded input's.
"""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional

from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Target, UserError
from dataseg.structures.geometry import ImageGeometry


def uniform_points(seed: int, stream: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random points in [0, 1), float32 ``[*shape, 2]``: a pure function of the sample's seed and the stream's number.

    Numbers of one seed differ between CPU and CUDA, whose generators are different algorithms.
    """
    generator = torch.Generator(device=device)
    # odd multiplier (2^64 / golden ratio): neighbouring seeds and streams start far apart
    generator.manual_seed((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 1) % 2**63)
    return torch.rand(*shape, 2, generator=generator, device=device)


def sample_logits(logits_NMhw: Tensor, points_NP2: Tensor) -> Tensor:
    """Bilinear values of maps at points in [0, 1] of those maps, ``[N, M, P]``; zero beyond the border."""
    grid_N1P2 = (2.0 * points_NP2 - 1.0)[:, None]
    return functional.grid_sample(logits_NMhw, grid_N1P2, mode="bilinear", padding_mode="zeros", align_corners=False)[
        :, :, 0
    ]


def _corners(points_P2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The four pixels around each point: rows and columns, int64 ``[4, P]``, and weights ``[4, P]``, 0 if outside."""
    x_P, y_P = points_P2[..., 0] * width - 0.5, points_P2[..., 1] * height - 0.5
    fx_P, fy_P = x_P - x_P.floor(), y_P - y_P.floor()
    x_P, y_P = x_P.floor().long(), y_P.floor().long()
    columns_4P = torch.stack([x_P, x_P + 1, x_P, x_P + 1])
    rows_4P = torch.stack([y_P, y_P, y_P + 1, y_P + 1])
    weights_4P = torch.stack([(1 - fx_P) * (1 - fy_P), fx_P * (1 - fy_P), (1 - fx_P) * fy_P, fx_P * fy_P])
    inside_4P = (columns_4P >= 0) & (columns_4P < width) & (rows_4P >= 0) & (rows_4P < height)
    return rows_4P.clamp(0, height - 1), columns_4P.clamp(0, width - 1), weights_4P * inside_4P


def sample_map(ids_HW: Tensor, count: int, points_P2: Tensor) -> tuple[Tensor, Tensor]:
    """What `sample_logits` of the ``count`` binary masks of an id map would give, without these masks.

    Args:
        ids_HW: integer, values ``0..count - 1`` or `VOID`.
        count: K.
        points_P2: float, ``(x, y)`` in [0, 1] of the map; others are in no segment.

    Returns:
        Membership of each point in each segment, float32 ``[K, P]`` in [0, 1]; and whether the point is clear of
        VOID, bool ``[P]``.
    """
    rows_4P, columns_4P, weights_4P = _corners(points_P2, *ids_HW.shape)
    ids_4P = ids_HW[rows_4P, columns_4P].long()
    ids_4P = torch.where(ids_4P == VOID, count, ids_4P)
    values_KP = weights_4P.new_zeros(count + 1, points_P2.shape[0])  # the last row gathers VOID
    values_KP.scatter_add_(0, ids_4P, weights_4P)
    return values_KP[:count], values_KP[count] == 0


def sample_masks(masks_KHW: Tensor, void_HW: Tensor | None, points_P2: Tensor) -> tuple[Tensor, Tensor]:
    """The same for masks that may overlap.

    Args:
        masks_KHW: uint8 or bool, any strides.
        void_HW: bool, pixels that take part in no loss; None = no such pixel.
        points_P2: float, ``(x, y)`` in [0, 1]; others are in no mask.

    Returns:
        As `sample_map`: float32 ``[K, P]`` and bool ``[P]``.
    """
    rows_4P, columns_4P, weights_4P = _corners(points_P2, masks_KHW.shape[1], masks_KHW.shape[2])
    values_KP = weights_4P.new_zeros(len(masks_KHW), points_P2.shape[0])
    for rows_P, columns_P, weights_P in zip(rows_4P, columns_4P, weights_4P, strict=True):
        values_KP += masks_KHW[:, rows_P, columns_P] * weights_P
    if void_HW is None:
        return values_KP, torch.ones_like(weights_4P[0], dtype=torch.bool)
    return values_KP, ~(void_HW[rows_4P, columns_4P] & (weights_4P > 0)).any(0)


def _trainable(target: InstanceMasks) -> list[int]:
    """Positions of instances that are targets: a mask is known and it is no crowd."""
    crowd = [False] * len(target) if target.is_crowd is None else target.is_crowd.tolist()
    return [k for k, rle in enumerate(target.rles) if rle is not None and not crowd[k]]


def target_labels(target: Target) -> Tensor:
    """Labels of the segments that queries are matched to, int64 ``[K]``: crowds and unknown masks are left out."""
    if isinstance(target, InstanceMasks):
        return target.labels[_trainable(target)]
    return target.labels


def _decode(rles: list[dict[str, object] | None], device: torch.device) -> Tensor:
    """Uint8 ``[K, H, W]``."""
    decoded_HWK = coco_mask.decode(rles)  # Fortran order: [K, W, H] in memory, hence the transposes without a copy
    return torch.from_numpy(np.ascontiguousarray(decoded_HWK.transpose(2, 1, 0))).to(device).transpose(1, 2)


def _void_of(target: InstanceMasks, trainable: list[int], masks_KHW: Tensor) -> Tensor | None:
    """Crowds, and boxes of instances whose mask is unknown, where no known instance lies: bool ``[H, W]`` or None."""
    others = sorted(set(range(len(target))) - set(trainable))
    if not others:
        return None
    void_HW = torch.zeros(target.size, dtype=torch.bool, device=masks_KHW.device)
    for k in others:
        if target.rles[k] is not None:
            void_HW |= _decode([target.rles[k]], masks_KHW.device)[0].bool()
        elif target.boxes is not None:
            x1, y1, x2, y2 = target.boxes[k].tolist()
            void_HW[max(0, int(y1)) : max(0, int(-(-y2 // 1))), max(0, int(x1)) : max(0, int(-(-x2 // 1)))] = True
    return void_HW & ~(masks_KHW > 0).any(0)


def sample_target(
    target: SegmentMap | InstanceMasks, geometry: ImageGeometry, points_P2: Tensor
) -> tuple[Tensor, Tensor]:
    """Membership of points in an image's target segments, one interface for maps and RLE masks.

    RLE masks are decoded here and dropped again, so that one image's masks at most are in memory.

    Args:
        target: of the image's size, padded or not; its padding is not looked at.
        geometry: the image's.
        points_P2: float, ``(x, y)`` in [0, 1] of the image; beyond 1 in its padding.

    Returns:
        Float32 ``[K, P]`` in [0, 1], rows as in `target_labels`; and bool ``[P]``: clear of VOID.
    """
    if isinstance(target, SegmentMap):
        return sample_map(target.ids[: geometry.size[0], : geometry.size[1]], len(target), points_P2)
    trainable = _trainable(target)
    if not trainable:
        return points_P2.new_zeros(0, len(points_P2)), points_P2.new_ones(len(points_P2), dtype=torch.bool)
    masks_KHW = _decode([target.rles[k] for k in trainable], points_P2.device)
    void_HW = _void_of(target, trainable, masks_KHW)
    rows, columns = slice(geometry.size[0]), slice(geometry.size[1])
    return sample_masks(masks_KHW[:, rows, columns], None if void_HW is None else void_HW[rows, columns], points_P2)


def check_geometry(target: Target, geometry: ImageGeometry, image_id: str) -> None:
    """Raise a UserError if a map or mask target is of another size than its image."""
    if isinstance(target, Boxes):
        return
    sizes = (geometry.size, geometry.padded)
    if tuple(target.size) not in sizes:
        raise UserError(
            f"image {image_id}: its target is {target.size[0]} x {target.size[1]} (rows x columns), but the image"
            f" {sizes[0][0]} x {sizes[0][1]} and its padded input {sizes[1][0]} x {sizes[1][1]}: resize them together"
        )


def select_uncertain(logits_NMP: Tensor, valid_NP: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` points whose prediction is least certain, int64 ``[N, M, count]``, in no order.

    Uncertainty is closeness of the logit to 0 (PointRend, arXiv 1912.08193, section 3.1). Void points come last:
    they are taken only when there are fewer valid points than ``count``.
    """
    certainty_NMP = logits_NMP.abs().masked_fill(~valid_NP[:, None], torch.inf)
    return certainty_NMP.topk(count, dim=-1, largest=False, sorted=False).indices

"""Points at which masks are compared, read straight from id maps: nobody builds K masks of an image that has a map.

Shape legend: ``B`` = images, ``N`` = independent images or layers, ``M`` = masks that share points, ``K`` = target
segments, ``P`` = points, ``H, W`` = rows and columns of the padded input, ``h, w`` = those of the mask logits.

Points are ``(x, y)`` in [0, 1] of the padded input, whose padding belongs to no segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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


def _corners(points_P2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: positions ``y * width + x``, int64 ``[..., 4, P]``, and weights, 0 outside."""
    xy_P2 = points_P2 * points_P2.new_tensor([width, height]) - 0.5
    low_P2 = xy_P2.floor()
    after_P2 = xy_P2 - low_P2
    ends_P22 = torch.stack([low_P2, low_P2 + 1], -2)  # [..., P, end, axis]
    limit_2 = points_P2.new_tensor([width - 1, height - 1])
    shares_P22 = torch.stack([1 - after_P2, after_P2], -2) * ((ends_P22 >= 0) & (ends_P22 <= limit_2))
    ends_P22 = ends_P22.clamp(min=0).minimum(limit_2).long()
    positions_P22 = ends_P22[..., :, None, 1] * width + ends_P22[..., None, :, 0]
    weights_P22 = shares_P22[..., :, None, 1] * shares_P22[..., None, :, 0]
    return positions_P22.flatten(-2).mT, weights_P22.flatten(-2).mT


@dataclass(frozen=True)
class SharedPoints:
    """Points at which many maps of an image are read; `sample` gives what `sample_logits` gives, without a gradient.

    A map's four pixels around a point lie apart; the same pixel of all maps, once transposed, lies together: so that
    a point is a weighted sum of four rows. On a CPU it takes less than half the time for 100 maps.

    Attributes:
        rows: int64 ``[N * P, 4]``, of the transposed maps ``[h * w * N, M]``.
        weights: float32 ``[N * P, 4]``; 0 beyond the border.
        images: N.
    """

    rows: Tensor
    weights: Tensor
    images: int

    @classmethod
    def of(cls, points_NP2: Tensor, height: int, width: int) -> Self:
        """Points in [0, 1] of maps of ``height`` x ``width``."""
        positions_N4P, weights_N4P = _corners(points_NP2, height, width)
        images = len(points_NP2)
        rows_N4P = positions_N4P * images + torch.arange(images, device=points_NP2.device)[:, None, None]
        return cls(rows_N4P.mT.reshape(-1, 4), weights_N4P.mT.reshape(-1, 4), images)

    def sample(self, logits_NMhw: Tensor) -> Tensor:
        """Bilinear values of maps, float32 ``[N, M, P]``, not contiguous."""
        maps = logits_NMhw.shape[1]
        table = logits_NMhw.float().flatten(2).flatten(0, 1).t().contiguous().view(-1, maps)
        values = functional.embedding_bag(self.rows, table, per_sample_weights=self.weights, mode="sum")
        return values.view(self.images, -1, maps).mT


@dataclass(frozen=True)
class MaskTargets:
    """Target segments of several images, as they are read at points: of one size and number, filled up.

    Attributes:
        ids: int32 ``[B, H, W]``, values ``0..K - 1``, K where there is no segment, K + 1 where there is VOID; None =
            all targets are masks.
        masks: uint8 ``[B, K, H, W]``, 1 inside; None = all targets are maps.
        void: bool ``[B, H, W]``; None = all targets are maps.
        count: K, the largest number of segments.
    """

    ids: Tensor | None
    masks: Tensor | None
    void: Tensor | None
    count: int

    @classmethod
    def of(
        cls, targets: Sequence[SegmentMap | InstanceMasks], sizes: Sequence[tuple[int, int]], padded: tuple[int, int]
    ) -> Self:
        """Targets of one kind or both; RLE masks are decoded.

        Args:
            targets: each of its image's size, padded or not; its padding is not looked at.
            sizes: (rows, columns) of the images.
            padded: of the batch.
        """
        labels = [target_labels(target) for target in targets]
        device, count = labels[0].device, max(map(len, labels))
        if all(isinstance(target, SegmentMap) for target in targets):
            ids_BHW = torch.full((len(targets), *padded), count, dtype=torch.int32, device=device)
            for ids_HW, target, (rows, columns) in zip(ids_BHW, targets, sizes, strict=True):
                assert isinstance(target, SegmentMap)
                ids_HW[:rows, :columns] = target.ids[:rows, :columns]
            return cls(ids_BHW.masked_fill_(ids_BHW == VOID, count + 1), None, None, count)
        masks_BKHW = torch.zeros(len(targets), count, *padded, dtype=torch.uint8, device=device)
        void_BHW = torch.zeros(len(targets), *padded, dtype=torch.bool, device=device)
        for i, (target, (rows, columns)) in enumerate(zip(targets, sizes, strict=True)):
            masks_KHW, void_HW = _dense(target, device)
            masks_BKHW[i, : len(masks_KHW), :rows, :columns] = masks_KHW[:, :rows, :columns]
            if void_HW is not None:
                void_BHW[i, :rows, :columns] = void_HW[:rows, :columns]
        return cls(None, masks_BKHW, void_BHW, count)

    def at(self, points_BP2: Tensor) -> tuple[Tensor, Tensor]:
        """What `sample_logits` of the K binary masks would give.

        Args:
            points_BP2: float, ``(x, y)`` in [0, 1] of the padded input.

        Returns:
            Membership of each point in each segment, float32 ``[B, K, P]`` in [0, 1]; and whether the point is clear
            of VOID, bool ``[B, P]``.
        """
        if self.ids is not None:
            positions_B4P, weights_B4P = _corners(points_BP2, *self.ids.shape[-2:])
            ids_B4P = self.ids.flatten(1).gather(1, positions_B4P.flatten(1)).view_as(positions_B4P).long()
            values_BKP = weights_B4P.new_zeros(len(points_BP2), self.count + 2, points_BP2.shape[1])
            values_BKP.scatter_add_(1, ids_B4P, weights_B4P)
            return values_BKP[:, : self.count], values_BKP[:, self.count + 1] == 0
        assert self.masks is not None
        assert self.void is not None
        positions_B4P, weights_B4P = _corners(points_BP2, *self.masks.shape[-2:])
        masks_BKX = self.masks.flatten(2)
        values_BKP = weights_B4P.new_zeros(*masks_BKX.shape[:2], points_BP2.shape[1])
        for positions_BP, weights_BP in zip(positions_B4P.unbind(1), weights_B4P.unbind(1), strict=True):
            inside_BKP = masks_BKX.gather(2, positions_BP[:, None].expand_as(values_BKP))
            values_BKP += inside_BKP * weights_BP[:, None]
        void_B4P = self.void.flatten(1).gather(1, positions_B4P.flatten(1)).view_as(positions_B4P)
        return values_BKP, ~(void_B4P & (weights_B4P > 0)).any(1)


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


def _dense(target: SegmentMap | InstanceMasks, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Masks of the trainable segments, uint8 or bool ``[K, H, W]``, and VOID, bool ``[H, W]`` or None."""
    if isinstance(target, SegmentMap):
        segments = torch.arange(len(target), device=device)
        return target.ids == segments[:, None, None], target.ids == VOID
    trainable = _trainable(target)
    if not trainable:
        return torch.zeros(0, *target.size, dtype=torch.uint8, device=device), None
    masks_KHW = _decode([target.rles[k] for k in trainable], device)
    return masks_KHW, _void_of(target, trainable, masks_KHW)


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
    certainty_NMP = logits_NMP.abs().masked_fill_(~valid_NP[:, None], torch.inf)
    return certainty_NMP.topk(count, dim=-1, largest=False, sorted=False).indices

"""Targets and predictions: id maps, boxes, instance masks. See `dataseg.structures` for the shape legend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

VOID = -1
"""Value of a map's pixel that belongs to no segment: no loss and no score is taken there."""


def _check_lengths(record: Any, count: int, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and len(value) != count:
            raise ValueError(f"{type(record).__name__}: {count} labels but {len(value)} {name}")


class Movable:
    """Records that move between devices field by field."""

    def _map(self, function: Any) -> Self:
        changes = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = function(value)
            elif isinstance(value, list) and value and isinstance(value[0], Movable):
                changes[f.name] = [v._map(function) for v in value]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda t: t.pin_memory())


@dataclass
class SegmentMap(Movable):
    """Segments that do not overlap, as one map: semantic and panoptic targets and predictions.

    A semantic map is one whose ``labels`` are all different: one segment per class. NumPy arrays may be given in the
    place of tensors.

    Attributes:
        ids: integer ``[H, W]``, values ``0..K-1`` (row of ``labels``) or `VOID`.
        labels: int64 ``[K]``, class of each segment.
        scores: float ``[K]`` in [0, 1]; predictions only.
        is_crowd: bool ``[K]``; ground truth for evaluation only. Training targets hold no crowd: it is VOID there.
        areas: int64 ``[K]``, pixel counts *as the annotation file states them* (ADE's differ from the map's);
            None = count them in the map.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                setattr(self, f.name, torch.from_numpy(np.ascontiguousarray(value)))
        if self.ids.ndim != 2:
            raise ValueError(f"SegmentMap.ids must be [H, W], got {list(self.ids.shape)}")
        if self.ids.is_floating_point() or self.labels.is_floating_point():
            raise ValueError("SegmentMap.ids and labels must be integers")
        _check_lengths(self, len(self.labels), ("scores", "is_crowd", "areas"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.ids.shape[0], self.ids.shape[1]

    def class_map(self) -> Tensor:
        """Label of every pixel, int64 ``[H, W]``; `VOID` where there is no segment or only a crowd."""
        labels = self.labels if self.is_crowd is None else self.labels.masked_fill(self.is_crowd, VOID)
        table = torch.cat([labels.long(), labels.new_full((1,), VOID, dtype=torch.long)])
        return table[self.ids.long()]  # VOID = -1 indexes the appended last entry


@dataclass
class Boxes(Movable):
    """Box targets: no mask is known.

    Attributes:
        xyxy: float32 ``[K, 4]``, absolute pixels of the image they travel with.
        labels: int64 ``[K]``.
    """

    xyxy: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.xyxy.ndim != 2 or self.xyxy.shape[1] != 4:
            raise ValueError(f"Boxes.xyxy must be [K, 4], got {list(self.xyxy.shape)}")
        _check_lengths(self, len(self.labels), ("xyxy",))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class InstanceMasks(Movable):
    """Masks that may overlap, run-length encoded: instance ground truth and predictions.

    Attributes:
        rles: one COCO RLE (``{"size": [H, W], "counts": bytes}``, pycocotools.mask) per instance; None = no mask is
            known (ground truth only: such an instance is ignored, not penalised).
        labels: int64 ``[K]``.
        size: (H, W), to which every RLE must agree.
        scores: float ``[K]`` in [0, 1]; predictions only.
        is_crowd: bool ``[K]``; ground truth only.
        areas: float ``[K]``, as stated in the annotation file (COCO size ranges use it); ground truth only.
        boxes: float ``[K, 4]`` xyxy; ground truth only, stands in for the extent of instances without a mask.
    """

    rles: list[dict[str, Any] | None]
    labels: Tensor
    size: tuple[int, int]
    scores: Tensor | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        _check_lengths(self, len(self.labels), ("rles", "scores", "is_crowd", "areas", "boxes"))
        for rle in self.rles:
            if rle is not None and tuple(rle["size"]) != tuple(self.size):
                raise ValueError(f"InstanceMasks: an RLE of size {rle['size']} in an image of size {list(self.size)}")

    def __len__(self) -> int:
        return len(self.labels)


Target: TypeAlias = SegmentMap | Boxes | InstanceMasks


Segments: TypeAlias = SegmentMap | InstanceMasks


def outline(target: Target) -> Target:
    """A target whose segments can be counted, without the pixels of a map."""
    return replace(target, ids=target.ids[:0, :0]) if isinstance(target, SegmentMap) else target

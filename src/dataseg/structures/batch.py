"""Samples, batches, and what the network says of a batch. See `dataseg.structures` for the shape legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from dataseg.structures.evaluation import Task
from dataseg.structures.geometry import padded_size
from dataseg.structures.segments import Movable, Target

UNREADABLE = "unreadable: "
"""Start of the keys of ``counts`` that name a training sample that could not be read; the message follows."""


@dataclass
class Sample:
    """One image with its target.

    Attributes:
        image: uint8 ``[3, H, W]``, RGB.
        target: for training in the frame of ``image``; for evaluation at ``original_size``.
        image_id: the annotation file's own id, as text.
        original_size: (H, W) of the image on disk.
        seed: seed of every random choice made for this sample (augmentation, points of the loss).
        counts: what preparation dropped, e.g. ``{"emptied_by_crop": 2}``; summed into the log.
        is_padding: evaluation only: repeats an image so that ranks take equal numbers of steps; never scored.
    """

    image: Tensor
    target: Target
    image_id: str
    original_size: tuple[int, int]
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    is_padding: bool = False

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3 or self.image.dtype != torch.uint8:
            raise ValueError(f"Sample.image must be uint8 [3, H, W], got {self.image.dtype} {list(self.image.shape)}")


@dataclass
class Batch(Movable):
    """Samples of **one** dataset.

    Attributes:
        dataset: its name in the configuration, e.g. ``coco``; names its losses and metrics.
        task: the MERGE rule of its targets.
        images: uint8 ``[B, 3, H, W]``, padded at the bottom and right; what stands there means nothing, see ``sizes``.
        sizes: (rows, columns) that are image, not padding, per sample. The network sets what lies beyond them to 0
            after its normalisation.
        targets: length B. For training in the frame of the image without its padding.
        image_ids, original_sizes, seeds, is_padding: see `Sample`; length B.
        counts: summed over samples.
        step_targets: where an optimisation step has several batches on this rank, the targets of all of them, maps
            without their pixels: losses are divided by what the whole step holds.
    """

    dataset: str
    task: Task
    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    image_ids: list[str]
    original_sizes: list[tuple[int, int]]
    seeds: list[int]
    is_padding: list[bool]
    counts: dict[str, int] = field(default_factory=dict)
    step_targets: list[Target] | None = None

    def __post_init__(self) -> None:
        for name in ("sizes", "targets", "image_ids", "original_sizes", "seeds", "is_padding"):
            if len(getattr(self, name)) != len(self.images):
                raise ValueError(f"Batch of {len(self.images)} images has {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def collate(cls, samples: Sequence[Sample], dataset: str, task: Task, size: tuple[int, int] | None = None) -> Self:
        """Pad samples to one size.

        Args:
            samples: of one dataset.
            dataset: its name.
            task: the MERGE rule of its targets.
            size: (rows, columns) to pad to; None = the least multiples of `DIVISOR` that hold all samples.
        """
        largest = max(s.image.shape[1] for s in samples), max(s.image.shape[2] for s in samples)
        images = torch.zeros(len(samples), 3, *(size or padded_size(largest)), dtype=torch.uint8)
        counts: dict[str, int] = {}
        for image, sample in zip(images, samples, strict=True):
            image[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
            for key, value in sample.counts.items():
                counts[key] = counts.get(key, 0) + value
        return cls(
            dataset=dataset,
            task=task,
            images=images,
            sizes=[(s.image.shape[1], s.image.shape[2]) for s in samples],
            targets=[s.target for s in samples],
            image_ids=[s.image_id for s in samples],
            original_sizes=[s.original_size for s in samples],
            seeds=[s.seed for s in samples],
            is_padding=[s.is_padding for s in samples],
            counts=counts,
        )


@dataclass
class Proposals:
    """What the network says of a batch: N (mask, class) pairs an image, whatever the dataset or task.

    Attributes:
        class_logits: float ``[B, Q, C + 1]``; the last column is the background ("no object").
        mask_logits: float ``[B, Q, h, w]``, h = H / 4, w = W / 4.
    """

    class_logits: Tensor
    mask_logits: Tensor

    def __post_init__(self) -> None:
        if self.class_logits.ndim != 3 or self.mask_logits.ndim != 4:
            raise ValueError(
                f"Proposals need [B, Q, C + 1] and [B, Q, h, w], got "
                f"{list(self.class_logits.shape)} and {list(self.mask_logits.shape)}"
            )
        if self.class_logits.shape[:2] != self.mask_logits.shape[:2]:
            raise ValueError(
                f"Proposals: class_logits {list(self.class_logits.shape)} and mask_logits "
                f"{list(self.mask_logits.shape)} differ in batch or queries"
            )

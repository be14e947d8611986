"""What a dataset holds: counts, sizes, classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rich.progress import track

from data_modules.formats.reader import Reader, SegmentSizes
from data_modules.inspection.check import drawn
from data_modules.survey import evenly_spaced
from dataseg.structures import VOID, Boxes, SegmentMap, Target, Vocabulary

SIZE_STEPS = tuple(2.0**k for k in range(2, 12))
"""Bounds of the sizes that are counted together, pixels: square root of a segment's area."""


Bar = tuple[str, int, str, str]
"""Name, count, colour in CSS, hint."""


@dataclass
class Statistics:
    """What a dataset holds.

    Attributes:
        name: role and name, e.g. ``train coco``.
        title: what it is called in public.
        vocabulary: its classes.
        images: how many there are.
        counted: how many of them the numbers below come from.
        per_class: int64 ``[C]``, segments or boxes of each class.
        images_per_class: int64 ``[C]``, images that hold a class.
        per_image: int64 ``[counted]``, segments of each image.
        sizes: float32, square root of each segment's area, pixels.
        counts: what reading dropped or mended.
        problem: why there are none of these.
        pictures: uint8 ``[H, W, 3]`` each, some images with their targets.
    """

    name: str
    title: str
    vocabulary: Vocabulary
    images: int = 0
    counted: int = 0
    per_class: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    images_per_class: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    per_image: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sizes: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def segments(self) -> int:
        return int(self.per_class.sum())

    @property
    def classes_seen(self) -> int:
        return int((self.per_class > 0).sum())

    @property
    def median_size(self) -> float:
        """NaN without segments."""
        return float(np.median(self.sizes)) if len(self.sizes) else float("nan")

    @property
    def segments_an_image(self) -> list[int]:
        """The least, the median, the 95th percentile and the most."""
        return np.percentile(self.per_image, [0, 50, 95, 100]).astype(int).tolist() if len(self.per_image) else [0] * 4

    @property
    def unseen(self) -> list[str]:
        """Classes without a segment, in the order of the vocabulary."""
        return [name for name, count in zip(self.vocabulary.names, self.per_class.tolist(), strict=True) if not count]

    def size_bars(self) -> list[Bar]:
        """Segments between the `SIZE_STEPS`."""
        bounds = [0.0, *SIZE_STEPS, np.inf]
        counts, _ = np.histogram(self.sizes, bounds)
        labels = [f"{a:.0f} - {b:.0f}" if np.isfinite(b) else f"over {a:.0f}" for a, b in pairwise(bounds)]
        return [(label, count, "var(--c0)", "") for label, count in zip(labels, counts.tolist(), strict=True)]

    def class_bars(self) -> list[Bar]:
        """Segments of each class that has any, the most first."""
        bars = []
        for k in np.argsort(-self.per_class, kind="stable").tolist()[: self.classes_seen]:
            spec = self.vocabulary.classes[k]
            name = f"{self.vocabulary.names[k]} ({'thing' if spec.is_thing else 'stuff'})"
            hint = f"in {self.images_per_class[k]:,} images"
            bars.append((name, int(self.per_class[k]), f"rgb{spec.color}", hint))
        return bars


def describe(reader: Reader, name: str, limit: int) -> Statistics:
    """Statistics of a reader that is set up.

    Args:
        limit: images to open where nothing but opening them tells what they hold; 0 = all.
    """
    result = Statistics(name, reader.title, reader.vocabulary, images=len(reader), counts=reader.counts)
    sizes = reader.sizes()
    if sizes is None:
        indices = evenly_spaced(len(reader), limit)
        sizes = _opened(reader, indices, name)
        result.counted = len(indices)
    else:
        result.counted = len(reader)
    image, label, area = sizes
    classes = len(reader.vocabulary)
    result.per_class = np.bincount(label, minlength=classes)
    pairs = np.unique(image * classes + label)
    result.images_per_class = np.bincount(pairs % classes, minlength=classes)
    result.per_image = np.bincount(image, minlength=result.counted)
    result.sizes = np.sqrt(area).astype(np.float32)
    pictures = (drawn(reader, index) for index in evenly_spaced(len(reader), 8))
    result.pictures = [picture for picture in pictures if picture is not None]
    return result


def _opened(reader: Reader, indices: Sequence[int], name: str) -> SegmentSizes:
    """Of some images, numbered in the order of ``indices``."""
    labels: list[NDArray[np.int64]] = []
    areas: list[NDArray[np.float64]] = []
    for index in track(indices, description=name, transient=True):
        _, target = reader.open(index)
        labels.append(target.labels.numpy())
        areas.append(_areas(target))
    image = np.repeat(np.arange(len(indices)), [len(label) for label in labels])
    return SegmentSizes(image, np.concatenate(labels), np.concatenate(areas))


def _areas(target: Target) -> NDArray[np.float64]:
    """Float64 ``[K]``, pixels; of an instance without a mask 0."""
    if isinstance(target, SegmentMap):
        return np.bincount((target.ids.flatten() - VOID).numpy(), minlength=len(target) + 1)[1:].astype(np.float64)
    if isinstance(target, Boxes):
        return (target.xyxy[:, 2:] - target.xyxy[:, :2]).prod(dim=1).double().numpy()
    return np.array([0.0 if rle is None else float(coco_mask.area(rle)) for rle in target.rles])

"""What a dataset holds: counts, sizes, classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rich.progress import track

from data_modules.formats.label_maps import LabelMapReader
from data_modules.formats.panoptic_reader import NOT_STATED
from data_modules.formats.reader import IndexedReader, Reader
from data_modules.inspection.check import drawn, evenly_spaced
from dataseg.structures import VOID, Boxes, SegmentMap, Target, Vocabulary
from dataseg.text.embeddings import TextEmbeddings

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
        counted: how many of them the figures below come from.
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
    if isinstance(reader, IndexedReader) and _has_sizes(reader):
        result.counted = len(reader)
        image, label, area = _from_index(reader)
    else:
        indices = evenly_spaced(len(reader), limit)
        result.counted = len(indices)
        image, label, area = _from_targets(reader, indices, name)
    classes = len(reader.vocabulary)
    result.per_class = np.bincount(label, minlength=classes)
    pairs = np.unique(image * classes + label)
    result.images_per_class = np.bincount(pairs % classes, minlength=classes)
    result.per_image = np.bincount(image, minlength=result.counted)
    result.sizes = np.sqrt(area).astype(np.float32)
    pictures = (drawn(reader, index) for index in evenly_spaced(len(reader), 8))
    result.pictures = [picture for picture in pictures if picture is not None]
    return result


Rows = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Per segment: number of its image, label, area in pixels."""


def _has_sizes(reader: IndexedReader) -> bool:
    if reader.index.has("area"):
        return bool((reader.index.all("area") != NOT_STATED).all())
    return reader.index.has("xyxy")


def _from_index(reader: IndexedReader) -> Rows:
    index = reader.index
    label = index.all("label").astype(np.int64)
    if index.has("area"):
        area = index.all("area").astype(np.float64)
    else:
        xyxy = index.all("xyxy").astype(np.float64)
        area = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    return np.repeat(np.arange(len(index)), index.lengths()), label, np.maximum(area, 0)


def _from_targets(reader: Reader, indices: Sequence[int], name: str) -> Rows:
    images: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    areas: list[NDArray[np.float64]] = []
    for number, index in enumerate(track(indices, description=name, transient=True)):
        label, area = _of_target(*_labels(reader, index))
        images.append(np.full(len(label), number))
        labels.append(label)
        areas.append(area)
    return np.concatenate(images), np.concatenate(labels), np.concatenate(areas)


def _labels(reader: Reader, index: int) -> tuple[Target | None, NDArray[np.int16] | None, NDArray[np.int64] | None]:
    if isinstance(reader, LabelMapReader):  # its images need not be decoded
        return (None, *reader.load_labels(index))
    return reader.load(index)[1], None, None


def _of_target(
    target: Target | None, rows_HW: NDArray[np.int16] | None, labels_K: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if isinstance(target, SegmentMap):
        rows_HW, labels_K = target.ids.numpy().astype(np.int16), target.labels.numpy()
    if rows_HW is not None and labels_K is not None:
        area = np.bincount((rows_HW.ravel() - VOID).astype(np.int64), minlength=len(labels_K) + 1)[1:]
        return labels_K, area.astype(np.float64)
    assert target is not None
    if isinstance(target, Boxes):
        sides = target.xyxy[:, 2:] - target.xyxy[:, :2]
        return target.labels.numpy(), sides.prod(dim=1).double().numpy()
    assert not isinstance(target, SegmentMap)
    known = [0.0 if rle is None else float(coco_mask.area(rle)) for rle in target.rles]
    return target.labels.numpy(), np.array(known)


@dataclass
class Pair:
    """Two classes of different vocabularies whose names mean much the same to the text encoder."""

    first: str
    second: str
    similarity: float


def similar_classes(
    vocabularies: Sequence[Vocabulary], text: TextEmbeddings, threshold: float
) -> dict[tuple[str, str], list[Pair]]:
    """For each two vocabularies the pairs of classes with a cosine of at least ``threshold``, the highest first.

    A report only: vocabularies are never joined.
    """
    unique = list({v.name: v for v in vocabularies}.values())
    embedded = [text(v) for v in unique]
    found = {}
    for k, (first, a) in enumerate(zip(unique, embedded, strict=True)):
        for second, b in zip(unique[k + 1 :], embedded[k + 1 :], strict=True):
            cosine_SS = (a.vectors @ b.vectors.T).numpy()
            best = np.full((len(first), len(second)), -1.0)
            np.maximum.at(best, (a.class_index.numpy()[:, None], b.class_index.numpy()[None]), cosine_SS)
            rows, columns = np.nonzero(best >= threshold)
            places = zip(rows.tolist(), columns.tolist(), strict=True)
            pairs = [Pair(first.names[i], second.names[j], float(best[i, j])) for i, j in places]
            found[first.name, second.name] = sorted(pairs, key=lambda pair: -pair.similarity)
    return found

"""What a data check asks of single images, and of a dataset as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from data_modules.formats.reader import Reader
from data_modules.survey import agrees
from data_modules.vocabularies import is_shipped
from dataseg.metrics.by_task import BY_TASK, metric_for, primary_score
from dataseg.structures import VOID, InstanceMasks, SegmentMap, Target, Task, UserError

Severity = Literal["error", "warning"]
MAX_OF_ONE_CLASS = 100
"""Predictions of one class in one image that mask AP looks at."""


class Problem(NamedTuple):
    """Something that is wrong with a dataset.

    Attributes:
        severity: warnings do not stop a training.
        kind: what the summary counts together.
        message: names file or image.
    """

    severity: Severity
    kind: str
    message: str


class Finding(NamedTuple):
    """What was found of one image.

    Attributes:
        row: index of the image in its reader.
        digest: 16 hex digits that stand for its pixels; "" if it cannot be read.
        problems: of this image.
    """

    row: int
    digest: str
    problems: list[Problem]


def examine(reader: Reader, index: int) -> Finding:
    """Load one image with its target and look for all that can be wrong."""
    try:
        encoded, target = reader.open(index)
        image = encoded.decode()
        doubts = reader.doubts(index)
    except UserError as error:
        return Finding(index, "", [Problem("error", "unreadable or inconsistent", str(error))])
    name = f"{reader.title}: image {reader.image_id(index)}"
    content = hashlib.blake2b(image.tobytes(), digest_size=8, person=str(image.shape).encode()[:16])
    found = [*_problems(target, reader, name), *(Problem("warning", "doubtful", doubt) for doubt in doubts)]
    if not is_shipped(reader.vocabulary) and (code := encoded.exif_orientation) > 1:
        what = "is turned upright by its" if reader.upright else "is not turned by its"
        found.append(Problem("warning", "EXIF orientation", f"{name} {what} EXIF orientation ({code})"))
    if encoded.bands is None and encoded.is_deep:
        message = f"{name}: its own lowest to highest value become 0 to 255, where it has 16 bits"
        found.append(Problem("warning", "more than 8 bits", message))
    return Finding(index, content.hexdigest(), found)


def _problems(target: Target, reader: Reader, name: str) -> Iterable[Problem]:
    if not len(target):
        yield Problem("warning", "without a segment", f"{name} has none")
    if isinstance(target, SegmentMap):
        yield from _map_problems(target, reader, name)
    if isinstance(target, InstanceMasks) and len(target):
        most = int(torch.bincount(target.labels).max())
        if most > MAX_OF_ONE_CLASS:
            yield Problem("warning", "over 100 of a class", f"{name} has {most}; mask AP looks at {MAX_OF_ONE_CLASS}")
        if not is_shipped(reader.vocabulary):  # official sets mean what they state
            yield from _box_problems(target, reader, name)


def _box_problems(target: InstanceMasks, reader: Reader, name: str) -> Iterable[Problem]:
    """Stated boxes that are not around their masks."""
    for k, rle in enumerate(target.rles):
        if rle is None or target.boxes is None:
            continue
        if not agrees(rle, target.boxes[k].numpy()):
            left, top, width, height = coco_mask.toBbox(rle).tolist()
            stated, found = target.boxes[k].round().tolist(), [left, top, left + width, top + height]
            message = (
                f"{name}: object {k} ({reader.vocabulary.names[target.labels[k]]}) states {stated}, its mask {found}"
            )
            yield Problem("warning", "stated box is not the mask's", f"{message} (left, top, right, bottom)")


def _map_problems(target: SegmentMap, reader: Reader, name: str) -> Iterable[Problem]:
    counted = torch.bincount(target.ids.flatten().long() + 1, minlength=len(target) + 1)[1:]
    names = reader.vocabulary.names
    for k, (pixels, label) in enumerate(zip(counted.tolist(), target.labels.tolist(), strict=True)):
        if not pixels:
            yield Problem("warning", "in the JSON, not in the PNG", f"{name}: segment {k} ({names[label]})")
        elif target.areas is not None and int(target.areas[k]) != pixels:
            message = f"{name}: segment {k} ({names[label]}) states {int(target.areas[k])} pixels, the PNG has {pixels}"
            yield Problem("warning", "stated area is not the PNG's", message)
    if bool((target.ids == VOID).all()) and len(target):
        yield Problem("warning", "nothing but void", name)
    if Task.PANOPTIC in reader.tasks:
        yield from _split_stuff(target, counted, reader, name)


def _split_stuff(target: SegmentMap, counted: Tensor, reader: Reader, name: str) -> Iterable[Problem]:
    """Stuff in several segments: a model's output has one segment of a stuff class, so PQ 100 is out of reach."""
    single = (counted > 0) & ~reader.vocabulary.is_thing[target.labels]
    if target.is_crowd is not None:
        single &= ~target.is_crowd
    for label in (torch.bincount(target.labels[single]) > 1).nonzero().flatten().tolist():
        segments = ", ".join(map(str, (single & (target.labels == label)).nonzero().flatten().tolist()))
        message = f"{name}: segments {segments} are all {reader.vocabulary.names[label]}; a model's output merges them"
        yield Problem("warning", "stuff in several segments", message)


def as_prediction(target: Target) -> SegmentMap | InstanceMasks | None:
    """The ground truth as a perfect prediction of itself; None for boxes.

    Crowds, and instances without a mask, are left out, as no prediction is expected there.
    """
    if isinstance(target, SegmentMap):
        crowd = torch.zeros(len(target), dtype=torch.bool) if target.is_crowd is None else target.is_crowd
        table = torch.full((len(target) + 1,), VOID, dtype=torch.int64)
        table[:-1][~crowd] = torch.arange(int((~crowd).sum()))
        return SegmentMap(table[target.ids.long()], target.labels[~crowd])
    if isinstance(target, InstanceMasks):
        crowd = torch.zeros(len(target), dtype=torch.bool) if target.is_crowd is None else target.is_crowd
        kept = [k for k, rle in enumerate(target.rles) if rle is not None and not crowd[k]]
        rles = [target.rles[k] for k in kept]
        return InstanceMasks(rles, target.labels[kept], target.size, scores=torch.ones(len(kept)))
    return None


class SelfScore:
    """Scores a ground truth against itself: 100, or something in it makes 100 impossible for any model."""

    def __init__(self, reader: Reader, name: str) -> None:
        segments = {"map": SegmentMap, "masks": InstanceMasks}.get(reader.gives)
        self._metrics = {
            task: metric_for(task, reader.vocabulary, name)
            for task in reader.tasks
            if BY_TASK[task].segments is segments
        }

    def update(self, target: Target, image_id: str) -> None:
        """Add one image."""
        prediction = as_prediction(target)
        for metric in self._metrics.values():
            metric.update(prediction, target, image_id)

    def compute(self) -> dict[str, float]:
        """The primary score of each task, in percent.

        Raises:
            UserError: a ground truth that no metric can score, such as one that is void throughout.
        """
        keys = {primary_score(task, metric): metric for task, metric in self._metrics.items()}
        return {key: 100 * float(metric.compute()[key]) for key, metric in keys.items()}

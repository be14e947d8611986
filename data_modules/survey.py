"""What a dataset of your own lost or lacks, looked for once it is read: told in training as in the data check.

Official datasets are left out: they mean what they state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_modules.annotation_index.problems import OnProblem
from data_modules.formats.reader import IndexedReader, Reader
from data_modules.vocabularies import is_shipped
from dataseg.io.rle import RLE
from dataseg.structures import VOID, SegmentMap, Target, UserError

LOOKED_AT = 32
"""Targets that are opened before a training, where no index tells what they hold."""
MAX_BOX_ERROR = 3.0
"""Pixels that a stated box may differ from its mask's: tools round, and draw outlines through or around pixels."""
_COMPARED = 20_000  # images whose masks are compared with each other and with their boxes


def evenly_spaced(count: int, limit: int) -> list[int]:
    """``limit`` of ``count`` indices (0 = all)."""
    if not limit or limit >= count:
        return list(range(count))
    return np.linspace(0, count - 1, limit).round().astype(int).tolist()  # type: ignore[no-any-return]


def survey(reader: Reader, on_problem: OnProblem, limit: int = LOOKED_AT) -> None:
    """Add to the counts of a reader that has read, and tell what they mean.

    Args:
        on_problem: told of a dataset that nothing can be learnt from, and benignly of all else.
        limit: targets to open, where they must be; 0 = all.
    """
    if is_shipped(reader.vocabulary):
        return
    if isinstance(reader, IndexedReader) and reader.index.has("label") and reader.index.has("xyxy"):
        labels, crowds, is_complete = _of_index(reader, on_problem)
    else:
        labels, crowds, is_complete = _of_targets(reader, on_problem, limit)
    total = len(labels) + crowds
    if crowds:
        reader.counts["crowds_that_are_ignored"] = crowds
        on_problem(
            f"{reader.where}: {'all ' if crowds == total else ''}{crowds} of {total} annotations are crowds (iscrowd"
            " 1): nothing is trained on them or scored. CVAT marks all that is painted with its brush so: if they"
            " are single objects, set crowds: train",
            benign=crowds < total,
        )
    elif not total and is_complete:
        on_problem(f"{reader.where}: holds no object of the vocabulary that can be used{_counted(reader)}")
    unseen = [name for label, name in enumerate(reader.vocabulary.names) if label not in set(labels)]
    if total and unseen and is_complete:
        reader.counts["classes_without_an_object"] = len(unseen)
        on_problem(f"{reader.where}: no object has the class {', '.join(unseen)}", benign=True)


def _counted(reader: Reader) -> str:
    found = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in reader.counts.items() if count)
    return f" ({found})" if found else ""


# ------------------------------------------------------------------------------------------ boxes and instances


def _of_index(reader: IndexedReader, on_problem: OnProblem) -> tuple[list[int], int, bool]:
    """Labels of all objects that are no crowds, and how many are crowds."""
    index = reader.index
    labels = index.all("label")
    if not index.has("area"):
        return labels.tolist(), reader.counts.get("crowd_boxes", 0), True
    if len(labels) and reader.counts.get("without_mask") == len(labels):
        on_problem(f"{reader.where}: has boxes and no mask: train on boxes, with CocoBoxes or targets: boxes")
    is_crowd = index.all("is_crowd")
    _compare_masks(reader, on_problem)
    return labels[~is_crowd].tolist(), int(is_crowd.sum()), True


def _compare_masks(reader: IndexedReader, on_problem: OnProblem) -> None:
    """With each other, with the image and with the boxes that are stated."""
    index = reader.index
    whole, twice, boxes, along_rows = [], [], [], []
    for image in evenly_spaced(len(index), _COMPARED):
        row = index.image(image)
        seen: set[tuple[int, bytes]] = set()
        stated = index.column(image, "xyxy")
        labels: list[int] = index.column(image, "label").tolist()
        for k, (counts, label) in enumerate(zip(index.packed(image, "rle"), labels, strict=True)):
            if not counts:
                continue
            rle = {"size": list(row.size), "counts": counts}
            where = f"image {row.id}, object {k}"
            if (label, counts) in seen:
                twice.append(where)
            seen.add((label, counts))
            if coco_mask.area(rle) == row.size[0] * row.size[1]:
                whole.append(where)
            if not agrees(rle, stated[k]):
                boxes.append(where)
                if agrees(_along_rows(rle), stated[k]):
                    along_rows.append(where)
    if along_rows and 2 * len(along_rows) > len(boxes):
        on_problem(
            f"{reader.where}: the run lengths of {along_rows[0]} and {len(along_rows) - 1} others fit their boxes along"
            " the rows; COCO's go down the columns: write them anew with pycocotools.mask.encode"
        )
    found = {
        "objects_twice_in_an_image": (twice, "have the class and the mask of another"),
        "masks_of_the_whole_image": (whole, "have a mask that covers the whole image"),
        "boxes_that_are_not_their_masks": (boxes, "state a bbox that is not their mask's"),
    }
    for what, (places, says) in found.items():
        if places:
            reader.counts[what] = len(places)
            of = len(index.all("label"))
            on_problem(f"{reader.where}: {len(places)} of {of} objects {says}, e.g. {places[0]}", benign=True)


def agrees(rle: RLE, xyxy: NDArray[Any]) -> bool:
    """Whether a stated box is around its mask."""
    left, top, width, height = coco_mask.toBbox(rle).tolist()
    return bool(np.abs(xyxy - np.array([left, top, left + width, top + height])).max() <= MAX_BOX_ERROR)


def _along_rows(rle: RLE) -> RLE:
    """The mask that the same run lengths make row by row."""
    mask = coco_mask.decode(rle).ravel(order="F").reshape(rle["size"])
    return dict(coco_mask.encode(np.asfortranarray(mask)))


# ------------------------------------------------------------------------------------------------------- maps


def _of_targets(reader: Reader, on_problem: OnProblem, limit: int) -> tuple[list[int], int, bool]:
    """As `_of_index`, of targets that are opened; whether they were all."""
    indices = evenly_spaced(len(reader), limit)
    labels: list[int] = []
    crowds = whole = read = 0
    void: list[float] = []
    for target in _targets(reader, indices):
        read += 1
        is_crowd = getattr(target, "is_crowd", None)
        is_crowd = np.zeros(len(target), dtype=bool) if is_crowd is None else is_crowd.numpy()
        labels += target.labels.numpy()[~is_crowd].tolist()
        crowds += int(is_crowd.sum())
        if isinstance(target, SegmentMap):
            void.append(float((target.ids == VOID).float().mean()))
        else:
            rles = getattr(target, "rles", [])
            whole += sum(rle is not None and coco_mask.area(rle) == np.prod(rle["size"]) for rle in rles)
    if void and np.mean(void) > 0:
        reader.counts["void_percent"] = round(100 * float(np.mean(void)))
        on_problem(
            f"{reader.where}: {np.mean(void):.1%} of the pixels of {len(void)} maps are void: nothing is trained on"
            f" them or scored{reader.void_hint}",
            benign=bool(np.mean(void) < 1),
        )
    if whole:
        reader.counts["masks_of_the_whole_image"] = whole
        on_problem(f"{reader.where}: {whole} masks cover the whole image, in {read} images", benign=True)
    return labels, crowds, read == len(reader)


def _targets(reader: Reader, indices: list[int]) -> Iterator[Target]:
    """Those that can be read: the others are told of when they are loaded."""
    for index in indices:
        try:
            yield reader.open(index)[1]
        except UserError:
            continue

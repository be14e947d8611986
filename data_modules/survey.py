"""What a dataset of your own lost or lacks, looked for once it is read: told in training as in the data check.

Official datasets are left out: they mean what they state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_modules.annotation_index.problems import OnProblem
from data_modules.formats.reader import IndexedReader, Reader
from data_modules.vocabularies import is_shipped
from dataseg.io.id_map import Runs
from dataseg.io.rle import RLE, encode_mask
from dataseg.structures import VOID, SegmentMap, Target, UserError, Vocabulary

LOOKED_AT = 32
"""Targets that are opened before a training, where no index tells what they hold."""
MAX_BOX_ERROR = 3.0
"""Pixels that a stated box may differ from its mask's: tools round, and draw outlines through or around pixels."""
MAX_AREA_ERROR = 0.25
"""Share of a mask that its stated area may differ by: outlines are measured along the middle of their pixels."""
_LEAST_AREA_ERROR = 25.0  # pixels
_SIDE = 4  # pixels of a class in a row, from which it is a side of a border
_WIDTH = 8  # pixels that a blurred border may be wide
_LEAST_BORDERS = 10
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
        counted = f" ({', '.join(reader.counted)})" if reader.counted else ""
        on_problem(f"{reader.where}: holds no object of the vocabulary that can be used{counted}")
    unseen = [name for label, name in enumerate(reader.vocabulary.names) if label not in set(labels)]
    if total and unseen:
        reader.counts["classes_without_an_object"] = len(unseen)
        among = "" if is_complete else f" in {limit} images that were looked at"
        on_problem(f"{reader.where}: no object{among} has the class {', '.join(unseen)}", benign=True)


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
    whole, twice, boxes, areas = [], [], [], []
    misread: dict[str, list[str]] = {form: [] for form in _OTHER_FORMS}
    for image in evenly_spaced(len(index), _COMPARED):
        row = index.image(image)
        seen: set[tuple[int, bytes]] = set()
        stated, stated_areas = index.column(image, "xyxy"), index.column(image, "area").tolist()
        labels: list[int] = index.column(image, "label").tolist()
        for k, (counts, label) in enumerate(zip(index.packed(image, "rle"), labels, strict=True)):
            if not counts:
                continue
            rle = {"size": list(row.size), "counts": counts}
            where = f"image {row.id}, object {k}"
            if (label, counts) in seen:
                twice.append(where)
            seen.add((label, counts))
            area = float(coco_mask.area(rle))
            if area == row.size[0] * row.size[1]:
                whole.append(where)
            if abs(stated_areas[k] - area) > max(MAX_AREA_ERROR * area, _LEAST_AREA_ERROR):
                areas.append(where)
            if not agrees(rle, stated[k]):
                boxes.append(where)
                for form, error_of in _OTHER_FORMS.items():
                    if error_of(rle, stated[k]) <= 1:
                        misread[form].append(where)
    for form, places in misread.items():
        if 2 * len(places) > len(boxes):
            on_problem(f"{reader.where}: the masks of {places[0]} and {len(places) - 1} others fit their boxes {form}")
    found = {
        "objects_twice_in_an_image": (twice, "have the class and the mask of another"),
        "masks_of_the_whole_image": (whole, "have a mask that covers the whole image"),
        "boxes_that_are_not_their_masks": (boxes, "state a bbox that is not their mask's"),
        "areas_that_are_not_their_masks": (
            areas,
            "state an area that is not their mask's: by it they count as small, medium or large; without it the mask's"
            " own does",
        ),
    }
    for what, (places, says) in found.items():
        if places:
            reader.counts[what] = len(places)
            of = len(index.all("label"))
            on_problem(f"{reader.where}: {len(places)} of {of} objects {says}, e.g. {places[0]}", benign=True)


def agrees(rle: RLE, xyxy: NDArray[Any]) -> bool:
    """Whether a stated box is around its mask."""
    return bool(np.abs(xyxy - _corners(rle)).max() <= MAX_BOX_ERROR)


def _corners(rle: RLE) -> NDArray[np.float64]:
    """Left, top, right and bottom of a mask."""
    left, top, width, height = coco_mask.toBbox(rle).tolist()
    return np.array([left, top, left + width, top + height])


def _misfit(rle: RLE, xyxy: NDArray[Any], order: tuple[int, ...], percent: bool = False) -> float:
    """How far a mask's corners in another order, or taken for percent, are from its box; what was cut off fits."""
    most = np.array([*rle["size"][::-1], *rle["size"][::-1]])
    found, one = _corners(rle), most / 100 if percent else np.ones(4)
    error = np.abs(xyxy - found[[*order]] * one) / (MAX_BOX_ERROR + one)  # rounded to a percent, or a pixel
    return float(np.where((found < most)[[*order]], error, 0).max())


def _along_rows(rle: RLE, xyxy: NDArray[Any]) -> float:
    mask = coco_mask.decode(rle).ravel(order="F").reshape(rle["size"])
    return float(np.abs(xyxy - _corners(encode_mask(mask))).max()) / MAX_BOX_ERROR


_OTHER_FORMS: dict[str, Callable[[RLE, NDArray[Any]], float]] = {
    "if their run lengths go along the rows; COCO's go down the columns: write them anew with"
    " pycocotools.mask.encode": _along_rows,
    "if their coordinates are percent of the image: multiply x by its width / 100 and y by its height / 100": partial(
        _misfit, order=(0, 1, 2, 3), percent=True
    ),
    "if their coordinates are y, x: write x, y": partial(_misfit, order=(1, 0, 3, 2)),
}
"""How masks may be meant that are not in their boxes, and by how much they then are not, in shares of what they may."""


# ------------------------------------------------------------------------------------------------------- maps


def _of_targets(reader: Reader, on_problem: OnProblem, limit: int) -> tuple[list[int], int, bool]:
    """As `_of_index`, of targets that are opened; whether they were all."""
    indices = evenly_spaced(len(reader), limit)
    labels: list[int] = []
    crowds = whole = read = 0
    void: list[float] = []
    blurred: list[tuple[int, Borders]] = []
    doubts: list[str] = []
    for row, target in _targets(reader, indices):
        read += 1
        doubts += reader.doubts(row)
        is_crowd = getattr(target, "is_crowd", None)
        is_crowd = np.zeros(len(target), dtype=bool) if is_crowd is None else is_crowd.numpy()
        labels += target.labels.numpy()[~is_crowd].tolist()
        crowds += int(is_crowd.sum())
        if isinstance(target, SegmentMap):
            void.append(float((target.ids == VOID).float().mean()))
            if not reader.graded and (borders := Borders.of(target, reader.vocabulary)).are_blurred:
                blurred.append((row, borders))
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
    if doubts:
        reader.counts["doubtful_files"] = len(doubts)
        on_problem(f"{doubts[0]} ({len(doubts)} such files in {read} images)", benign=True)
    if blurred:
        reader.counts["blurred_maps"] = len(blurred)
        row, borders = blurred[0]
        on_problem(
            f"{next(reversed(reader.files(row)), reader.where)}: {borders.through} of {borders.all} borders between"
            " classes pass through numbers between theirs, as in label maps that were resized with interpolation,"
            f" smoothed or blurred ({len(blurred)} of {len(void)} maps): write them anew from the labels, resized to"
            " the nearest pixel; if neighbours in number are meant to be neighbours in the picture, set graded: true",
            benign=len(borders.between) < 2,
        )
    if whole:
        reader.counts["masks_of_the_whole_image"] = whole
        on_problem(f"{reader.where}: {whole} masks cover the whole image, in {read} images", benign=True)
    return labels, crowds, read == len(reader)


class Borders(NamedTuple):
    """Borders between classes whose ids leave room for another class, along all rows and columns of a label map.

    Sharp ones go from the one class to the other in one step. Maps that were resized with interpolation or blurred go
    there through the numbers between.

    Attributes:
        all: how many there are.
        through: how many of them pass through numbers between.
        between: these numbers.
    """

    all: int
    through: int
    between: frozenset[int]

    @property
    def are_blurred(self) -> bool:
        """More than half; of real label maps, 5% at most, and above 60% once they were resized or blurred."""
        return self.all >= _LEAST_BORDERS and 2 * self.through > self.all

    @classmethod
    def of(cls, target: SegmentMap, vocabulary: Vocabulary) -> Self:
        ids = np.array([spec.id for spec in vocabulary.classes])
        values = np.append(ids[target.labels.numpy()], VOID)[target.ids.numpy()]  # VOID = -1 indexes the last
        found = [cls._along_rows(view, np.sort(ids)) for view in (values, values.T)]
        return cls(
            sum(f.all for f in found), sum(f.through for f in found), frozenset().union(*(f.between for f in found))
        )

    @classmethod
    def _along_rows(cls, values_HW: NDArray[np.int64], ids: NDArray[np.int64]) -> Self:
        runs = Runs.of(np.pad(values_HW, ((0, 0), (0, 1)), constant_values=VOID))
        sides = np.flatnonzero((runs.lengths >= _SIDE) | (runs.values == VOID))  # what lies between is a border
        first, last = sides[:-1], sides[1:]
        low = np.minimum(runs.values[first], runs.values[last])
        high = np.maximum(runs.values[first], runs.values[last])
        room = np.searchsorted(ids, high) - np.searchsorted(ids, low, side="right") > 0
        counted = room & (low != VOID)
        inner = np.stack([np.minimum(first + 1, last), last], axis=1).ravel()
        least, most = (f.reduceat(runs.values, inner)[::2] for f in (np.minimum, np.maximum))
        ends = np.cumsum(runs.lengths)
        through = counted & (least > low) & (most < high) & (ends[last - 1] - ends[first] <= _WIDTH)
        return cls(
            int(counted.sum()), int(through.sum()), frozenset({*least[through].tolist(), *most[through].tolist()})
        )


def _targets(reader: Reader, indices: list[int]) -> Iterator[tuple[int, Target]]:
    """Those that can be read: the others are told of when they are loaded."""
    for index in indices:
        try:
            yield index, reader.open(index)[1]
        except UserError:
            continue

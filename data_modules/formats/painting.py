"""Maps painted from masks that may overlap: semantic and panoptic targets of polygons, run lengths and mask files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask

from data_modules.formats.panoptic_reader import recount_areas
from data_modules.formats.reader import Reader
from dataseg.structures import VOID, InstanceMasks, SegmentMap, Target, Task, UserError


def gives_of(title: str, tasks: Sequence[Task]) -> Literal["masks", "map"]:
    """What a reader of masks gives: them as they are for the instance task, a map painted from them for the others.

    Raises:
        UserError: tasks of both kinds.
    """
    if len({task == Task.INSTANCE for task in tasks}) == 2:
        raise UserError(
            f"{title}: one reader gives masks that may overlap (instance) or a map (panoptic, semantic), not both: give"
            f" tasks {[str(task) for task in tasks]} to two datasets"
        )
    return "masks" if tasks[0] == Task.INSTANCE else "map"


def require_rest(reader: Reader) -> None:
    """What pixels without an object are must be chosen: void would let any class spread there unpunished.

    Raises:
        UserError: ``rest`` is not given, and the reader paints maps.
    """
    if reader.gives == "map" and reader.rest_label is None:
        raise UserError(
            f"{reader.title}: {reader.tasks[0]} targets are painted from masks: say what pixels without an object are,"
            " rest: NAME of a class of the vocabulary (such as background), or rest: void (no loss, no score)"
        )


def painted(reader: Reader, masks: InstanceMasks) -> Target:
    """The target that a reader of masks gives: ``masks``, or a map.

    In order: pixels without an object are ``reader.rest_label`` (void if it is None); crowds, and the boxes of objects
    without a mask, are void; then the objects, larger ones first ("smaller_on_top") or as they are listed
    ("later_on_top"). Things are a segment each for the panoptic task; all else is a segment per class.
    """
    if reader.gives == "masks":
        return masks
    rest = VOID if reader.rest_label is None else reader.rest_label
    rows: dict[tuple[int, int], int] = {} if rest == VOID else {(rest, -1): 0}  # (label, number of the thing)
    ids_HW = np.full(masks.size, VOID if rest == VOID else 0, dtype=np.int16)
    is_thing = (
        reader.vocabulary.is_thing.tolist() if reader.tasks[0] == Task.PANOPTIC else [False] * len(reader.vocabulary)
    )
    crowd = [False] * len(masks) if masks.is_crowd is None else masks.is_crowd.tolist()
    order = list(range(len(masks)))
    if reader.overlaps == "smaller_on_top":
        order.sort(key=lambda k: -float(coco_mask.area(rle)) if (rle := masks.rles[k]) else 0.0)
    for k in sorted(order, key=lambda k: not (crowd[k] or masks.rles[k] is None)):
        rle, label = masks.rles[k], int(masks.labels[k])
        if rle is None:
            if masks.boxes is not None:
                left, top, right, bottom = masks.boxes[k].clamp(min=0).tolist()
                ids_HW[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = VOID
            continue
        row = VOID
        if not crowd[k] and (label := rest if label == VOID else label) != VOID:
            row = rows.setdefault((label, k if is_thing[label] and label != rest else -1), len(rows))
        ids_HW[coco_mask.decode(rle).astype(bool)] = row
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    return recount_areas(SegmentMap(torch.from_numpy(ids_HW), labels))

"""Panoptic quality, equal to panopticapi's (Kirillov et al., arXiv 1801.00868; cocodataset/panopticapi).

Legend: C = classes, G = target segments of an image, P = predicted segments of an image, M = ground-truth modes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataseg.metrics.base import ImageMetric, Ints, Overlaps
from dataseg.structures import VOID, SegmentMap, UserError, Vocabulary

AreaMode = Literal["stored", "recounted", "both"]


def match_segments(
    overlaps: Overlaps,
    target_labels: Ints,
    is_crowd: NDArray[np.bool_],
    target_areas: Ints,
    prediction_labels: Ints,
    classes: int,
) -> NDArray[np.float64]:
    """Sum of IoU, true positives, false positives and false negatives of one image, per class.

    A pair of one class matches above IoU 0.5. The union leaves out the prediction's void pixels, not its crowd pixels.
    Crowds match nothing and miss nothing; an unmatched prediction is forgiven when more than half of it lies on void
    plus the *last* crowd of its class. A predicted segment without a pixel does not count.

    Args:
        overlaps: of the two maps.
        target_labels: ``[G]``.
        is_crowd: ``[G]``.
        target_areas: ``[G]``.
        prediction_labels: ``[P]``.
        classes: C.

    Returns:
        ``[4, C]``.

    Raises:
        ZeroDivisionError: a stated area is so small that a union is empty.
    """
    predicted = overlaps.prediction != VOID
    target, prediction, pixels = (v[predicted] for v in (overlaps.target, overlaps.prediction, overlaps.pixels))
    on_void = target == VOID
    areas_P = np.bincount(prediction, pixels, len(prediction_labels))
    void_P = np.bincount(prediction[on_void], pixels[on_void], len(prediction_labels))

    same_class = ~on_void & (target_labels[target] == prediction_labels[prediction]) if len(target_labels) else ~on_void
    candidate = same_class.copy()
    candidate[same_class] &= ~is_crowd[target[same_class]]
    rows, columns, shared = target[candidate], prediction[candidate], pixels[candidate]
    union = areas_P[columns] + target_areas[rows] - shared - void_P[columns]
    if not union.all():
        raise ZeroDivisionError
    iou = shared / union
    match = iou > 0.5
    rows, columns, iou = rows[match], columns[match], iou[match]
    missed_G, wrong_P = ~is_crowd, areas_P > 0
    missed_G[rows] = False
    wrong_P[columns] = False

    last_crowd_C = np.full(classes, VOID - 1)
    for crowd in np.flatnonzero(is_crowd):
        last_crowd_C[target_labels[crowd]] = crowd
    on_crowd = last_crowd_C[prediction_labels[prediction]] == target
    forgiven_P = void_P + np.bincount(prediction[on_crowd], pixels[on_crowd], len(prediction_labels))
    wrong_P &= 2 * forgiven_P <= areas_P
    matched_labels = target_labels[rows]
    return np.stack(
        [
            np.bincount(matched_labels, iou, classes),
            np.bincount(matched_labels, minlength=classes),
            np.bincount(prediction_labels[wrong_P], minlength=classes),
            np.bincount(target_labels[missed_G], minlength=classes),
        ]
    )


class PanopticQuality(ImageMetric):
    """PQ, SQ, RQ over all, thing and stuff classes, in [0, 1]; a class without any segment is left out of the mean.

    Keys of `compute`: ``pq sq rq``, each also with ``_things`` and ``_stuff``. With ``areas="recounted"`` they end in
    ``_recounted``; with ``areas="both"`` every score stands twice, ending in ``_stored`` and in ``_recounted``. A
    group of classes without a segment gives NaN. Columns of `per_class`: ``pq sq rq tp fp fn``, float64, likewise.

    The state is one float64 tensor that adds up over ranks, plus 8 bytes an image against counting it twice.

    Args:
        vocabulary: the classes.
        dataset: name in messages.
        areas: "stored" takes areas that the target states (`SegmentMap.areas`), as panopticapi does, and counts pixels
            where it states none; "recounted" always counts pixels. They differ for ADE20K's panoptic ground truth,
            whose stuff areas were stored before things were pasted over them.
    """

    totals: Tensor

    def __init__(self, vocabulary: Vocabulary, dataset: str = "", areas: AreaMode = "stored", **kwargs: Any) -> None:
        super().__init__(vocabulary, dataset, **kwargs)
        if areas not in ("stored", "recounted", "both"):
            raise ValueError(f"areas must be 'stored', 'recounted' or 'both', got {areas!r}")
        self.areas: AreaMode = areas
        self.modes = ("stored", "recounted") if areas == "both" else (areas,)
        zeros = torch.zeros(len(self.modes), 4, len(vocabulary), dtype=torch.float64)
        self.add_state("totals", default=zeros, dist_reduce_fx="sum")

    @property
    def suffix(self) -> str:
        return "" if self.areas == "stored" else f"_{self.modes[0]}"

    @property
    def convention(self) -> dict[str, str]:
        return {
            "metric": "panoptic quality as in panopticapi",
            "averaging": "mean over the classes with a target or an unforgiven predicted segment",
            "crowd": "never matched; forgives a prediction with more than half on void and the last crowd of its class",
            "void": "taken out of the union; forgives like a crowd",
            "areas": self.areas,
            "vocabulary": self.vocabulary.digest,
        }

    def update(self, prediction: SegmentMap, target: SegmentMap, image_id: str) -> None:
        """Score one image.

        Args:
            prediction: ids ``[H, W]``; its stated areas are not used.
            target: ids ``[H, W]`` at the same size; crowds in the order of the annotation file.
            image_id: the annotation file's.

        Raises:
            ValueError: names dataset and image: wrong size, unknown id or label, non-finite score, image given twice.
        """
        key = self._check_new(image_id)
        overlaps = self._overlaps(prediction, target, image_id)
        labels, predicted = (segments.labels.cpu().numpy() for segments in (target, prediction))
        crowd = np.zeros(len(labels), dtype=bool) if target.is_crowd is None else target.is_crowd.bool().cpu().numpy()
        on_target = overlaps.target != VOID
        counted = np.bincount(overlaps.target[on_target], overlaps.pixels[on_target], len(labels))
        stored = counted if target.areas is None else target.areas.cpu().numpy()
        seen = []
        for mode in self.modes:
            areas = stored if mode == "stored" else counted
            try:
                seen.append(match_segments(overlaps, labels, crowd, areas, predicted, len(self.vocabulary)))
            except ZeroDivisionError:
                self.fail(image_id, "a ground-truth segment states an area smaller than its pixels: correct the file")
        self.totals += torch.from_numpy(np.stack(seen)).to(self.totals.device)
        self._remember(key)

    def compute(self) -> dict[str, Tensor]:
        """Scores over all images of all ranks, float64 scalars.

        Raises:
            ValueError: no image, an image scored twice, or nothing but void in all of them.
        """
        images = self._count_images()
        totals = self.totals.cpu()
        if not bool(totals[:, 1:].sum() > 0):
            raise UserError(
                f"{self.dataset}: {images} image(s) hold no ground-truth segment at all (everything is void)"
            )
        is_thing = self.vocabulary.is_thing
        groups = {"": torch.ones_like(is_thing), "_things": is_thing, "_stuff": ~is_thing}
        result = {}
        self._per_class = {}
        for mode, mode_totals in zip(self.modes, totals, strict=True):
            suffix = "" if self.areas == "stored" else f"_{mode}"
            for name, values_C in zip(("pq", "sq", "rq"), class_scores(mode_totals), strict=True):
                self._per_class[name + suffix] = values_C
                for group, members_C in groups.items():
                    result[f"{name}{group}{suffix}"] = values_C[members_C].nanmean()
            for name, counts_C in zip(("tp", "fp", "fn"), mode_totals[1:], strict=True):
                self._per_class[name + suffix] = counts_C
        return result


def class_scores(totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PQ, SQ, RQ, float64 ``[C]`` each, NaN where a class never occurs, from ``[4, C]`` (see `match_segments`)."""
    iou, tp, fp, fn = totals
    denominator = tp + 0.5 * fp + 0.5 * fn  # 0 / 0 = NaN: the class never occurs
    sq = torch.where(tp > 0, iou / tp.clamp(min=1), 0.0)
    return iou / denominator, torch.where(denominator > 0, sq, torch.nan), tp / denominator

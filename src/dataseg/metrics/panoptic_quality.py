"""Panoptic quality, equal to panopticapi's (Kirillov et al., arXiv 1801.00868; cocodataset/panopticapi).

Legend: C = classes, G = target segments, P = predicted segments, M = ground-truth modes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dataseg.metrics.base import ImageMetric, overlap_counts
from dataseg.structures import SegmentMap, UserError, Vocabulary

AreaMode = Literal["stored", "recounted", "both"]
FIGURES = ("pq", "sq", "rq")


def match_segments(
    overlap: Tensor,
    target_labels: Tensor,
    is_crowd: Tensor,
    target_areas: Tensor,
    prediction_labels: Tensor,
    classes: int,
) -> Tensor:
    """Sum of IoU, true positives, false positives and false negatives of one image, per class.

    A pair of one class matches above IoU 0.5. The union leaves out the prediction's void pixels, not its crowd pixels.
    Crowds match nothing and miss nothing; an unmatched prediction is forgiven when more than half of it lies on void
    plus the *last* crowd of its class. A predicted segment without a pixel does not count.

    Args:
        overlap: int64 ``[G + 1, P + 1]``, last row and column void.
        target_labels: int64 ``[G]``.
        is_crowd: bool ``[G]``.
        target_areas: int64 ``[G]``.
        prediction_labels: int64 ``[P]``.

    Returns:
        float64 ``[4, C]``.

    Raises:
        ZeroDivisionError: a stated area is so small that a union is empty.
    """
    shared_GP = overlap[:-1, :-1]
    void_P = overlap[-1, :-1]
    areas_P = overlap[:, :-1].sum(0)
    union_GP = areas_P + target_areas[:, None] - shared_GP - void_P
    candidate_GP = (target_labels[:, None] == prediction_labels) & ~is_crowd[:, None] & (shared_GP > 0)
    if bool((candidate_GP & (union_GP == 0)).any()):
        raise ZeroDivisionError
    iou_GP = shared_GP.double() / union_GP.double()
    match_GP = candidate_GP & (iou_GP > 0.5)

    totals = torch.zeros(4, classes, dtype=torch.float64)
    rows, columns = match_GP.nonzero(as_tuple=True)
    totals[0].index_add_(0, target_labels[rows], iou_GP[rows, columns])
    totals[1] = torch.bincount(target_labels[rows], minlength=classes)
    missed_G = ~match_GP.any(1) & ~is_crowd
    totals[3] = torch.bincount(target_labels[missed_G], minlength=classes)

    last_crowd_C = torch.full((classes,), len(target_labels))  # the void row, which adds nothing when masked below
    crowds = is_crowd.nonzero().flatten()
    for crowd in crowds.tolist():
        last_crowd_C[target_labels[crowd]] = crowd
    crowd_row_P = last_crowd_C[prediction_labels]
    on_crowd_P = overlap[crowd_row_P, torch.arange(len(prediction_labels))]
    forgiven_P = void_P + torch.where(crowd_row_P < len(target_labels), on_crowd_P, 0)
    wrong_P = ~match_GP.any(0) & (areas_P > 0) & (2 * forgiven_P <= areas_P)
    totals[2] = torch.bincount(prediction_labels[wrong_P], minlength=classes)
    return totals


class PanopticQuality(ImageMetric):
    """PQ, SQ, RQ over all, thing and stuff classes, in [0, 1]; a class without any segment is left out of the mean.

    Keys of `compute`: ``pq sq rq``, each also with ``_things`` and ``_stuff``. With ``areas="recounted"`` they end in
    ``_recounted``; with ``areas="both"`` every figure stands twice, ending in ``_stored`` and in ``_recounted``. A
    group of classes without a segment gives NaN.

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
        self._per_class: dict[str, Tensor] = {}

    @property
    def convention(self) -> dict[str, str]:
        """What stands beside the figures."""
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
            ValueError: names data set and image: wrong size, unknown id or label, non-finite score, image given twice.
        """
        key = self._check_new(image_id)
        self._check_maps(prediction, target, image_id)
        overlap = overlap_counts(target, prediction)
        labels = target.labels.long().cpu()
        is_crowd = (
            torch.zeros(len(labels), dtype=torch.bool) if target.is_crowd is None else target.is_crowd.bool().cpu()
        )
        counted = overlap[:-1].sum(1)
        stored = counted if target.areas is None else target.areas.long().cpu()
        seen = []
        for mode in self.modes:
            areas = stored if mode == "stored" else counted
            try:
                found = match_segments(
                    overlap, labels, is_crowd, areas, prediction.labels.long().cpu(), len(self.vocabulary)
                )
            except ZeroDivisionError:
                self.fail(image_id, "a ground-truth segment states an area smaller than its pixels: correct the file")
            seen.append(found)
        self.totals += torch.stack(seen).to(self.totals.device)
        self._remember(key)

    def compute(self) -> dict[str, Tensor]:
        """Figures over all images of all ranks, float64 scalars.

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
            for name, values_C in zip(FIGURES, class_figures(mode_totals), strict=True):
                self._per_class[name + suffix] = values_C
                for group, members_C in groups.items():
                    result[f"{name}{group}{suffix}"] = values_C[members_C].nanmean()
            for name, counts_C in zip(("tp", "fp", "fn"), mode_totals[1:], strict=True):
                self._per_class[name + suffix] = counts_C
        return result

    def per_class(self) -> dict[str, Tensor]:
        """``pq sq rq tp fp fn`` (with the suffixes of `compute`), float64 ``[C]`` each; NaN where a class never occurs.

        Call it on every rank: it computes first.
        """
        self.compute()
        return dict(self._per_class)


def class_figures(totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PQ, SQ, RQ, float64 ``[C]`` each, NaN where a class never occurs, from ``[4, C]`` (see `match_segments`)."""
    iou, tp, fp, fn = totals
    denominator = tp + 0.5 * fp + 0.5 * fn  # 0 / 0 = NaN: the class never occurs
    sq = torch.where(tp > 0, iou / tp.clamp(min=1), 0.0)
    return iou / denominator, torch.where(denominator > 0, sq, torch.nan), tp / denominator

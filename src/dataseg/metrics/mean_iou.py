"""Mean IoU of semantic segmentation in the three conventions that published code uses.

Legend: C = classes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dataseg.metrics.base import ImageMetric, Ints
from dataseg.structures import VOID, SegmentMap, UserError, Vocabulary

Convention = Literal["detectron2", "mmsegmentation", "all_classes"]
AVERAGING: dict[str, str] = {
    "detectron2": "mean over the classes present in the ground truth",
    "mmsegmentation": "mean over the classes present in the ground truth or predicted on labelled pixels",
    "all_classes": "mean over every class of the vocabulary, 0 where it never occurs",
}


class MeanIoU(ImageMetric):
    """``miou``, ``mean_accuracy``, ``pixel_accuracy``, ``fwiou`` and ``coverage`` (share of pixels that have a label).

    Pixels without a ground-truth label (void, crowd) are left out altogether. A labelled pixel for which nothing is
    predicted counts as missed. Frequencies of ``fwiou`` are those of the ground truth. The conventions differ in the
    classes that the mean takes in; the mean accuracy follows detectron2 and mmsegmentation in taking the classes of
    the ground truth, under "all_classes" it takes all:

    * "detectron2" (default; its sem_seg_evaluation, hence Mask2Former, ODISE, fc-clip): classes in the ground truth;
    * "mmsegmentation" (its IoUMetric): classes in the ground truth or in the predictions;
    * "all_classes" (EoMT): every class, an absent one counts 0.

    Columns of `per_class`: ``iou`` and ``accuracy``, float64, NaN where left out of the mean; ``pixels``, int64.

    The state is one int64 matrix that adds up over ranks, plus 8 bytes an image against counting it twice.

    Args:
        vocabulary: the classes.
        dataset: name in messages.
        convention: see above.
        allow_one_class: do not refuse a ground truth of one class only, on which any prediction scores 100.
    """

    confusion: Tensor
    pixels: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        dataset: str = "",
        convention: Convention = "detectron2",
        allow_one_class: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary, dataset, **kwargs)
        if convention not in get_args(Convention):
            raise ValueError(f"convention must be one of {list(get_args(Convention))}, got {convention!r}")
        self.averaging: Convention = convention
        self.allow_one_class = allow_one_class
        classes = len(vocabulary)
        self.add_state("confusion", torch.zeros(classes, classes + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._confusion = self.confusion.clone()

    @property
    def convention(self) -> dict[str, str]:
        return {
            "metric": f"mean IoU, {self.averaging} convention",
            "averaging": AVERAGING[self.averaging],
            "crowd": "left out like void",
            "void": "pixels without a ground-truth label are left out; labelled pixels without a prediction are missed",
            "vocabulary": self.vocabulary.digest,
        }

    def update(self, prediction: SegmentMap, target: SegmentMap, image_id: str) -> None:
        """Score one image; segments of one class count together on both sides.

        Raises:
            ValueError: names dataset and image: wrong size, unknown id or label, non-finite score, image given twice.
        """
        key = self._check_new(image_id)
        overlaps = self._overlaps(prediction, target, image_id)
        rows, columns = (_with_void(segments) for segments in (target, prediction))
        row, column = rows[overlaps.target], columns[overlaps.prediction]
        labelled = row != VOID
        cell = (row * self.confusion.shape[1] + column % self.confusion.shape[1])[labelled]
        seen = np.bincount(cell, overlaps.pixels[labelled], self.confusion.numel()).astype(np.int64)
        self.confusion += torch.from_numpy(seen).view_as(self.confusion).to(self.confusion.device)
        self.pixels += target.ids.numel()
        self._remember(key)

    def compute(self) -> dict[str, Tensor]:
        """Scores over all images of all ranks, float64 scalars in [0, 1].

        Raises:
            ValueError: no image, an image scored twice, all ground truth ignored, or only one class in it.
        """
        images = self._count_images()
        self._confusion = self.confusion.cpu().clone()
        labelled = self._confusion.sum(1)
        self._refuse_nonsense(labelled, images)
        hits = self._confusion.diagonal().double()
        target_C, predicted_C = labelled.double(), self._confusion[:, :-1].sum(0).double()
        union_C = target_C + predicted_C - hits
        iou_C, accuracy_C = hits / union_C, hits / target_C  # 0 / 0 = NaN
        if self.averaging == "detectron2":
            iou_C = torch.where(target_C > 0, iou_C, torch.nan)
        elif self.averaging == "all_classes":
            iou_C, accuracy_C = iou_C.nan_to_num(0.0), accuracy_C.nan_to_num(0.0)
        self._per_class = {"iou": iou_C, "accuracy": accuracy_C, "pixels": labelled}
        return {
            "miou": iou_C.nanmean(),
            "mean_accuracy": accuracy_C.nanmean(),
            "pixel_accuracy": hits.sum() / target_C.sum(),
            "fwiou": (target_C / target_C.sum() * iou_C).nansum(),
            "coverage": labelled.sum().double() / self.pixels.cpu().double(),
        }

    def _refuse_nonsense(self, labelled: Tensor, images: int) -> None:
        present = labelled.nonzero().flatten().tolist()
        if not present:
            raise UserError(f"{self.dataset}: every pixel of the {images} image(s) is ignored; check the label values")
        if len(present) == 1 and not self.allow_one_class:
            raise UserError(
                f"{self.dataset}: the ground truth of {images} image(s) holds only the class"
                f" {self.vocabulary.names[present[0]]!r}, so that the scores say nothing; were the other values"
                " mapped to ignore? (allow_one_class=true of callbacks.Evaluation scores it anyway)"
            )

    def confusion_matrix(self) -> Tensor:
        """Pixels, int64 ``[C, C + 1]``: rows ground truth, columns prediction, the last one "nothing predicted".

        Call it on every rank: it computes first.
        """
        self.compute()
        return self._confusion


def _with_void(segments: SegmentMap) -> Ints:
    """Label of each segment, `VOID` for a crowd and, as last entry, for the id VOID."""
    labels = segments.labels.cpu().numpy()
    if segments.is_crowd is not None:
        labels = np.where(segments.is_crowd.cpu().numpy(), VOID, labels)
    return np.append(labels, VOID)

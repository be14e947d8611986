"""Class scores of one image from one or several views of it, at the original size, strip by strip.

Shape legend: ``Q`` = queries, ``C`` = classes, ``h, w`` = rows and columns of the mask logits, ``H, W`` = rows and
columns of the original image, ``r, c`` = rows of a strip of it and the columns that a view sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dataseg.inference.mask_resampling import MAX_STRIP_ROWS, OriginalMasks, strip_rows
from dataseg.merge import MergeMode, merge_predictions
from dataseg.structures.geometry import ImageGeometry


@dataclass(frozen=True)
class View:
    """One pass of the network over an image, all of it or a window.

    Attributes:
        geometry: how the image came into the network, and its original size.
        propose: runs the network: class logits ``[Q, C + 1]``, background last, and mask logits ``[Q, h, w]``.
            Called once, when the first row that the view sees is due; its result is dropped after the last.
        weights: of the view's scores in each row and each column of the original image, float ``[H]`` and ``[W]``;
            None = 1.
    """

    geometry: ImageGeometry
    propose: Callable[[], tuple[Tensor, Tensor]]
    weights: tuple[Tensor, Tensor] | None = None


def merged_strips(
    views: Sequence[View], merge: MergeMode, resize: Literal["masks", "scores"], strip_elements: int
) -> Iterator[tuple[slice, Tensor]]:
    """Weighted sum of the views' merged score maps, strip by strip.

    Args:
        views: of one image; together they see every pixel, and the first one sees row 0.
        merge: see `merge_predictions`.
        resize: what is brought to the original size; see `dataseg.inference.postprocess.SemanticOptions`. Merged
            scores are kept whole at the size of the network's input, ``[C, padded]``.
        strip_elements: bound on the numbers in a strip's intermediates.

    Yields:
        Rows, and float32 ``[C, r, W]``.
    """
    height, width = views[0].geometry.output
    view_scores = {"masks": _ViewScores, "scores": _ResizedScores}[resize]
    scores = {0: view_scores(views[0], merge)}  # of the views that are in use
    queries, classes = scores[0].probs_QC.shape
    maps = min(len(views), 2)  # a view's own merged map [C, r, W] and, of several, their sum
    step = strip_rows(queries * width, strip_elements * queries // (queries + maps * classes))
    for start in range(0, height, step):
        strip = slice(start, min(start + step, height))
        total_CrW: Tensor | None = None
        for k, view in enumerate(views):
            seen = slice(max(strip.start, view.geometry.rows.start), min(strip.stop, view.geometry.rows.stop))
            if seen.start < seen.stop:
                if k not in scores:
                    scores[k] = view_scores(view, merge)
                total_CrW = scores[k].add_to(total_CrW, seen, strip)
            if view.geometry.rows.stop <= strip.stop:
                scores.pop(k, None)
        assert total_CrW is not None, "the views leave out rows"
        yield strip, total_CrW


class _ViewScores:
    """Merged scores of one view, by rows of the original image."""

    def __init__(self, view: View, merge: MergeMode) -> None:
        class_logits_QC, mask_logits_Qhw = view.propose()
        self.probs_QC = class_logits_QC.float().softmax(-1)[:, :-1]
        self._masks = OriginalMasks(mask_logits_Qhw, view.geometry)
        self._view = view
        self._merge: MergeMode = merge

    def add_to(self, total_CrW: Tensor | None, seen: slice, strip: slice) -> Tensor:
        """Add what the view sees of a strip to the sum so far; None = nothing yet."""
        part_Crc = self._weighted(seen)
        columns, whole = self._view.geometry.columns, (strip.stop - strip.start, self._view.geometry.output[1])
        if total_CrW is None and part_Crc.shape[1:] == whole:
            return part_Crc
        if total_CrW is None:
            total_CrW = part_Crc.new_zeros(len(part_Crc), *whole)
        total_CrW[:, seen.start - strip.start : seen.stop - strip.start, columns] += part_Crc
        return total_CrW

    def _weighted(self, rows: slice) -> Tensor:
        """Float32 ``[C, r, c]``."""
        masks_Qrc = self._masks[rows].sigmoid()
        if self._view.weights is not None:
            row_weights_H, column_weights_W = self._view.weights
            masks_Qrc *= row_weights_H[rows, None] * column_weights_W[self._view.geometry.columns]
        with torch.autocast(device_type=masks_Qrc.device.type, enabled=False):
            return merge_predictions(self.probs_QC, masks_Qrc, self._merge)


class _ResizedScores(_ViewScores):
    """As `_ViewScores`, merged at the size of the network's input and resized afterwards."""

    def __init__(self, view: View, merge: MergeMode) -> None:
        super().__init__(view, merge)
        padded = view.geometry.padded
        masks = OriginalMasks(self._masks.logits_Qhw, ImageGeometry(padded, padded))
        parts = []
        for start in range(0, padded[0], MAX_STRIP_ROWS):
            probs_QrW = masks[slice(start, min(start + MAX_STRIP_ROWS, padded[0]))].sigmoid()
            with torch.autocast(device_type=probs_QrW.device.type, enabled=False):
                parts.append(merge_predictions(self.probs_QC, probs_QrW, merge))
        self._masks = OriginalMasks(torch.cat(parts, 1), view.geometry)

    def _weighted(self, rows: slice) -> Tensor:
        scores_Crc = self._masks[rows]
        if self._view.weights is None:
            return scores_Crc
        row_weights_H, column_weights_W = self._view.weights
        return scores_Crc * (row_weights_H[rows, None] * column_weights_W[self._view.geometry.columns])

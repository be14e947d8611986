"""What every metric of the kit shares: one image at a time, each image once, errors that name image and data set.

Legend: C = classes, G = target segments of an image, P = predicted segments of an image, H, W = rows, columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torchmetrics import Metric

from dataseg.structures import VOID, SegmentMap, UserError, Vocabulary

DENSE_BINS = 1 << 22
"""Up to this many (target, predicted) pairs an image is counted in one dense histogram, beyond by sorting."""


def image_key(image_id: str) -> int:
    """A 63-bit number that stands for an image id in a metric's state, equal on every rank."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") >> 1


def overlap_counts(target: SegmentMap, prediction: SegmentMap) -> Tensor:
    """Pixels shared by each target and each predicted segment: one histogram of two id maps.

    Both maps must have one size and ids in ``-1..K-1``.

    Returns:
        int64 ``[G + 1, P + 1]`` on the CPU; the last row and the last column hold the pixels without a segment.
    """
    rows, columns = len(target) + 1, len(prediction) + 1
    dtype = torch.int32 if rows * columns < 2**31 else torch.int64
    target_HW = target.ids.to(prediction.ids.device, dtype)
    pair_HW = (target_HW * columns).add_(prediction.ids.to(dtype)).add_(columns + 1)  # void, -1, is row and column 0
    if rows * columns <= DENSE_BINS:
        counts = torch.bincount(pair_HW.flatten(), minlength=rows * columns).cpu()
    else:
        values, found = torch.unique(pair_HW, return_counts=True)
        counts = torch.zeros(rows * columns, dtype=torch.int64)
        counts[values.long().cpu()] = found.cpu()
    return counts.view(rows, columns).roll((-1, -1), (0, 1))  # void moves to the end


class ImageMetric(Metric):
    """Base of the metrics: ``update(prediction, target, image_id)`` takes one image.

    Args:
        vocabulary: the classes; labels are ``0..C-1``.
        dataset: name of the data set in messages.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, vocabulary: Vocabulary, dataset: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary = vocabulary
        self.dataset = dataset or vocabulary.name
        self._seen: set[int] = set()
        self._start_list_state("image_keys", torch.int64)

    def _start_list_state(self, name: str, dtype: torch.dtype) -> None:
        """A list of 1-D tensors, concatenated over ranks; a rank without an image holds one empty tensor."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._list_states = {**getattr(self, "_list_states", {}), name: dtype}
        self._append(name, torch.empty(0, dtype=dtype))

    def _append(self, name: str, values: Tensor) -> None:
        state: list[Tensor] = getattr(self, name)
        state.append(values.to(self.device))

    def reset(self) -> None:
        """Forget every image."""
        super().reset()
        self._seen.clear()
        for name, dtype in self._list_states.items():
            setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])

    def _list_state(self, name: str) -> Tensor:
        """The state's values so far, 1-D: of this rank before, of all ranks after synchronisation."""
        value: Tensor | list[Tensor] = getattr(self, name)
        return value if isinstance(value, Tensor) else torch.cat(value)

    def fail(self, image_id: str, problem: str) -> NoReturn:
        raise UserError(f"{self.dataset}, image {image_id}: {problem}")

    def _check_new(self, image_id: str) -> int:
        key = image_key(image_id)
        if key in self._seen:
            self.fail(image_id, f"was given to {type(self).__name__} twice; leave samples with is_padding out")
        return key

    def _remember(self, key: int) -> None:
        """Called last in an update, so that a refused image leaves no trace."""
        self._seen.add(key)
        self._append("image_keys", torch.tensor([key]))

    def _check_labels(self, labels: Tensor, whose: str, image_id: str) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.vocabulary):
            wrong = sorted({x for x in labels.tolist() if not 0 <= x < len(self.vocabulary)})
            self.fail(
                image_id,
                f"{whose} has the labels {wrong[:5]}; vocabulary {self.vocabulary.name!r} knows"
                f" 0..{len(self.vocabulary) - 1} (labels are positions in the vocabulary, not official ids)",
            )

    def _check_scores(self, scores: Tensor | None, image_id: str) -> None:
        if scores is not None and not bool(torch.isfinite(scores).all()):
            bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
            self.fail(image_id, f"the scores of predictions {bad[:5]} are not finite numbers")

    def _check_map(self, segments: SegmentMap, whose: str, image_id: str) -> None:
        if not isinstance(segments, SegmentMap):
            self.fail(image_id, f"{type(self).__name__} takes {whose} as SegmentMap, got {type(segments).__name__}")
        self._check_labels(segments.labels, whose, image_id)
        if segments.ids.numel() == 0:
            self.fail(image_id, f"{whose} has no pixel (size {list(segments.size)})")
        low, high = (int(x) for x in segments.ids.aminmax())
        if low < VOID or high >= len(segments):
            wrong = low if low < VOID else high
            self.fail(
                image_id, f"{whose} has the segment id {wrong}; its {len(segments)} labels allow -1 (void) and up"
            )

    def _check_maps(self, prediction: SegmentMap, target: SegmentMap, image_id: str) -> None:
        self._check_map(target, "the ground truth", image_id)
        self._check_map(prediction, "the prediction", image_id)
        self._check_scores(prediction.scores, image_id)
        self._check_size(prediction.size, target.size, image_id)

    def _check_size(self, prediction: Sequence[int], target: Sequence[int], image_id: str) -> None:
        if tuple(prediction) != tuple(target):
            self.fail(
                image_id,
                f"the prediction is {prediction[0]} x {prediction[1]} (rows x columns), the ground truth"
                f" {target[0]} x {target[1]}; metrics are taken at the image's original size",
            )

    def _count_images(self) -> int:
        """Images of all ranks; an image that two ranks scored is an error."""
        keys = self._list_state("image_keys")
        if len(keys) == 0:
            raise UserError(f"{self.dataset}: {type(self).__name__} was asked for a result before any image")
        twice = len(keys) - len(set(keys.tolist()))
        if twice:
            raise UserError(f"{self.dataset}: {twice} image(s) were scored on more than one rank; leave padding out")
        return len(keys)

"""What every metric of the kit shares: one image at a time, each image once, errors that name image and dataset.

Legend: C = classes, N = pairs of a target and a predicted segment (or void) that share pixels.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from dataseg.structures import VOID, SegmentMap, UserError, Vocabulary

Ints = NDArray[np.int64]

DENSE_BINS = 1 << 20
"""Up to this many (target, predicted) pairs are counted in one histogram, beyond by sorting."""


def image_key(image_id: str) -> int:
    """A 63-bit number that stands for an image id in a metric's state, equal on every rank."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big") >> 1


@dataclass
class Overlaps:
    """Pixels that each target and each predicted segment of an image share, N pairs that share any.

    Attributes:
        target: int64 ``[N]``, row of the target's labels, or `VOID`.
        prediction: int64 ``[N]``, row of the prediction's labels, or `VOID`.
        pixels: int64 ``[N]``, > 0.
    """

    target: Ints
    prediction: Ints
    pixels: Ints

    @classmethod
    def of(cls, target: SegmentMap, prediction: SegmentMap) -> Self:
        """Intersect two id maps of one size; the prediction's device does the work.

        Raises:
            ValueError: an id is neither VOID nor a row of the labels.
        """
        lengths = None
        if prediction.ids.is_cpu:
            ids, lengths = _runs(target.ids.cpu().numpy().ravel(), prediction.ids.numpy().ravel())
        if lengths is None:
            ids = [target.ids.to(prediction.ids.device).flatten(), prediction.ids.flatten()]
        for segments, values, whose in zip((target, prediction), ids, ("ground truth", "prediction"), strict=True):
            _check_ids(values, len(segments), whose)
        columns = len(prediction) + 1
        bins = (len(target) + 1) * columns
        dtype = torch.int16 if bins < 2**15 else torch.int32 if bins < 2**31 else torch.int64  # narrow is fast
        pair = (ids[0].to(dtype) * columns).add_(ids[1].to(dtype)).add_(columns + 1)  # VOID, -1, counts as 0
        found, pixels = _count(pair, lengths, bins)
        return cls(found // columns - 1, found % columns - 1, pixels)


def _runs(target: NDArray[Any], prediction: NDArray[Any]) -> tuple[list[Tensor], Tensor | None]:
    """Ids at the end of each run of pixels that agree in both maps, and the runs' lengths.

    Maps of segments consist of such runs, so that little is left to do; without them the lengths are None.
    """
    is_end = np.empty(len(target), dtype=bool)
    np.not_equal(target[1:], target[:-1], out=is_end[:-1])
    is_end[:-1] |= prediction[1:] != prediction[:-1]
    is_end[-1] = True
    ends = np.flatnonzero(is_end)
    if 8 * len(ends) > len(target):
        return [], None
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[0] += 1
    return [torch.from_numpy(target[ends]), torch.from_numpy(prediction[ends])], torch.from_numpy(lengths)


def _check_ids(ids: Tensor, count: int, whose: str) -> None:
    low, high = (int(x) for x in ids.aminmax())
    if low < VOID or high >= count:
        wrong = low if low < VOID else high
        raise ValueError(
            f"the {whose} has the segment id {wrong}; its {count} labels allow -1 (void) and 0..{count - 1}"
        )


def _count(values: Tensor, lengths: Tensor | None, bins: int) -> tuple[Ints, Ints]:
    """The values that occur, ascending, and how often, each counting as many times as its length says."""
    if bins > DENSE_BINS:
        found, inverse = torch.unique(values, return_inverse=True)
        counts = torch.bincount(inverse, lengths)
        return found.cpu().numpy().astype(np.int64), counts.cpu().numpy().astype(np.int64)
    counts = torch.bincount(values, lengths, bins)  # float64 with lengths: sums of pixels are exact
    dense = counts.cpu().numpy().astype(np.int64)
    occurring = np.flatnonzero(dense)
    return occurring, dense[occurring]


class ImageMetric(Metric):
    """Base of the metrics: ``update(prediction, target, image_id)`` takes one image.

    Args:
        vocabulary: the classes; labels are ``0..C-1``.
        dataset: name of the dataset in messages.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, vocabulary: Vocabulary, dataset: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocabulary = vocabulary
        self.dataset = dataset or vocabulary.name
        self._seen: set[int] = set()
        self._per_class: dict[str, Tensor] = {}
        self._start_list_state("image_keys", torch.int64)

    @property
    @abstractmethod
    def convention(self) -> dict[str, str]:
        """How the scores are counted, in words, by subject."""

    @property
    def suffix(self) -> str:
        """Ends the names of the primary score and its column, where a name has to say how they were counted."""
        return ""

    def per_class(self) -> dict[str, Tensor]:
        """Scores and counts of each class by column, ``[C]`` each; see the class. NaN where a class never occurs.

        Call it on every rank: it computes first.
        """
        self.compute()
        return dict(self._per_class)

    def confusion_matrix(self) -> Tensor | None:
        """Pixels by class of ground truth and prediction, where the metric counts them. Call it on every rank."""
        return None

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
        if len(labels) == 0:
            return
        low, high = labels.aminmax()
        if int(low) < 0 or int(high) >= len(self.vocabulary):
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

    def _overlaps(self, prediction: SegmentMap, target: SegmentMap, image_id: str) -> Overlaps:
        """Check both maps and intersect them."""
        self._check_map(target, "the ground truth", image_id)
        self._check_map(prediction, "the prediction", image_id)
        self._check_scores(prediction.scores, image_id)
        self._check_size(prediction.size, target.size, image_id)
        try:
            return Overlaps.of(target, prediction)
        except ValueError as error:
            self.fail(image_id, str(error))

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

"""A reader's samples as torch datasets: augmented for training, one by one for evaluation."""

from __future__ import annotations

from typing import Literal

from torch.utils.data import Dataset

from data_modules.formats.reader import Reader
from data_modules.transforms import TrainTransform
from dataseg.inference.resize import ResizeShortestEdge, to_tensor
from dataseg.structures import UNREADABLE, Sample, UserError

OnError = Literal["stop", "skip"]
"""What becomes of a training sample that cannot be read."""


MAX_REPLACEMENTS = 20
"""Unreadable samples in a row that are replaced; more mean that the dataset as a whole cannot be read."""


class TrainDataset(Dataset[Sample]):
    """A reader's samples, augmented; indexed by (index, seed).

    Args:
        on_error: "skip" takes the next readable sample (by index) in the place of one that cannot be read, with the
            same seed, so that the run stays a function of its seed. It is counted under "replaced", and under
            `UNREADABLE` and the message.
    """

    def __init__(self, reader: Reader, transform: TrainTransform, on_error: OnError = "stop") -> None:
        self.reader = reader
        self.transform = transform
        self.on_error = on_error

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, seed = key
        messages: list[str] = []
        while True:
            try:
                sample = self._sample(index, seed)
            except UserError as error:
                if self.on_error == "stop":
                    raise
                messages.append(str(error))
                if len(messages) > min(MAX_REPLACEMENTS, len(self.reader) - 1):
                    raise UserError(f"{len(messages)} samples in a row cannot be read, the last: {error}") from error
                index = (index + 1) % len(self.reader)
            else:
                if messages:
                    sample.counts |= {"replaced": 1, **{f"{UNREADABLE}{message}": 1 for message in messages}}
                return sample

    def _sample(self, index: int, seed: int) -> Sample:
        encoded, target = self.reader.open(index)
        image = encoded.decode(self.transform.whole_size(encoded.size, seed))
        pixels, moved, counts = self.transform(image, target, seed, encoded.size)
        return Sample(
            image=pixels,
            target=moved,
            image_id=self.reader.image_id(index),
            original_size=encoded.size,
            seed=seed,
            counts=counts,
        )


class EvaluationDataset(Dataset[Sample]):
    """A reader's samples resized for evaluation, targets untouched; indexed by (index, is padding)."""

    def __init__(self, reader: Reader, resize: ResizeShortestEdge) -> None:
        self.reader = reader
        self.resize = resize

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, bool]) -> Sample:
        index, is_padding = key
        image, target = self.reader.load(index)
        return Sample(
            image=to_tensor(self.resize.resize(image)),
            target=target,
            image_id=self.reader.image_id(index),
            original_size=(image.shape[0], image.shape[1]),
            is_padding=is_padding,
        )

"""Training batches of one data set as an endless stream that follows the order, and evaluation samples by rank."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from data_modules.formats.base import Reader
from data_modules.order import blocks, dataset_of, position_at, sample_of
from data_modules.transforms import EvaluationTransform, TrainTransform
from dataseg.structures import UNREADABLE, Batch, Sample, Task, UserError

MAX_RAISE = 8
"""Largest factor by which mixed batches may be raised unasked."""


@dataclass(frozen=True)
class Schedule:
    """Which samples each micro-batch of each rank takes: pure arithmetic over `data_modules.order`.

    Attributes:
        seed: of the whole order.
        ratios: sampling ratios above 0.
        batch_size: samples per optimisation step, over all ranks and accumulated micro-batches. With ``mixed`` it is
            raised to the next number that the ratios come out even at on every rank and micro-batch.
        world_size: ranks.
        rank: this one.
        accumulate: micro-batches per optimisation step.
        mixed: every batch holds all data sets.
        shares: samples of an optimisation step by data set.
    """

    seed: int
    ratios: dict[str, float]
    batch_size: int
    world_size: int = 1
    rank: int = 0
    accumulate: int = 1
    mixed: bool = False
    shares: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulate
        if self.batch_size < 1:
            raise UserError(f"batch_size must be positive, got {self.batch_size}")
        if not self.mixed:
            if self.batch_size % parts:
                raise UserError(
                    f"batch_size={self.batch_size} must be a multiple of {parts} = {self.world_size} ranks x "
                    f"{self.accumulate} accumulated batches; it counts the samples of one optimisation step"
                )
            object.__setattr__(self, "shares", dict.fromkeys(self.ratios, self.batch_size))
            return
        quotas = blocks(self.ratios)
        unit = sum(quotas.values()) * parts
        rounds = max(1, math.ceil(self.batch_size / unit))
        if rounds * unit > MAX_RAISE * self.batch_size:
            raise UserError(
                f"mixed batches of the ratios {quotas} on {self.world_size} ranks x {self.accumulate} accumulated "
                f"batches hold a multiple of {unit} samples, but batch_size={self.batch_size}: set that, use rounder "
                "ratios or accumulate less"
            )
        object.__setattr__(self, "batch_size", rounds * unit)
        object.__setattr__(self, "shares", {name: rounds * parts * quotas[name] for name in self.ratios})

    def micro_batch_size(self, dataset: str) -> int:
        """Samples of one batch on one rank."""
        return self.shares[dataset] // (self.world_size * self.accumulate)

    def is_on(self, dataset: str, micro_step: int) -> bool:
        """Whether the data set has a batch at this micro-step."""
        return self.mixed or dataset_of(self.seed, micro_step // self.accumulate, self.ratios)[0] == dataset

    def batches(self, dataset: str, n: int, micro_step: int) -> Iterator[list[tuple[int, int]]]:
        """This rank's batches of ``n`` images from ``micro_step`` on, each as (index, sample seed) pairs; endless."""
        size = self.micro_batch_size(dataset)
        step, micro = divmod(micro_step, self.accumulate)
        first = step if self.mixed else position_at(self.seed, step, self.ratios, dataset)
        if not self.is_on(dataset, micro_step):
            micro = 0  # its next batch is the first of a later step
        for visit in itertools.count(first):
            for part in range(micro, self.accumulate):
                start = visit * self.shares[dataset] + (part * self.world_size + self.rank) * size
                yield [sample_of(self.seed, dataset, p, n) for p in range(start, start + size)]
            micro = 0


OnError = Literal["stop", "skip"]
"""What becomes of a training sample that cannot be read."""

MAX_REPLACEMENTS = 20
"""Unreadable samples in a row that are replaced; more mean that the data set as a whole cannot be read."""


class TrainView(Dataset[Sample]):
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
        size: tuple[int, int] | None = None

        def shrink(found: tuple[int, int]) -> int:
            nonlocal size
            size = found
            return self.transform.shrink(found, seed)

        image, target = self.reader.load(index, shrink)
        size = size or (image.shape[0], image.shape[1])
        pixels, moved, counts = self.transform(image, target, seed, size)
        return Sample(
            image=pixels,
            target=moved,
            image_id=self.reader.image_id(index),
            original_size=size,
            seed=seed,
            counts=counts,
        )


class _Batches(Sampler[list[tuple[int, int]]]):
    """Batch sampler that can be told where to start."""

    def __init__(self, batches: Callable[[int], Iterator[list[tuple[int, int]]]]) -> None:
        self.batches = batches
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches(self.start)


class Stream:
    """Endless iterable over one data set: its `Batch` at its own micro-steps, None at the others.

    Args:
        dataset: name in the configuration.
        task: MERGE rule of its targets.
        schedule: the order.
        micro_step: asked at each start of iteration: where the run is. Nothing else is remembered, so a resumed run
            needs no saved loader state.
        num_workers: loading processes of this stream; 0 = load in the training process.
    """

    def __init__(
        self,
        dataset: str,
        task: Task,
        view: TrainView,
        schedule: Schedule,
        micro_step: Callable[[], int],
        num_workers: int,
        prefetch_factor: int,
    ) -> None:
        self.dataset = dataset
        self.schedule = schedule
        self.micro_step = micro_step
        self._sampler = _Batches(partial(schedule.batches, dataset, len(view.reader)))
        self._batches: Iterator[Any] | None = None
        self._loader: DataLoader[Sample] | None = DataLoader(
            view,
            batch_sampler=self._sampler,
            collate_fn=partial(Batch.collate, dataset=dataset, task=task, divisor=1),
            **worker_options(num_workers, prefetch_factor),
        )

    def __iter__(self) -> Iterator[Batch | None]:
        first = self._sampler.start = self.micro_step()
        self._batches = None
        for step in itertools.count(first):
            yield self._next() if self.schedule.is_on(self.dataset, step) else None

    def _next(self) -> Batch:
        if self._batches is None:
            if self._loader is None:
                raise RuntimeError(f"the stream of {self.dataset!r} is closed")
            self._batches = iter(self._loader)
        batch: Batch = next(self._batches)
        return batch

    def close(self) -> None:
        """End the loading processes. Left to the garbage collector, each would keep it waiting for five seconds."""
        self._batches = None
        self._loader = None


def worker_options(num_workers: int, prefetch_factor: int) -> dict[str, Any]:
    """Keyword arguments of a `DataLoader` that depend on the number of its workers."""
    options: dict[str, Any] = {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    if num_workers:
        options |= {"persistent_workers": True, "prefetch_factor": prefetch_factor, "worker_init_fn": start_worker}
    return options


def start_worker(worker: int) -> None:
    """Start of a loading process: OpenCV and PyTorch with one thread each, as there is one process a core.

    Requests to stop are the training process's to answer, and it needs its data until it has.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def share_out(num_workers: int, ratios: dict[str, float]) -> dict[str, int]:
    """Loading processes of each data set, in proportion to its ratio, at least one each; 0 stays 0 for all."""
    if num_workers <= 0:
        return dict.fromkeys(ratios, 0)
    total = sum(ratios.values())
    exact = {name: num_workers * ratio / total for name, ratio in ratios.items()}
    shares = {name: max(1, math.floor(value)) for name, value in exact.items()}
    by_remainder = sorted(ratios, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: max(0, num_workers - sum(shares.values()))]:
        shares[name] += 1
    return shares


class EvaluationView(Dataset[Sample]):
    """A reader's samples resized for evaluation, targets untouched; indexed by (index, is padding)."""

    def __init__(self, reader: Reader, transform: EvaluationTransform) -> None:
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, key: tuple[int, bool]) -> Sample:
        index, is_padding = key
        image, target = self.reader.load(index)
        return Sample(
            image=self.transform(image),
            target=target,
            image_id=self.reader.image_id(index),
            original_size=(image.shape[0], image.shape[1]),
            is_padding=is_padding,
        )


class RankShare(DistributedSampler[Any]):
    """Every ``world_size``-th image in order; the last round is filled up with marked repeats of the first image.

    A `DistributedSampler`, so that Lightning does not put its own in place, whose repeats nobody could tell.
    """

    def __init__(self, n: int, world_size: int, rank: int) -> None:
        super().__init__(range(n), num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        for round_ in range(len(self)):
            index = round_ * self.num_replicas + self.rank
            yield (index, False) if index < self.n else (0, True)


def evaluation_loader(
    dataset: str,
    reader: Reader,
    transform: EvaluationTransform,
    batch_size: int,
    world_size: int,
    rank: int,
    num_workers: int,
    prefetch_factor: int,
) -> DataLoader[Sample]:
    """This rank's share of one evaluation set, in a fixed order."""
    return DataLoader(
        EvaluationView(reader, transform),
        batch_size=batch_size,
        sampler=RankShare(len(reader), world_size, rank),
        collate_fn=partial(Batch.collate, dataset=dataset, task=reader.tasks[0]),
        **worker_options(num_workers, prefetch_factor),
    )


def names_of(readers: Sequence[str]) -> str:
    """For messages."""
    return ", ".join(sorted(readers)) or "none"

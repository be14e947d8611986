"""Training batches as an endless stream that follows the sampling order, and evaluation samples by rank."""

from __future__ import annotations

import atexit
import itertools
import multiprocessing.queues
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from data_modules.datasets import EvaluationDataset, TrainDataset
from data_modules.formats.reader import Reader
from data_modules.sampling import Schedule
from dataseg.inference.resize import ResizeShortestEdge
from dataseg.structures import Batch, Sample, Task
from dataseg.structures.segments import outline


class _Batches(Sampler[list[tuple[int, int]]]):
    """Batch sampler that can be told where to start."""

    def __init__(self, batches: Callable[[int], Iterator[list[tuple[int, int]]]]) -> None:
        self.batches = batches
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches(self.start)


class Stream:
    """Endless iterable over one dataset: its `Batch` at its own micro-steps, None at the others.

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
        view: TrainDataset,
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
            collate_fn=partial(Batch.collate, dataset=dataset, task=task, size=view.transform.padded_size),
            **worker_options(num_workers, prefetch_factor),
        )

    def __iter__(self) -> Iterator[Batch | None]:
        first = self._sampler.start = self.micro_step()
        self._batches = None
        ahead: list[Batch] = []
        for step in itertools.count(first):
            if not self.schedule.is_on(self.dataset, step):
                yield None
                continue
            if not ahead:
                ahead = self._whole_step(step)
            yield ahead.pop(0)

    def _whole_step(self, micro_step: int) -> list[Batch]:
        """The batches from a micro-step to the end of its optimisation step; each knows the targets of all of them."""
        batches = [self._next() for _ in range(self.schedule.accumulate - micro_step % self.schedule.accumulate)]
        if self.schedule.accumulate > 1:
            targets = [outline(target) for batch in batches for target in batch.targets]
            batches = [replace(batch, step_targets=targets) for batch in batches]
        return batches

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
        atexit.unregister(end_workers)  # once, after multiprocessing's own, which waits for them
        atexit.register(end_workers)
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
    # a sample that cannot be sent, mostly for want of memory, is left out by default, and waited for without end
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]
    # Python waits without end for a thread that finds no memory to begin with
    threading.Thread.start = _start_in_time  # type: ignore[method-assign, assignment]


START_SECONDS = 60
_start = threading.Thread.start


def _start_in_time(thread: threading.Thread) -> None:
    """Start a thread of a loading process, or end the process by SIGALRM."""
    signal.alarm(START_SECONDS)
    try:
        _start(thread)
    finally:
        signal.alarm(0)


def _give_up(error: BaseException, sample: object) -> None:
    """End the loading process, even if no memory is left to tell why; the training process misses it."""
    try:
        traceback.print_exception(error)
    finally:
        os._exit(1)


def end_workers(patience: float = 1.0) -> None:
    """At the end of the training process: end the child processes that multiprocessing would wait for.

    It sends them SIGTERM, which `start_worker` ignores, and waits without limit. Those of a loader that an exception
    or another exit has left open have not been told otherwise.
    """
    children = [child for child in multiprocessing.active_children() if child.daemon]
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler calls their end an error
    for child in children:
        child.terminate()
    until = time.monotonic() + patience
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        if child.is_alive():
            child.kill()


class RankShare(DistributedSampler[Any]):
    """Every ``world_size``-th of some images in order; the last round is filled up with marked repeats of the first.

    A `DistributedSampler`, so that Lightning does not put its own in place, whose repeats nobody could tell.
    """

    def __init__(self, images: Sequence[int], world_size: int, rank: int) -> None:
        super().__init__(images, num_replicas=world_size, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.images = images

    def __iter__(self) -> Iterator[Any]:
        for round_ in range(len(self)):
            index = round_ * self.num_replicas + self.rank
            yield (self.images[index], False) if index < len(self.images) else (self.images[0], True)


def evaluation_loader(
    dataset: str,
    reader: Reader,
    resize: ResizeShortestEdge,
    batch_size: int,
    world_size: int,
    rank: int,
    num_workers: int,
    prefetch_factor: int,
    at_most: int | None = None,
) -> DataLoader[Sample]:
    """This rank's share of one evaluation set, in a fixed order.

    Args:
        at_most: images to take; None = all. Those whose ids have the smallest hashes: the same in every run, whatever
            order the files have.
    """
    images: Sequence[int] = range(len(reader))
    if at_most is not None and at_most < len(reader):
        images = sorted(sorted(images, key=lambda i: sha256(reader.image_id(i).encode()).digest())[:at_most])
    return DataLoader(
        EvaluationDataset(reader, resize),
        batch_size=batch_size,
        sampler=RankShare(images, world_size, rank),
        collate_fn=partial(Batch.collate, dataset=dataset, task=reader.tasks[0]),
        **worker_options(num_workers, prefetch_factor),
    )


def names_of(readers: Sequence[str]) -> str:
    """For messages."""
    return ", ".join(sorted(readers)) or "none"

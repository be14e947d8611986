"""Runs the jobs of a suite, several at a time, and goes on where it was stopped.

What is common to all places where runs are computed: what is done already, progress, failures, the report at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dataseg.experiments.jobs import OUTPUT, Job
from dataseg.experiments.suite import Suite
from dataseg.structures import UserError

_POLL = 1.0  # seconds
_GRACE = 60.0  # seconds that a run has to save and stop


def default_parallel() -> int:
    """Runs at a time: one with GPUs, as it takes all of them; else one for each of the first four cores."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


class Place(Protocol):
    """Where jobs are computed.

    Attributes:
        about: of how many run at a time, for people.
        at_once: jobs that it takes in hand at a time.
    """

    about: str
    at_once: int

    def take(self, job: Job) -> str | None:
        """Reserve a job; else who has it in hand, and it is asked for again later.

        Raises:
            UserError: it cannot be computed.
        """

    def start(self, jobs: Sequence[Job]) -> None:
        """Start jobs that were taken."""

    def end_of(self, job: Job) -> str | None:
        """How a started job has ended, for people; None while it goes on."""

    def stop(self) -> str:
        """Ctrl-C: returns what becomes of the jobs that go on, for people."""


@dataclass
class Runner:
    """Runs jobs; one that fails is reported, and the others go on.

    Attributes:
        suite: for the scores that are shown.
        place: where they are computed.
        failed: jobs that ended without their last evaluation, and why.
    """

    suite: Suite
    place: Place
    console: Console = field(default_factory=Console)
    failed: dict[Job, str] = field(default_factory=dict)
    _done: set[Job] = field(default_factory=set)
    _running: dict[Job, float] = field(default_factory=dict)  # and when each was started
    _told: set[Job] = field(default_factory=set)  # that others have it in hand
    _begun: float = 0.0
    _ended: int = 0  # steps of the jobs that this runner has brought to an end

    def run(self, jobs: Sequence[Job]) -> bool:
        """Do what is not done yet.

        Returns:
            whether all are done.
        """
        self._begun = time.monotonic()
        self._done = {job for job in jobs if job.is_done()}
        waiting = [job for job in jobs if job not in self._done]
        self.console.print(
            f"{self.suite.name}: {len(jobs)} runs, {len(self._done)} done before, {len(waiting)} to do,"
            f" {self.place.about}"
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with _stop_on_sigterm(), Progress(*columns, console=self.console, transient=True) as bars:
            overall = bars.add_task(self.suite.name, total=sum(job.steps for job in jobs), note="")
            tasks: dict[Job, TaskID] = {}
            try:
                while waiting or self._running:
                    waiting = self._start(waiting)
                    self._show(bars, overall, tasks, jobs)
                    time.sleep(_POLL)
                    self._settle()
            except KeyboardInterrupt:
                self.console.print("stopping: each run saves where it is")
                self.console.print(self.place.stop())
                raise
        self._report(jobs)
        return len(self._done) == len(jobs)

    def _start(self, waiting: list[Job]) -> list[Job]:
        """Start as many as there is room for; returns those that still wait."""
        ready: list[Job] = []
        later: list[Job] = []
        for number, job in enumerate(waiting):
            if len(self._running) + len(ready) >= self.place.at_once:
                later += waiting[number:]
                break
            try:
                if self._prepare(job):
                    ready.append(job)
                elif job not in self._done:
                    later.append(job)
            except (OSError, UserError) as error:  # of this job; the others may be well
                self._fail(job, str(error))
        if ready:
            self.place.start(ready)
            self._running |= dict.fromkeys(ready, time.monotonic())
        return later

    def _prepare(self, job: Job) -> bool:
        """Whether a job can be started; if not, it is done, or others have it in hand."""
        job.folder.mkdir(parents=True, exist_ok=True)
        holder = self.place.take(job)
        if holder is not None:
            if job not in self._told:
                self.console.print(f"{job.name}: {holder}; waiting for it")
            self._told.add(job)
            return False
        if job.is_done():  # by those who had it in hand
            self._done.add(job)
            return False
        moved = job.clear()
        if moved is not None:
            self.console.print(f"{job.name}: asked for otherwise before; those results are now in {moved}")
        return True

    def _settle(self) -> None:
        for job, begun in list(self._running.items()):
            how = self.place.end_of(job)
            if how is None:
                continue
            del self._running[job]
            if job.is_done():
                self._done.add(job)
                self._ended += job.steps
                self.console.print(f"{job.name}: {time.monotonic() - begun:.0f} s, {job.scores(self.suite)}")
            else:
                self._fail(job, f"{how}, {job.last_error()}")

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job] = why
        self.console.print(f"{job.name}: FAILED, {why} ({job.folder / OUTPUT})", style="red", markup=False)

    # ---------------------------------------------------------------------------------------------- what is seen

    def _show(self, bars: Progress, overall: TaskID, tasks: dict[Job, TaskID], jobs: Sequence[Job]) -> None:
        for job in set(tasks) - set(self._running):
            bars.remove_task(tasks.pop(job))
        done = {job: job.steps_done() for job in self._running}
        for job in self._running:
            if job not in tasks:
                tasks[job] = bars.add_task(job.name, total=job.steps, note="")
            bars.update(tasks[job], completed=done[job], note=f"{done[job]} of {job.steps} steps")
        completed = sum(job.steps for job in self._done) + sum(done.values())
        left = sum(job.steps for job in jobs if job not in self.failed) - completed
        bars.update(overall, completed=completed, note=f"{len(self._done)} of {len(jobs)} runs{self._time_left(left)}")

    def _time_left(self, steps: int) -> str:
        if not self._ended:
            return ""
        minutes = steps * (time.monotonic() - self._begun) / self._ended / 60
        return f", {minutes:.0f} min left" if minutes < 100 else f", {minutes / 60:.1f} h left"

    def _report(self, jobs: Sequence[Job]) -> None:
        self.console.print(f"{self.suite.name}: {len(self._done)} of {len(jobs)} runs done, {len(self.failed)} failed")
        for job, why in self.failed.items():
            self.console.print(f"- {job.name}: {why} ({job.folder / OUTPUT})", markup=False)


class ThisMachine:
    """Processes of this machine. Kept by hand: it shares out cores and GPUs, which submitit's local executor does not.

    A run outlives its runner if that is killed: it holds a lock on its folder, and a runner that is started meanwhile
    leaves it alone until it has ended.

    Args:
        at_once: jobs at a time. Cores are shared out between them, and GPUs if there are several jobs.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.about = f"{at_once} at a time"
        self._locks: dict[Job, IO[str]] = {}
        self._processes: dict[Job, tuple[subprocess.Popen[bytes], int]] = {}  # and the slot of each

    def take(self, job: Job) -> str | None:
        lock = (job.folder.parent / f".{job.folder.name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return "is being run already"
        self._locks[job] = lock
        return None

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            slot = min(set(range(self.at_once)) - {slot for _, slot in self._processes.values()})
            with (job.folder / OUTPUT).open("ab") as output, self._locks.pop(job) as lock:
                process = subprocess.Popen(
                    job.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | _share(slot, self.at_once),
                    pass_fds=[lock.fileno()],  # held until the run ends, whatever becomes of us
                )
            self._processes[job] = process, slot

    def end_of(self, job: Job) -> str | None:
        code = self._processes[job][0].poll()
        if code is None:
            return None
        del self._processes[job]
        return f"exit status {code}"

    def stop(self) -> str:
        processes = [process for process, _ in self._processes.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
        return "the same command goes on"


def _share(slot: int, parallel: int) -> dict[str, str]:
    """Environment of a job: its share of the machine."""
    shares = {}
    if "OMP_NUM_THREADS" not in os.environ:
        shares["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // parallel))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parallel > 1 and gpus > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        ids = named if len(named) == gpus else [str(i) for i in range(gpus)]
        shares["CUDA_VISIBLE_DEVICES"] = ",".join(ids[slot % gpus :: parallel])
    return shares


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def share_out(jobs: Sequence[Job], machines: int) -> list[list[Job]]:
    """Jobs for each of several machines: the longest first, each to the machine with the fewest steps so far."""
    shares: list[list[Job]] = [[] for _ in range(machines)]
    for job in sorted(jobs, key=lambda job: -job.steps):
        min(shares, key=lambda share: sum(other.steps for other in share)).append(job)
    return shares

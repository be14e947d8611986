"""Runs the jobs of a suite, several at a time, and goes on where it was stopped.

Kept by hand: a suite runs on one machine without a scheduler or service, and its runs must outlive it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dataseg.experiments.jobs import OUTPUT, Job
from dataseg.experiments.suite import Suite

_POLL = 1.0  # seconds
_GRACE = 60.0  # seconds that a run has to save and stop


def default_parallel() -> int:
    """Runs at a time: one with GPUs, as it takes all of them; else one for each of the first four cores."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


@dataclass
class Runner:
    """Runs jobs.

    A job that fails is reported, and the others go on. A run outlives its runner if that is killed: it holds a lock
    on its folder, and a runner that is started meanwhile leaves it alone until it has ended.

    Attributes:
        suite: for the scores that are shown.
        parallel: jobs at a time. Cores are shared out between them, and GPUs if there are several jobs.
        failed: jobs that ended without their last evaluation, and why.
    """

    suite: Suite
    parallel: int
    console: Console = field(default_factory=Console)
    failed: dict[Job, str] = field(default_factory=dict)
    _done: set[Job] = field(default_factory=set)
    _running: dict[Job, subprocess.Popen[bytes]] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _ended: int = 0  # steps of the jobs that this runner has brought to an end
    _spent: float = 0.0  # seconds they took

    def run(self, jobs: Sequence[Job]) -> bool:
        """Do what is not done yet.

        Returns:
            whether all are done.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._done = {job for job in jobs if job.is_done()}
        todo = [job for job in jobs if job not in self._done]
        for job in todo:
            waiting.put(job)
        self.console.print(
            f"{self.suite.name}: {len(jobs)} runs, {len(jobs) - len(todo)} done before, {len(todo)} to do, "
            f"{min(self.parallel, len(todo))} at a time"
        )
        total = sum(job.steps for job in jobs)
        slots = [threading.Thread(target=self._work, args=(waiting, slot)) for slot in range(self.parallel)]
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with _stop_on_sigterm(), Progress(*columns, console=self.console, transient=True) as bars:
            overall = bars.add_task(self.suite.name, total=total, note="")
            tasks: dict[Job, TaskID] = {}
            for thread in slots:
                thread.start()
            try:
                while any(thread.is_alive() for thread in slots):
                    self._show(bars, overall, tasks, jobs)
                    time.sleep(_POLL)
            except KeyboardInterrupt:
                self._stop(slots)
                raise
        self._report(jobs)
        return len(self._done) == len(jobs)

    def _work(self, waiting: queue.SimpleQueue[Job], slot: int) -> None:
        while not self._stopping.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._do(job, slot)
            except OSError as error:  # of this job's folder; the others may be well
                self._fail(job, str(error))

    def _do(self, job: Job, slot: int) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder.parent / f".{job.folder.name}.lock").open("w") as lock:
            self._acquire(lock, job)
            if self._stopping.is_set():
                return
            if job.is_done():  # by the run that held the lock
                self._done.add(job)
                return
            moved = job.clear()
            if moved is not None:
                self.console.print(f"{job.name}: asked for otherwise before; those results are now in {moved}")
            begun = time.monotonic()
            with (job.folder / OUTPUT).open("ab") as output:
                process = subprocess.Popen(
                    job.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | _share(slot, self.parallel),
                    pass_fds=[lock.fileno()],  # held until the run ends, whatever becomes of us
                )
                self._running[job] = process
                code = process.wait()
                del self._running[job]
        seconds = time.monotonic() - begun
        if job.is_done():
            self._done.add(job)
            self._ended, self._spent = self._ended + job.steps, self._spent + seconds
            self.console.print(f"{job.name}: {seconds:.0f} s, {job.scores(self.suite)}")
        elif not self._stopping.is_set():
            self._fail(job, f"exit status {code}, {job.last_error()}")

    def _acquire(self, lock: Any, job: Job) -> None:
        reported = False
        while not self._stopping.is_set():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not reported:
                    self.console.print(f"{job.name}: is being run already; waiting for it")
                reported = True
                time.sleep(_POLL)

    def _fail(self, job: Job, why: str) -> None:
        self.failed[job] = why
        self.console.print(f"{job.name}: FAILED, {why} ({job.folder / OUTPUT})", style="red", markup=False)

    def _stop(self, slots: Sequence[threading.Thread]) -> None:
        """Ask all runs to save and stop."""
        self.console.print("stopping: each run saves where it is")
        self._stopping.set()
        for process in list(self._running.values()):
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for thread in slots:
            thread.join(max(0.0, deadline - time.monotonic()))
        for process in list(self._running.values()):
            process.kill()

    # ---------------------------------------------------------------------------------------------- what is seen

    def _show(self, bars: Progress, overall: TaskID, tasks: dict[Job, TaskID], jobs: Sequence[Job]) -> None:
        running = list(self._running)
        for job in set(tasks) - set(running):
            bars.remove_task(tasks.pop(job))
        done = {job: job.steps_done() for job in running}
        for job in running:
            if job not in tasks:
                tasks[job] = bars.add_task(job.name, total=job.steps, note="")
            bars.update(tasks[job], completed=done[job], note=f"{done[job]} of {job.steps} steps")
        finished = self._done - set(running)
        completed = sum(job.steps for job in finished) + sum(done.values())
        left = sum(job.steps for job in jobs if job not in self.failed) - completed
        bars.update(overall, completed=completed, note=f"{len(finished)} of {len(jobs)} runs{self._time_left(left)}")

    def _time_left(self, steps: int) -> str:
        if not self._ended:
            return ""
        minutes = steps * self._spent / self._ended / self.parallel / 60
        return f", {minutes:.0f} min left" if minutes < 100 else f", {minutes / 60:.1f} h left"

    def _report(self, jobs: Sequence[Job]) -> None:
        self.console.print(f"{self.suite.name}: {len(self._done)} of {len(jobs)} runs done, {len(self.failed)} failed")
        for job, why in self.failed.items():
            self.console.print(f"- {job.name}: {why} ({job.folder / OUTPUT})", markup=False)


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

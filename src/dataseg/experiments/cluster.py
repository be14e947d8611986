"""Runs of a suite as jobs of a cluster: submitit writes, submits and requeues them, SLURM does the rest.

Made by hand is what submitit does not do: to run the command line with its own way of saving on request, to find jobs
again that an earlier command has submitted, and to follow them without SLURM's accounting, which submitit asks.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataseg.experiments.jobs import OUTPUT, Job
from dataseg.experiments.suite import Cluster, Suite
from dataseg.structures import UserError

_SIGNAL = "SUBMITIT_PREEMPT_SIGNAL", "USR1"
"""What SLURM sends before the time limit, and submitit puts the job in the queue again at: a run saves at it."""

_REQUEUE_IF_KILLED = [  # by the signal, before it had a handler: submitit's process was still being started
    "status=$?",
    'number="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
    'case $status in 138|143) scontrol requeue "$number";; esac',
    "exit $status",
]
_TIMEOUTS = 1000  # submitit gives a job up after so many
_ASK_EVERY = 10.0  # seconds between questions to SLURM
_LAG = 30.0  # seconds until a shared folder shows what another node has written last


@dataclass
class Attempt:
    """What a job does, in each of its processes: the run goes on from its newest checkpoint.

    Attributes:
        verb: the command line, ``(arguments) -> exit status``.
    """

    job: Job
    verb: Callable[[Sequence[str]], int]

    def __call__(self) -> None:
        from submitit import JobEnvironment, helpers

        here = JobEnvironment()
        if self.job.is_done():
            return
        if here.num_tasks > 1:
            helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if here.global_rank == 0:
            self.job.clear()
            with (self.job.folder / OUTPUT).open("ab") as output:
                os.dup2(output.fileno(), sys.stdout.fileno())
                os.dup2(output.fileno(), sys.stderr.fileno())
        requeue = signal.getsignal(signal.SIGUSR1)  # submitit's, which the run takes over once it can save
        try:
            status = self.verb(self.job.arguments)
        except SystemExit as stop:
            if stop.code != 0:
                raise
            # the run was asked to stop, and has saved
            if here.global_rank == 0 and _is_undecided(here):
                signal.signal(signal.SIGUSR1, requeue)
                signal.raise_signal(signal.SIGUSR1)
            return
        if status:
            raise RuntimeError(f"exit status {status}: {self.job.last_error()}")

    def checkpoint(self) -> Any:
        """Of submitit: what to run when the job has been put in the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Attempt(self.job, self.verb))


def _is_undecided(here: Any) -> bool:
    """Whether the job is as before for the cluster: SLURM has neither cancelled it nor put it in the queue again."""
    if here.cluster != "slurm":
        return True
    asked = ["squeue", "--noheader", f"--jobs={here.job_id}", "--format=%T"]
    return subprocess.check_output(asked, text=True).strip() == "RUNNING"


class OnCluster:
    """A `Place`: SLURM's queue, or submitit's stand-in for it on this machine.

    Jobs stay in SLURM's queue whatever becomes of this process; who starts the suite again follows them.

    Args:
        name: ``slurm`` or ``local``.
        at_once: runs at a time.
        verb: the command line, see `Attempt`.

    Raises:
        UserError: submitit or SLURM is missing, or a setting that they do not know.
    """

    def __init__(self, name: str, suite: Suite, runs: Path, at_once: int, verb: Callable[[Sequence[str]], int]) -> None:
        os.environ |= dict([_SIGNAL])  # read when submitit is imported
        try:
            import submitit
        except ImportError as error:
            raise UserError(f"CLUSTER={name} needs submitit: pip install 'dataseg[cluster]'") from error
        if name == "slurm" and not shutil.which("sbatch"):
            raise UserError("CLUSTER=slurm: sbatch is not found; is this a machine that SLURM jobs are submitted from?")
        self.is_slurm = name == "slurm"
        self.at_once = sys.maxsize if self.is_slurm else at_once
        self.about = f"handed to {name}, {at_once} at a time"
        self._logs = runs / suite.name / "jobs"
        self._verb = verb
        self._executor = submitit.AutoExecutor(folder=self._logs, cluster=name, slurm_max_num_timeout=_TIMEOUTS)
        try:
            self._executor.update_parameters(**_parameters(suite.name, suite.cluster, at_once, self.is_slurm))
        except ValueError as error:
            raise UserError(f"CLUSTER={name}: {error}") from error
        self._numbers: dict[Job, str] = {}
        self._local: dict[Job, Any] = {}
        self._queue: set[str] = set()
        self._asked = -_ASK_EVERY
        self._left: dict[Job, float] = {}  # when a job was first missing in the queue

    def take(self, job: Job) -> str | None:
        number = job.submitted_as
        if number in self._queued() and job.is_another():
            raise UserError(f"job {number}, of other arguments, is still in the queue: wait, or scancel {number}")
        return None

    def start(self, jobs: Sequence[Job]) -> None:
        self._numbers |= {job: job.submitted_as for job in jobs if job.submitted_as in self._queued()}
        new = [job for job in jobs if job not in self._numbers]
        if not new:
            return
        from submitit.core.utils import FailedJobError

        try:
            with self._executor.batch():
                submitted = [self._executor.submit(Attempt(job, self._verb)) for job in new]
        except FailedJobError as error:
            raise UserError(f"sbatch refuses the jobs: {error}") from error
        for job, handle in zip(new, submitted, strict=True):
            self._numbers[job], self._local[job] = handle.job_id, handle
            if self.is_slurm:
                job.note_submission(handle.job_id)
        self._asked = -_ASK_EVERY

    def end_of(self, job: Job) -> str | None:
        number = self._numbers[job]
        if self.is_slurm:
            going = number in self._queued() or not self._has_left(job)
        else:
            going = not self._local[job].done()
        return None if going else f"job {number} has ended ({self._logs}/{number}_0_log.err)"

    def stop(self) -> str:
        if self.is_slurm:
            arrays = " ".join(sorted({number.partition("_")[0] for number in self._numbers.values()}))
            return f"the jobs stay in the queue, and the same command follows them; to end them: scancel {arrays}"
        for handle in self._local.values():
            handle.cancel()
        return "the same command goes on"

    def _queued(self) -> set[str]:
        """Numbers of the user's jobs that wait or run; as it was, while SLURM does not answer."""
        if self.is_slurm and time.monotonic() - self._asked >= _ASK_EVERY:
            self._asked = time.monotonic()
            command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                self._queue = set(answer.stdout.split())
        return self._queue

    def _has_left(self, job: Job) -> bool:
        return job.is_done() or time.monotonic() - self._left.setdefault(job, time.monotonic()) > _LAG


def _parameters(name: str, cluster: Cluster, at_once: int, is_slurm: bool) -> dict[str, Any]:
    """As submitit names them."""
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": cluster.nodes,
        "tasks_per_node": cluster.processes,
        "gpus_per_node": cluster.gpus or None,
        "cpus_per_task": cluster.cpus or None,
        "timeout_min": cluster.minutes,
    }
    if is_slurm:
        parameters |= {
            "slurm_partition": cluster.partition or None,
            "slurm_array_parallelism": at_once,
            "slurm_signal_delay_s": cluster.warning,
            "slurm_setup": [*cluster.setup, f"export {'='.join(_SIGNAL)}"],
            "slurm_teardown": _REQUEUE_IF_KILLED,
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": {"requeue": True, **cluster.options},
        }
    return parameters

"""Run a suite of experiments, or print its commands.

``dataseg ablation --suite scaling_mini --seeds 3 [--parallel N] [--dry] [--cluster slurm] [overrides]``
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dataseg.experiments.cluster import OnCluster
from dataseg.experiments.jobs import Job, jobs_of
from dataseg.experiments.runner import Place, Runner, ThisMachine, default_parallel, share_out
from dataseg.experiments.suite import load
from dataseg.structures import UserError


def main(args: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 if all runs are done, 1 if some failed."""
    parser = argparse.ArgumentParser(prog="dataseg ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, help="file, or name of one in conf/suite")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each row, from 0")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--parallel", type=int, default=0, help="runs at a time; default: fits this machine, or all")
    parser.add_argument("--dry", action="store_true", help="print the commands only")
    parser.add_argument("--machines", type=int, default=1, help="with --dry: share the commands out")
    parser.add_argument("--cluster", choices=["slurm", "local"], help="hand the runs to submitit")
    options, others = parser.parse_known_args(args)
    if options.machines < 1 or options.parallel < 0:
        raise UserError(f"MACHINES and PARALLEL must be positive, got {options.machines} and {options.parallel}")
    settings = [other for other in others if other.startswith("--cluster.")]
    overrides = [other for other in others if other not in settings]
    if settings and not options.cluster:
        raise UserError(f"{settings[0]} has no effect without CLUSTER=slurm")
    suite = load(options.suite, settings)
    if options.cluster:
        cluster = suite.cluster
        overrides = [f"--trainer.num_nodes={cluster.nodes}", f"--trainer.devices={cluster.processes}", *overrides]
    jobs = jobs_of(suite, options.seeds, options.runs, overrides)
    if options.dry:
        print(commands(jobs, options.machines))
        return 0
    place: Place
    if options.cluster:
        from dataseg.cli.__main__ import main as verb  # which imports this module by name

        everywhere = len(jobs) if options.cluster == "slurm" else default_parallel()
        place = OnCluster(options.cluster, suite, options.runs, options.parallel or everywhere, verb)
    else:
        place = ThisMachine(options.parallel or default_parallel())
    return 0 if Runner(suite, place, Console(soft_wrap=True)).run(jobs) else 1


def commands(jobs: Sequence[Job], machines: int) -> str:
    """What to run on each machine, one line a run; those that are done are left out."""
    todo = [job for job in jobs if not job.is_done()]
    lines = [f"# {len(todo)} of {len(jobs)} runs; afterwards put runs/ of all machines together for the report"]
    others = sum(job.is_another() for job in todo)
    if others:
        lines.append(f"# {others} of them hold results of other arguments, which are kept as <run>.old<n>")
    python = os.path.relpath(sys.executable)
    for number, share in enumerate(share_out(todo, machines), start=1):
        lines.append(f"# machine {number} of {machines}: {len(share)} runs, {sum(job.steps for job in share):,} steps")
        lines += [shlex.join([python, *job.command[1:]]) for job in share]
    return "\n".join(lines)

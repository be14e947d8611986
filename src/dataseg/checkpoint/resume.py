"""Which checkpoint a run goes on from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from dataseg.checkpoint.files import BEST, step_files
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.checkpoint.validate import problem_of
from dataseg.structures import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """Where to go on.

    Attributes:
        run: name of the run.
        checkpoint: to load.
        step: optimisation steps done.
    """

    run: str
    checkpoint: Path
    step: int


def find(experiment: Path, run: str | None) -> Resumption | None:
    """The newest good checkpoint of a run, or of the experiment's run that was written to last.

    Checkpoints that cannot be resumed from are named in a warning and passed over.

    Args:
        experiment: folder of the experiment's runs.
        run: name of the run; None = whichever was written to last.

    Returns:
        None if no checkpoint was ever written: a run that starts.

    Raises:
        UserError: there are checkpoints, and none can be resumed from.
    """
    run = run or newest_run(experiment)
    if run is None:
        return None
    folder = RunFolder(experiment / run).checkpoints
    candidates = list(reversed(step_files(folder).items()))
    for step, path in candidates:
        problem = problem_of(path)
        if problem is None:
            return Resumption(run, path, step)
        log.warning("checkpoint %s cannot be resumed from (%s): trying the one before", path, problem)
    if candidates:
        best = folder / BEST
        if best.is_file() and problem_of(best) is None:
            step = int(torch.load(best, map_location="cpu", weights_only=True)["global_step"])
            return Resumption(run, best, step)
        raise UserError(
            f"none of the {len(candidates)} checkpoints in {folder} can be resumed from: start anew under another RUN,"
            " or remove the folder"
        )
    return None


def newest_run(experiment: Path) -> str | None:
    """The run that was written to last, of those that have a checkpoint; newer ones without are named in a warning."""
    runs = [RunFolder(path) for path in experiment.glob("*") if RunFolder(path).checkpoints.is_dir()]
    runs.sort(key=lambda run: (run.checkpoints.stat().st_mtime_ns, run.path.name))
    saved = [run for run in runs if step_files(run.checkpoints)]
    if not saved:
        return None
    chosen = saved[-1].path.name
    newer = [run.path.name for run in runs[runs.index(saved[-1]) + 1 :]]
    if newer:
        log.warning("%s stopped before a checkpoint: going on with %s (RUN=... chooses)", ", ".join(newer), chosen)
    return chosen

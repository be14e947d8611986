"""Checkpoint files that survive faults: written in full or not at all, checked before they are trusted."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader

from dataseg.structures import UserError

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Folder of the checkpoints below a run's."""

BEST, LAST = "best.ckpt", "last.ckpt"

SHARD_STATE = "meta.pt"
"""Beside the shards of a sharded checkpoint: all that is not weights or optimiser (Lightning's name)."""

_NAME = re.compile(r"step-(\d+)\.ckpt")


class Preempted(SystemExit):
    """The run was asked to stop (SIGTERM, SIGUSR1) and can be resumed; ends the process with exit status 0."""


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes straight to the place where the file belongs and waits until it is on disk.

    Lightning's own first makes a copy in memory and another in the system's temporary folder, which may be full or
    on another file system, where moving is no rename.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        with Path(path).open("wb") as file:  # an open file: torch hides the system's error if it opens the path itself
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(
        self, path: Path | str, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


# ---------------------------------------------------------------------------------------------------- the files


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimisation step lies."""
    return folder / f"step-{step}.ckpt"


def step_files(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by optimisation step, oldest first; `BEST` and `LAST` are not among them."""
    found = {int(m[1]): path for path in folder.glob("step-*.ckpt") if (m := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder to its name, replacing what has that name."""
    if (
        path.is_dir() and not path.is_symlink()
    ):  # a folder cannot be replaced in one go; the newer one stands in already
        old = path.with_name(f"{path.name}.replaced")
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old)
    else:
        os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, path: Path) -> None:
    """Give a checkpoint a second name that outlives the first, without a second copy where the disk allows it."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    if source.is_dir():
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
    else:
        _link_or_copy(str(source), str(temporary))
    put_in_place(temporary, path)


def _link_or_copy(source: str, path: str) -> None:
    try:
        os.link(source, path)
    except OSError:  # no hard links on this file system
        shutil.copy2(source, path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ----------------------------------------------------------------------------------------------------- checking


def problem_of(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it can.

    A file is read in full: it must load with ``weights_only=True``, hold weights, optimiser and progress, and be
    finite. Of a sharded one, the index and the sizes of its files are checked.
    """
    try:
        return _folder_problem(path) if path.is_dir() else _file_problem(path)
    except Exception as error:  # whatever a damaged file makes the reading libraries raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _file_problem(path: Path) -> str | None:
    content = torch.load(path, map_location="cpu", weights_only=True)
    missing = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"} - set(content)
    if missing:
        return f"it has no {', '.join(sorted(missing))}"
    broken = not_finite(content["state_dict"])
    return f"weights are not finite: {', '.join(broken[:3])}" if broken else None


def _folder_problem(path: Path) -> str | None:
    torch.load(path / SHARD_STATE, map_location="cpu", weights_only=True)
    storage = FileSystemReader(path).read_metadata().storage_data
    sizes: dict[str, int] = {}
    for info in storage.values():
        sizes[info.relative_path] = max(sizes.get(info.relative_path, 0), info.offset + info.length)
    short = [name for name, size in sizes.items() if (path / name).stat().st_size < size]
    return f"{', '.join(short)} are cut short" if short else None


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity; of sharded ones, this rank's part is looked at."""
    local = {
        name: t.to_local() if hasattr(t, "to_local") else t for name, t in tensors.items() if torch.is_floating_point(t)
    }
    finite = [t.isfinite().all() for t in local.values()]
    if not finite or bool(torch.stack(finite).all()):  # one wait for the device in the usual case
        return []
    return [name for name, good in zip(local, finite, strict=True) if not good]


# ----------------------------------------------------------------------------------------------------- resuming


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
    run = run or _newest_run(experiment)
    if run is None:
        return None
    folder = experiment / run / FOLDER
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


def _newest_run(experiment: Path) -> str | None:
    """The run that was written to last, of those that have a checkpoint; newer ones without are named in a warning."""
    folders = sorted(experiment.glob(f"*/{FOLDER}"), key=lambda path: (path.stat().st_mtime_ns, path.parent.name))
    saved = [path for path in folders if step_files(path)]
    if not saved:
        return None
    newer = [path.parent.name for path in folders[folders.index(saved[-1]) + 1 :]]
    if newer:
        chosen = saved[-1].parent.name
        log.warning("%s stopped before a checkpoint: going on with %s (RUN=... chooses)", ", ".join(newer), chosen)
    return saved[-1].parent.name

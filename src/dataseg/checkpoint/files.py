"""Names of a run's checkpoints, and files and folders put in place whole."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

FOLDER = "checkpoints"
"""Folder of the checkpoints below a run's."""


BEST, LAST = "best.ckpt", "last.ckpt"


SHARD_STATE = "meta.pt"
"""Beside the shards of a sharded checkpoint: all that is not weights or optimiser (Lightning's name)."""


_NAME = re.compile(r"step-(\d+)\.ckpt")


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

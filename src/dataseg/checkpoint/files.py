"""Names of the checkpoints in a run's folder, and second names for them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from dataseg.io.atomic import replacing, sync_folder

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


def link(source: Path, path: Path) -> None:
    """Give a checkpoint a second name that outlives the first, without a second copy where the disk allows it."""
    with replacing(path) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(source), str(temporary))
    sync_folder(path.parent)


def _link_or_copy(source: str, path: str) -> None:
    try:
        os.link(source, path)
    except OSError:  # no hard links on this file system
        shutil.copy2(source, path)

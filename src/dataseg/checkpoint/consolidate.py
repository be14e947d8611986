"""Sharded checkpoints made whole."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dataseg.checkpoint.files import SHARD_STATE
from dataseg.checkpoint.shard_index import read_index
from dataseg.structures import UserError

MAKE_WHOLE = "make one file of it with dataseg merge-shards {} whole.ckpt, and go on with RESUME=whole.ckpt"


def require_shards(folder: Path) -> None:
    """Refuse a folder that is no sharded checkpoint, or one that could run code.

    Raises:
        UserError: it has no `SHARD_STATE`, or as `read_index`.
    """
    if not (folder / SHARD_STATE).is_file():
        raise UserError(
            f"{folder}: not a sharded checkpoint that can be read, it has no {SHARD_STATE}; a run's checkpoints lie in"
            " its folder checkpoints/"
        )
    read_index(folder)


def consolidate(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint as the one file that a single process would have written.

    Args:
        folder: written under `FullySharded`.

    Returns:
        "state_dict", "optimizer_states" and all else a checkpoint holds; on the CPU. It can be saved with `torch.save`,
        loaded with ``weights_only=True`` and resumed from with any number of processes.

    Raises:
        UserError: the folder is not a sharded checkpoint, or is damaged.
    """
    require_shards(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            file = Path(temporary) / "whole.pt"
            dcp_to_torch_save(folder, file)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint: dict[str, Any] = torch.load(folder / SHARD_STATE, map_location="cpu", weights_only=True)
    except (Exception, CheckpointException) as error:
        raise UserError(f"{folder}: not a sharded checkpoint that can be read ({error})") from error
    checkpoint["state_dict"] = content.pop("state_dict")
    numbered = sorted(content.items(), key=lambda item: int(item[0].removeprefix("optimizer_")))
    checkpoint["optimizer_states"] = [optimizer_state_by_number(state) for _, state in numbered]
    return checkpoint


def optimizer_state_by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state keyed by parameter names, as torch's optimisers want it: by position."""
    groups: list[dict[str, Any]] = []
    order: list[str] = []
    for group in state["param_groups"]:
        names = group["params"]
        groups.append({**group, "params": list(range(len(order), len(order) + len(names)))})
        order += names
    return {"state": {i: state["state"][name] for i, name in enumerate(order) if name in state["state"]}} | {
        "param_groups": groups
    }

"""Whether a checkpoint can be resumed from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dataseg.checkpoint.files import SHARD_STATE
from dataseg.checkpoint.shard_index import read_index
from dataseg.structures import UserError


def problem_of(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None if it can.

    A file is read in full: it must load with ``weights_only=True``, hold weights, optimiser and progress, and be
    finite. Of a sharded one, the index and the sizes of its files are checked.
    """
    try:
        if path.is_dir():
            torch.load(path / SHARD_STATE, map_location="cpu", weights_only=True)
            read_index(path)
            return None
        return _file_problem(path)
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a damaged file makes the reading libraries raise
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _file_problem(path: Path) -> str | None:
    content = torch.load(path, map_location="cpu", weights_only=True)
    missing = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"} - set(content)
    if missing:
        return f"it has no {', '.join(sorted(missing))}"
    broken = not_finite(content["state_dict"])
    return f"weights are not finite: {', '.join(broken[:3])}" if broken else None


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the floating-point tensors that hold NaN or infinity; of sharded ones, this rank's part is looked at."""
    local = {
        name: t.to_local() if hasattr(t, "to_local") else t for name, t in tensors.items() if torch.is_floating_point(t)
    }
    finite = [t.isfinite().all() for t in local.values()]
    if not finite or bool(torch.stack(finite).all()):  # one wait for the device in the usual case
        return []
    return [name for name, good in zip(local, finite, strict=True) if not good]

"""Checkpoints written in full and flushed to disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


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

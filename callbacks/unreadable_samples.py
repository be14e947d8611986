"""Training samples that could not be read are counted and listed."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from dataseg.structures import UNREADABLE

log = logging.getLogger(__name__)


class UnreadableSamples(pl.Callback):
    """Warns of training samples that were replaced (``data.on_error=skip``): of each file once, of all at the end.

    Attributes:
        found: message of each file -> how often a sample was replaced for it. Other ranks hand theirs to the first
            with every checkpoint and at the end.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._reported: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        self._gather()
        return {"found": dict(self.found)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.found = Counter(state_dict["found"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for part in batch.values():
            for key, count in part.counts.items() if part is not None else ():
                if key.startswith(UNREADABLE):
                    message = key.removeprefix(UNREADABLE)
                    self.found[message] += count
                    if message not in self._reported:
                        self._reported.add(message)
                        log.warning("replaced: %s", message)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._gather()
        if self.found:
            lines = "\n".join(f"  {count} x {message}" for message, count in self.found.most_common())
            log.warning("%d samples could not be read and were replaced:\n%s", self.found.total(), lines)

    def _gather(self) -> None:
        """Move all ranks' counts to the first one; checkpoints are put together on all ranks."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, dict(self.found))
        self.found = Counter()
        for part in parts if dist.get_rank() == 0 else ():
            self.found.update(part)

"""Losses and gradients that are not finite stop the run, or are skipped and counted."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from dataseg.checkpoint.run_folder import RunFolder
from dataseg.structures import Batch, UserError
from dataseg.training.module import CoTrainedSegmenter
from dataseg.training.replay_file import write_replay

log = logging.getLogger(__name__)


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite."""


class NonFiniteGuard(pl.Callback):
    """Checks loss and gradient before every optimiser step; all ranks decide alike, so that none is left waiting.

    On the first that is not finite, each rank writes ``<run>/replay/step-<n>-rank-<r>.pt``, which
    ``make replay FILE=...`` runs again, and the run stops. With ``on_non_finite="skip"`` the step changes no weight and
    is counted, up to ``limit``.

    With ``trainer.precision=16-mixed`` only the loss is checked: the gradient scaler adapts by infinite gradients.

    Args:
        on_non_finite: what to do.
        limit: steps that may be skipped in the whole run; the next one stops it.

    Attributes:
        skipped: optimisation steps (counted from 0) that were skipped.
    """

    def __init__(self, on_non_finite: Literal["stop", "skip"] = "stop", limit: int = 10) -> None:
        self.on_non_finite = on_non_finite
        self.limit = limit
        self.skipped: list[int] = []
        self._batches: list[list[Batch]] = []  # of the step that is being accumulated
        self._losses: list[Tensor] = []
        self._seeds: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = list(state_dict["skipped"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Batch | None], batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses, self._seeds = [], [], []
        self._batches.append([part for part in batch.values() if part is not None])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())
        self._seeds.append(torch.initial_seed())  # the module has seeded this batch's forward pass

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        norm = gradient_norm(pl_module)
        losses = torch.stack(self._losses).float()
        finite = losses.isfinite().all()
        if trainer.precision != "16-mixed":
            finite = finite & norm.isfinite()
        if self._everywhere(finite):
            return
        step = trainer.global_step
        names = ", ".join(f"{part.dataset} {part.image_ids}" for parts in self._batches for part in parts)
        what = (
            f"step {step}: loss {losses.tolist()}, gradient norm {float(norm)}, on rank {trainer.global_rank}: {names}"
        )
        if self.on_non_finite == "skip" and len(self.skipped) < self.limit:
            self.skipped.append(step)
            pl_module.zero_grad(set_to_none=True)  # the optimiser passes over parameters without a gradient
            log.warning("not finite, skipped (%d of %d): %s", len(self.skipped), self.limit, what)
            return
        file = self._file(trainer)
        facts = {"step": step, "losses": losses.tolist(), "gradient norm": float(norm), "precision": trainer.precision}
        facts |= {"seed": int(os.environ.get("PL_GLOBAL_SEED", "0")), "max_steps": trainer.max_steps}
        facts |= {"device": pl_module.device.type, "ranks": trainer.world_size, "rank": trainer.global_rank}
        write_replay(file, cast(CoTrainedSegmenter, pl_module), self._batches, self._seeds, facts)
        after = f" after {len(self.skipped)} skipped steps" if self.skipped else ""
        raise NonFiniteError(f"loss or gradient is not finite{after}. {what}\nto see why: make replay FILE={file}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.skipped and trainer.is_global_zero:
            log.warning("%d steps were skipped, not finite: %s", len(self.skipped), self.skipped)

    @staticmethod
    def _everywhere(finite: Tensor) -> bool:
        flag = finite.to(torch.int32)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag)

    @staticmethod
    def _file(trainer: pl.Trainer) -> Path:
        return RunFolder.of(trainer).replay / f"step-{trainer.global_step}-rank-{trainer.global_rank}.pt"


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Euclidean norm of the whole gradient, a scalar; of a sharded one, over all ranks."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return full

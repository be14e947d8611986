"""Checkpoints by steps and time, and stopping on request, such that a resumed run equals one that never stopped."""

from __future__ import annotations

import difflib
import logging
import math
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.api import CheckpointException

from callbacks.evaluation import Evaluation
from callbacks.preemption import Preempted, StopSignals
from callbacks.weight_average import require_average
from dataseg.checkpoint.files import BEST, LAST, link, step_files, step_path
from dataseg.checkpoint.io import DurableCheckpointIO
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.checkpoint.validate import not_finite
from dataseg.io.atomic import put_in_place, remove, replacing, sync_folder
from dataseg.structures import UserError
from dataseg.structures.errors import loading_process_died

log = logging.getLogger(__name__)

MEAN = "score"
"""`Evaluation`'s mean of the datasets' primary scores."""

MAX_FAILURES = 3
"""So many checkpoints in a row that cannot be written end the run."""


class Checkpoints(Checkpoint):
    """Keeps ``step-<n>.ckpt`` of the last steps, ``last.ckpt`` (a link to the newest) and ``best.ckpt``.

    Not Lightning's `ModelCheckpoint`, which has one trigger each, forgets after a crash what it may delete, leaves
    half a sharded checkpoint behind, and makes no promise about a validation that was cut short.

    A checkpoint is written to a temporary name and renamed once it is on disk. It is written after an optimisation
    step, never between accumulated batches. Where validation follows a step, the checkpoints of the step before it
    and of the finished validation are written, none between: a run that is killed in validation resumes one step before
    it, and every score is recorded once.

    SIGTERM and SIGUSR1 save and end the process with exit status 0: after the current step, or, during validation,
    after the current batch. A checkpoint that cannot be written is reported and tried again the next time; after
    `MAX_FAILURES` in a row the run ends. Weights that are not finite are never saved: the run ends.

    Args:
        every_n_steps: optimisation steps between checkpoints.
        every_n_minutes: minutes between checkpoints at most; 0 = by steps alone.
        keep_last: how many are kept beside the best.
        monitor: score of the validation that ``best.ckpt`` has the highest of, a key of `Evaluation.results`. Where a
            run goes on with another one, or ``score`` is the mean over other datasets, the best is sought anew.

    Attributes:
        best_model_path: of ``best.ckpt``; empty until it is written.
    """

    def __init__(
        self, every_n_steps: int = 1000, every_n_minutes: float = 30.0, keep_last: int = 3, monitor: str = MEAN
    ) -> None:
        if every_n_steps < 1 or keep_last < 1 or every_n_minutes < 0:
            raise UserError(
                "need every_n_steps >= 1, keep_last >= 1 and every_n_minutes >= 0, got"
                f" {every_n_steps}, {keep_last} and {every_n_minutes}"
            )
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep_last = keep_last
        self.monitor = monitor
        self.best_model_path = ""
        self._best: tuple[float, int] | None = None  # score, step
        self._best_of: list[str] | None = None  # names of the scores it is the best by; None = not known
        self._folder = Path()
        self._step = 0  # newest that `on_train_batch_end` has seen
        self._saved: int | None = None
        self._saved_at = 0.0
        self._failures = 0
        self._signals = StopSignals()

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self._best) if self._best else None, "best_of": self._best_of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        self._best = (float(best[0]), int(best[1])) if best else None
        self._best_of = state_dict.get("best_of")  # 0.1 has none

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            require_average(trainer, checkpoint)

    # ------------------------------------------------------------------------------------------- the run's course

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = DurableCheckpointIO()
        if stage != "fit":
            return
        self._signals.listen()  # where SIGUSR1 has a handler, Lightning leaves out its own, which saves under SLURM
        self._folder = RunFolder.of(trainer).checkpoints
        self.best_model_path = str(self._folder / BEST) if (self._folder / BEST).exists() else ""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".*.tmp"):
                remove(leftover)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.listen()

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor != MEAN:
            self._require_score(Evaluation.of(trainer).names())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check(trainer)
        self._signals.listen()
        if not (self._folder / BEST).exists():  # resumed into another folder: the best of the old one stays there
            self._best = None
        self._step = trainer.global_step
        self._saved = self._step if self._step else None
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            for step, path in step_files(self._folder).items():
                if step > self._step:
                    aside = path.with_name(f"{path.name}.old")
                    remove(aside)
                    path.rename(aside)
                    log.warning("%s is newer than what this run starts from: renamed to %s", path, aside.name)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # more batches are accumulated
            return
        self._step = step
        asked, late = self._agreed(trainer)
        validated_next = _validation_follows(trainer, step)
        if asked:
            if not validated_next and self._saved != step:
                self._save(trainer, pl_module, required=True)
            self._stop(trainer)
        due = late or step % self.every_n_steps == 0 or _validation_follows(trainer, step + 1)
        if due and not validated_next:
            self._save(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self._agreed(trainer)[0]:
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        scores = trainer.callback_metrics
        self._require_score(scores)
        value: float = trainer.strategy.broadcast(float(scores.get(self.monitor, -math.inf)))
        of = sorted(name for name in scores if "." in name) if self.monitor == MEAN else [self.monitor]
        if self._best and self._best_of and self._best_of != of:
            log.warning("best.ckpt was the best by other scores (%s) than those of now", ", ".join(self._best_of))
            self._best = None
        before, self._best_of = self._best, of
        is_best = value > (before[0] if before else -math.inf)
        if is_best:
            self._best = (value, trainer.global_step)
        if not self._save(trainer, pl_module, best=is_best):
            self._best = before

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step and self._saved != trainer.global_step:
            self._save(trainer, pl_module, required=True)

    def _require_score(self, names: Collection[str]) -> None:
        scores = sorted(name for name in names if "." in name)
        if self.monitor not in (MEAN, *scores):
            near = difflib.get_close_matches(self.monitor, scores, n=1)
            meant = f": did you mean {near[0]}?" if near else "."
            raise UserError(
                f"callbacks.Checkpoints: the validation has no score monitor={self.monitor}{meant} It has"
                f" {MEAN} and {', '.join(scores)}"
            )

    # --------------------------------------------------------------------------------------------------- stopping

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._signals.restore_interrupt()

    def _agreed(self, trainer: pl.Trainer) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether by the first rank's clock a checkpoint is due."""
        limit = 60 * self.every_n_minutes
        late = bool(limit) and trainer.is_global_zero and time.monotonic() - self._saved_at >= limit
        own = [self._signals.received is not None, late]
        flags = torch.tensor(own, dtype=torch.int32, device=trainer.strategy.root_device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        asked, late = (bool(flag) for flag in flags.tolist())
        return asked, late

    def _stop(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            where = f"checkpoint of step {self._saved} in {self._folder}" if self._saved else "no step was finished"
            sender = self._signals.sender
            log.warning("stopped by %s at step %d of %d (%s)", sender, trainer.global_step, trainer.max_steps, where)
        raise Preempted(0)

    # ----------------------------------------------------------------------------------------------------- saving

    def _save(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, best: bool = False, required: bool = False
    ) -> bool:
        """Write the checkpoint of this step on all ranks; whether that worked.

        Raises:
            UserError: the weights are not finite; or nothing could be written, and it is required or the last try.
        """
        step = trainer.global_step
        _require_finite(trainer, pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        error = self._write(trainer, step, best)
        self._saved_at = time.monotonic()
        if trainer.strategy.reduce_boolean_decision(error is None, all=True):
            self._saved, self._failures = step, 0
            self.best_model_path = str(self._folder / BEST) if best else self.best_model_path
            return True
        self._failures += 1
        good = f"the last good one is that of step {self._saved}" if self._saved else "there is none yet"
        if error is not None:
            free = shutil.disk_usage(self._folder).free / 2**20
            message = (
                f"the checkpoint of step {step} could not be written to {self._folder} ({error}; {free:,.0f} MiB are"
                f" free there); {good}"
            )
        else:
            message = f"the checkpoint of step {step} could not be written by another rank; {good}"
        if required or self._failures == MAX_FAILURES:
            raise UserError(f"{message}. Make room and go on with RESUME=auto")
        log.error("%s. Trying again at the next one (%d of %d)", message, self._failures, MAX_FAILURES)
        return False

    def _write(self, trainer: pl.Trainer, step: int, best: bool) -> BaseException | None:
        path = step_path(self._folder, step)
        temporary = path.with_name(f".{path.name}.tmp")
        error: BaseException | None = None
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
        except (OSError, RuntimeError, CheckpointException) as failure:  # a full disk, mostly
            if loading_process_died(failure):  # which PyTorch tells wherever the process is
                raise
            error = failure
            trainer.strategy.barrier("the one that save_checkpoint did not reach, where the other ranks wait")
        good: bool = trainer.strategy.reduce_boolean_decision(error is None, all=True)
        if trainer.is_global_zero:
            try:
                if good:
                    self._publish(temporary, path, step, best)
                else:
                    remove(temporary)
            except OSError as failure:
                error = error or failure
        return error

    def _publish(self, temporary: Path, path: Path, step: int, best: bool) -> None:
        put_in_place(temporary, path)
        sync_folder(self._folder)
        if best:
            link(path, self._folder / BEST)
        with replacing(self._folder / LAST) as pointer:
            pointer.symlink_to(path.name)
        sync_folder(self._folder)
        older = [file for number, file in step_files(self._folder).items() if number <= step]
        for file in older[: -self.keep_last]:
            remove(file)


def _require_finite(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    tensors = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
    broken = not_finite({name: tensor.detach() for name, tensor in tensors.items()})
    if not trainer.strategy.reduce_boolean_decision(not broken, all=True):
        raise UserError(
            f"the weights are not finite at step {trainer.global_step} ({', '.join(broken[:3]) or 'on another rank'}):"
            " not saved. Go on from an older checkpoint with a lower learning rate or harder gradient clipping"
        )


def _validates(trainer: pl.Trainer) -> bool:
    """By batches, that is: ``fast_dev_run``, which writes nothing, validates after its only epoch."""
    return bool(trainer.enable_validation and sum(trainer.num_val_batches) and not trainer.fast_dev_run)  # type: ignore[attr-defined]


def _validation_follows(trainer: pl.Trainer, step: int) -> bool:
    """Whether Lightning validates after this optimisation step (counted from 1); `_check` has made it this simple."""
    if not _validates(trainer):
        return False
    return step * trainer.accumulate_grad_batches % int(trainer.val_check_interval) == 0  # type: ignore[attr-defined]


def _check(trainer: pl.Trainer) -> None:
    """Refuse settings under which a checkpoint could fall between accumulated batches."""
    parts = trainer.accumulate_grad_batches
    if not _validates(trainer):
        return
    interval = getattr(trainer, "val_check_interval", "a time")
    if trainer.check_val_every_n_epoch is not None or not isinstance(interval, int):
        raise UserError(
            "validation goes by batches here: set trainer.check_val_every_n_epoch=null and trainer.val_check_interval"
            f" to a whole number, not {trainer.check_val_every_n_epoch} and {interval}"
        )
    if interval % parts:
        raise UserError(
            f"trainer.val_check_interval={interval} counts batches and must be a multiple of"
            f" trainer.accumulate_grad_batches={parts}: validation may not fall into a step"
        )
    left = trainer.max_steps % (interval // parts)
    if trainer.max_steps > 0 and left and trainer.is_global_zero:
        log.warning(
            "the last %d steps will not be evaluated: trainer.max_steps=%d is no multiple of"
            " trainer.val_check_interval=%d (batches)",
            left,
            trainer.max_steps,
            interval,
        )

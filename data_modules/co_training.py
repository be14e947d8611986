"""Co-training: several datasets of different tasks, one network."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from data_modules.datasets import OnError, TrainDataset
from data_modules.formats.reader import Reader
from data_modules.layout import (
    Missing,
    MissingDataError,
    NamedError,
    explain_missing,
    find_missing,
    split_missing,
    tell_skipped,
)
from data_modules.loaders import Stream, evaluation_loader, names_of
from data_modules.mini import MiniSpec, ensure_wanted
from data_modules.sampling import Schedule, blocks, share_out, tempered
from data_modules.survey import survey
from data_modules.transforms import TrainTransform
from dataseg.inference.resize import ResizeShortestEdge
from dataseg.io.cache import use_cache
from dataseg.structures import DatasetSpec, Sample, Task, TestTimeAugmentation, UserError, Vocabulary

log = logging.getLogger(__name__)


class CoTraining(LightningDataModule):
    """Takes every optimisation step's whole batch from one dataset, drawn with fixed sampling ratios.

    ``training_step`` receives a dict by dataset name in which one entry is a `Batch` and the others are None; in
    mixed mode, all are batches. Evaluation batches are plain `Batch` records, one loader per name in `tasks`.

    Args:
        train: readers to train on, by dataset name. Those without a ratio above 0 are not even looked for on disk.
        val: readers to evaluate on, by dataset name.
        ratios: sampling ratios by name in ``train``: any subset, any positive numbers.
        ratio_exponent: the ratios are taken to this power, 1 / sampling temperature: 0 makes those above 0 equal.
        root: folder that holds the datasets.
        train_transform: augmentation of training samples.
        eval_transform: size of evaluation images.
        test_time_augmentation: views of evaluation images; semantic tasks only.
        batch_size: samples of one optimisation step: over all ranks and accumulated batches together, which must divide
            it. With ``mixed`` it is raised to the next number that ratios, ranks and accumulation divide.
        eval_batch_size: images of one evaluation batch on one rank.
        eval_subset: images of each evaluation set that validations while training take, the same ones in every run;
            None = all. Evaluation on its own takes all.
        num_workers: loading processes per rank, shared out by ratio, at least one per dataset; -1 = one per core;
            0 = load in the training process. The samples are the same whatever their number.
        prefetch_factor: batches each loading process keeps ready.
        seed: decides order and augmentation.
        mixed: every batch holds all datasets, in the ratios.
        on_error: what becomes of a training sample that cannot be read: "stop" ends the run with file and dataset
            named, "skip" puts the dataset's next sample in its place. Evaluation always stops.
        missing: what becomes of an evaluation set whose files are not there: "stop" ends the run, "skip" leaves the
            set out, with one warning for all of them. Training sets, and at least one evaluation set, must be there.
        mini: make the mini suite in ``root`` if it is not there; see `data_modules.mini.ensure_wanted`.
        cache: folder for indexes of large annotation files; None = ``$DATASEG_CACHE``, else the user's cache folder.
    """

    def __init__(
        self,
        train: dict[str, Reader] | None = None,
        val: dict[str, Reader] | None = None,
        ratios: dict[str, float] | None = None,
        ratio_exponent: float = 1,
        root: str | Path = "data",
        train_transform: TrainTransform = TrainTransform(),  # noqa: B008 (keeps nothing from sample to sample)
        eval_transform: ResizeShortestEdge = ResizeShortestEdge(),  # noqa: B008 (frozen)
        test_time_augmentation: TestTimeAugmentation = TestTimeAugmentation(),  # noqa: B008 (frozen)
        batch_size: int = 16,
        eval_batch_size: int = 1,
        eval_subset: int | None = None,
        num_workers: int = -1,
        prefetch_factor: int = 2,
        seed: int = 0,
        mixed: bool = False,
        on_error: OnError = "stop",
        missing: Missing = "stop",
        mini: MiniSpec | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if cache is not None:
            use_cache(cache)
        self.root = Path(root)
        self.ratios = active_ratios(train or {}, ratios or {}, ratio_exponent)
        self.train_readers: dict[str, Reader] = {name: (train or {})[name] for name in self.ratios}
        self.missing: Missing = missing
        self._skipped: list[NamedError] = []
        self._val: dict[str, Reader] = dict(val or {})
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.eval_subset = eval_subset
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.test_time_augmentation = test_time_augmentation
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = num_workers if num_workers >= 0 else cores
        self.prefetch_factor = prefetch_factor
        self.seed = seed
        self.mixed = mixed
        self.on_error: OnError = on_error
        self.mini = mini
        self._ready: set[int] = set()
        self._streams: dict[str, Stream] = {}
        self._read_classes()
        self._check()

    def _read_classes(self) -> None:
        """Of the datasets whose files state them; the network is built for them."""
        for name, reader in [*self.train_readers.items(), *self._val.items()]:
            try:
                reader.read_classes(self.root)
            except MissingDataError as error:
                raise UserError(explain_missing([(name, error)], 1, self.root)) from error

    def _check(self) -> None:
        if self.eval_subset is not None and self.eval_subset < 1:
            raise UserError(f"data.eval_subset={self.eval_subset} is a number of images, 1 or more; null takes all")
        semantic = any(Task.SEMANTIC in reader.tasks for reader in self._val.values())
        if self._val and not semantic and not self.test_time_augmentation.is_plain:
            raise UserError(
                "data.test_time_augmentation changes semantic tasks only, and no dataset of data.val has one: leave it"
                " out"
            )
        for name, reader in self.train_readers.items():
            if reader.gives == "map" and reader.tasks[0] is Task.INSTANCE:
                raise UserError(
                    f"data.train.{name}: {reader.title} is trained by the first of its tasks, and a map says of stuff"
                    " only that it is no instance: train it as tasks: [panoptic]"
                )
            if reader.gives == "masks" and reader.tasks[0] is Task.SEMANTIC:
                raise UserError(f"data.train.{name}: {reader.title} has masks that may overlap: its task is instance")
        for name, reader in self._val.items():
            if reader.gives == "boxes":
                raise UserError(f"data.val.{name}: {reader.title} has boxes only, no metric here can score them")
            if reader.gives == "map" and Task.INSTANCE in reader.tasks:
                raise UserError(
                    f"data.val.{name}: {reader.title} has maps, and mask AP is scored against masks that may overlap:"
                    " leave instance out of its tasks, and evaluate on the instance annotations as a dataset of their"
                    " own, as in conf/data/coco_instances_val.yaml"
                )
            if reader.gives == "masks" and set(reader.tasks) != {Task.INSTANCE}:
                raise UserError(f"data.val.{name}: {reader.title} has masks that may overlap: its task is instance")
            other = self.train_readers.get(name)
            if other is not None and other.vocabulary != reader.vocabulary:
                raise UserError(
                    f"dataset {name!r} trains with vocabulary {other.vocabulary.name!r} and is evaluated with "
                    f"{reader.vocabulary.name!r}: give the two different names, or one vocabulary"
                )

    # -------------------------------------------------------------------------------------- what others ask

    @cached_property
    def val_readers(self) -> dict[str, Reader]:
        """Readers to evaluate on, by name; with ``missing="skip"``, those whose files are there when first asked.

        Raises:
            UserError: ``missing="skip"``, and none is there.
        """
        if self.missing == "stop":
            return self._val
        self.make_mini()
        present, self._skipped = split_missing(self._val, self.root)
        return present

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Vocabulary of every dataset that is trained on or evaluated; known before `setup`."""
        return {name: reader.vocabulary for name, reader in {**self.val_readers, **self.train_readers}.items()}

    @property
    def specs(self) -> dict[str, DatasetSpec]:
        """Vocabulary and evaluated tasks of every dataset; known before `setup`."""
        tasks = {name: reader.tasks for name, reader in self.val_readers.items()}
        areas = {name: reader.areas for name, reader in self.val_readers.items()}
        resize = str(self.eval_transform)
        return {
            name: DatasetSpec(
                vocabulary,
                tasks.get(name, ()),
                self.test_time_augmentation,
                areas.get(name, "stored"),
                resize,
                is_trained=name in self.train_readers,
            )
            for name, vocabulary in self.vocabularies.items()
        }

    @property
    def tasks(self) -> dict[str, list[Task]]:
        """Tasks each evaluation set is scored by, in the order of the loaders."""
        return {name: list(reader.tasks) for name, reader in self.val_readers.items()}

    # ------------------------------------------------------------------------------------------ Lightning

    def require_files(self, stage: str) -> None:
        """Look for all files this stage needs, without reading any; makes the mini suite if it is wanted.

        For the command line, ahead of everything else: a missing dataset shows within a second.

        Raises:
            UserError: as `setup`.
        """
        self.make_mini()
        self._locate(self._wanted(stage))

    def make_mini(self) -> None:
        """Make the mini suite if it is wanted and not there.

        Raises:
            UserError: see `ensure_wanted`.
        """
        if self.mini is not None:
            ensure_wanted(self.root, self.mini)

    def setup(self, stage: str) -> None:
        """Find the datasets this stage needs, all of them before any is read, then index them.

        Raises:
            UserError: some are missing: one message with all of them, the files looked for and where to get them.
        """
        wanted = [(name, reader) for name, reader in self._wanted(stage) if id(reader) not in self._ready]
        self._locate(wanted)
        if self._skipped:
            log.warning(tell_skipped(self._skipped, len(self._val), self.root))
            self._skipped = []
        for name, reader in wanted:
            reader.read()
            survey(reader, partial(_tell, name))
            self._ready.add(id(reader))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images, and what was dropped, mended or not found, of each dataset that was read; by role and name.

        "evaluated": images of the subset that is evaluated while training.
        """
        readers = [("train", name, reader) for name, reader in self.train_readers.items()]
        readers += [("val", name, reader) for name, reader in self.val_readers.items()]
        at_most = self._evaluated_at_most()
        found = {}
        for role, name, reader in readers:
            if id(reader) in self._ready:
                counts = {what: count for what, count in reader.counts.items() if count}
                if role == "val" and at_most is not None:
                    counts["evaluated"] = min(at_most, len(reader))
                found[f"{role} {name}"] = {"images": len(reader), **counts}
        return found

    def _evaluated_at_most(self) -> int | None:
        """Images of each evaluation set that are evaluated now; None = all."""
        if self.eval_subset is None or self.trainer is None or self.trainer.state.fn is not TrainerFn.FITTING:
            return None
        return self.eval_subset

    def state_dict(self) -> dict[str, Any]:
        """What the trained datasets hold, for `load_state_dict`: fingerprints ``[N]`` by name, on the first rank."""
        return {name: torch.from_numpy(found.view(np.int32)) for name, found in self._fingerprints.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn of trained datasets that are not those that the run was trained on so far."""
        for name, now in self._fingerprints.items():
            then = state_dict[name].numpy().view(np.uint32) if name in state_dict else now
            both = min(len(then), len(now))
            differ = int((then[:both] != now[:both]).sum()) + abs(len(then) - len(now))
            if differ:
                log.warning(
                    "%s: %d samples differ from those that the run was trained on so far (%d now, %d then): it does not"
                    " come out as one that never stopped",
                    *(name, differ, len(now), len(then)),
                )

    @cached_property
    def _fingerprints(self) -> dict[str, NDArray[np.uint32]]:
        if self.trainer is None or not self.trainer.is_global_zero:
            return {}
        ready = {name: reader for name, reader in self.train_readers.items() if id(reader) in self._ready}
        return {name: reader.fingerprints() for name, reader in ready.items()}  # none where a checkpoint is evaluated

    def _wanted(self, stage: str) -> list[tuple[str, Reader]]:
        if stage == "fit" and not self.train_readers:
            raise UserError("nothing to train on: give data.train and data.ratios")
        return [*self.val_readers.items(), *(self.train_readers.items() if stage == "fit" else ())]

    def _locate(self, wanted: list[tuple[str, Reader]]) -> None:
        missing = find_missing(wanted, self.root)
        if missing:
            raise UserError(explain_missing(missing, len(wanted), self.root))

    def _schedule(self, trainer: Trainer) -> Schedule:
        return Schedule(
            seed=self.seed,
            ratios=self.ratios,
            batch_size=self.batch_size,
            world_size=trainer.world_size,
            rank=trainer.global_rank,
            accumulate=trainer.accumulate_grad_batches,
            mixed=self.mixed,
        )

    def summary(self) -> dict[str, str]:
        """What somebody who starts a training should know of the data, by heading; after `setup`.

        Images of each dataset and what was left out of it, ratios, and samples of a step.
        """
        trainer = self.trainer
        assert trainer is not None
        processes, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        split = f", in {processes} x {accumulated} batches (processes x accumulated)"
        samples = self._schedule(trainer).batch_size
        ratios = " : ".join(f"{name} {ratio:g}" for name, ratio in self.ratios.items())
        return {
            "trains on": _counted(self.train_readers),
            "evaluates on": _counted(self.val_readers) + self._subset_told(),
            "ratios": f"{ratios}; {samples} samples a step{split if processes * accumulated > 1 else ''}",
        }

    def _subset_told(self) -> str:
        return "" if self.eval_subset is None else f"; while training, on at most {self.eval_subset:,} of each"

    def train_dataloader(self) -> CombinedLoader:
        trainer = self.trainer
        assert trainer is not None
        limit = trainer.limit_train_batches
        if isinstance(limit, int) and limit % trainer.accumulate_grad_batches:
            raise UserError(
                f"trainer.limit_train_batches={limit} must be a multiple of trainer.accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches}: an epoch may not end within a step"
            )
        schedule = self._schedule(trainer)
        if schedule.batch_size != self.batch_size:
            shares = ", ".join(f"{name} {share}" for name, share in schedule.shares.items())
            rank_zero_info(
                f"mixed batches: {schedule.batch_size} samples a step ({shares}), not {self.batch_size}: the ratios"
                " divide no fewer"
            )
        workers = share_out(self.num_workers, self.ratios)
        self._close()
        self._streams = {
            name: Stream(
                dataset=name,
                task=reader.tasks[0],
                view=TrainDataset(reader, self.train_transform, self.on_error),
                schedule=schedule,
                micro_step=lambda: trainer.global_step * trainer.accumulate_grad_batches,
                num_workers=workers[name],
                prefetch_factor=self.prefetch_factor,
            )
            for name, reader in self.train_readers.items()
        }
        return CombinedLoader(self._streams, mode="min_size")

    def teardown(self, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._streams = {}

    def val_dataloader(self) -> list[DataLoader[Sample]]:
        trainer = self.trainer
        world_size, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        return [
            evaluation_loader(
                dataset=name,
                reader=reader,
                resize=self.eval_transform,
                batch_size=self.eval_batch_size,
                world_size=world_size,
                rank=rank,
                num_workers=min(self.num_workers, 4),
                prefetch_factor=self.prefetch_factor,
                at_most=self._evaluated_at_most(),
            )
            for name, reader in self.val_readers.items()
        ]

    def test_dataloader(self) -> list[DataLoader[Sample]]:
        return self.val_dataloader()


def _counted(readers: Mapping[str, Reader]) -> str:
    """Images of each dataset, and what reading it left out or mended."""
    told = []
    for name, reader in readers.items():
        told.append(f"{name} {len(reader):,} images" + (f" ({', '.join(reader.counted)})" if reader.counted else ""))
    return ", ".join(told) or "nothing"


def _tell(name: str, message: str, benign: bool = False) -> None:
    if not benign:
        raise UserError(f"{name}: {message}")
    rank_zero_info(f"warning: {name}: {message}")


def active_ratios(train: Mapping[str, Any], ratios: Mapping[str, float], exponent: float = 1) -> dict[str, float]:
    """The ratios above 0 to the power of ``exponent`` (see `tempered`), by name in sorted order.

    Raises:
        UserError: a ratio for a dataset that ``train`` lacks, or one that is negative.
    """
    unknown = sorted(set(ratios) - set(train))
    if unknown:
        raise UserError(f"data.ratios names {names_of(unknown)}, but data.train has {names_of(list(train))}")
    active = {name: float(ratios[name]) for name in sorted(ratios) if ratios[name] != 0}
    if not active:
        return active
    active = tempered(active, exponent)
    blocks(active)
    return active

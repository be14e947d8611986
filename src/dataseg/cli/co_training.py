"""Train an experiment (fit) or evaluate a checkpoint (eval).

LightningCLI over `CoTrainedSegmenter` and a data module::

    dataseg fit --exp mini_all[+OVERLAY...] [--config conf/strategy/ddp.yaml] [--run NAME] [overrides]
    dataseg eval --exp mini_all --ckpt_path runs/mini_all/version_0/checkpoints/best.ckpt
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from filelock import SoftFileLease
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from dataseg.checkpoint import files, resume
from dataseg.checkpoint.consolidate import MAKE_WHOLE
from dataseg.checkpoint.load import require_checkpoint
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.cli.errors import message_of
from dataseg.config import extends as config_files
from dataseg.config.build import read_plain
from dataseg.config.diff import ABOUT_THE_RUN, differences
from dataseg.config.misspelt import explain
from dataseg.config.renamed import with_current_names
from dataseg.io.lock import reserved
from dataseg.structures import DatasetSpec, UserError
from dataseg.training.module import CoTrainedSegmenter


def _specs(data: LightningDataModule) -> dict[str, DatasetSpec]:
    return data.specs  # type: ignore[attr-defined, no-any-return]


_FETCHED = "model.network.backbone.pretrained"
"""Where the backbone's first weights come from: nothing depends on it once others are given."""

_NOT_EVALUATED = {"model.optimization", "model.criterion", "model.weights", _FETCHED}
"""Settings that an evaluation does not depend on."""


def _fetch_nothing(section: Namespace) -> None:
    """Set ``pretrained`` to false wherever it is in a network's configuration: all its weights are given."""
    for key in [key for key in section.keys() if key.rpartition(".")[2] == "pretrained"]:
        section[key] = False


class _StaysReserved(Callback):
    """Ends a run that has lost its folder: stopped for minutes, as a laptop that sleeps, it could be another's now."""

    def __init__(self, lease: SoftFileLease) -> None:
        self.lease = lease

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (lost := self.lease.compromise) is not None:
            raise UserError(
                f"the lock {lost.lock_file} is lost ({lost.reason}), so another process may have the run: look whether"
                " one does, and go on with RESUME=auto"
            )


class CoTrainingCLI(LightningCLI):
    """LightningCLI, the link from data to module, and ``runs/<exp>/<run>/`` as the place of all that a run writes."""

    _step: int | None = None  # that is resumed after
    _lease: SoftFileLease | None = None  # of the run's folder, on the rank that writes there

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._held:  # until the sub-command has ended, however it does
            super().__init__(*args, **kwargs)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Of option names in full: a misspelled ``--trainer.max_step`` is refused, not taken for the next longer."""
        return super().init_parser(allow_abbrev=False, exit_on_error=False, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments, with what their configuration files extend; a checkpoint must be one.

        Raises:
            ArgumentError: they cannot be understood; one line, with the nearest setting where one is not known.
            UserError: a checkpoint that is none, or see `dataseg.config.extends`.
        """
        try:
            if args is None or isinstance(args, list):
                words = config_files.expand(sys.argv[1:] if args is None else args)
                self.config = parser.parse_args(list(_with_folders(words)))
            else:
                self.config = parser.parse_object(args)
        except ArgumentError as error:
            parsers = parser, *getattr(self, "_subcommand_parsers", {}).values()
            known = [key for own in parsers for key in own.get_defaults().keys()]
            raise ArgumentError(None, explain(str(error), known)) from error
        given = self.config.get(self.config.get("subcommand"), {})
        for key in ("ckpt_path", "resume"):
            if given.get(key) not in (None, "auto"):
                require_checkpoint(Path(given[key]))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            f"--{config_files.KEY}", type=str | None, default=None, help="configuration file that this one builds on"
        )
        parser.add_argument(
            "--exp",
            type=str,
            default="unnamed",
            help="name of the experiment: file of conf/exp, +overlay for files of conf/with; after --config: any name",
        )
        parser.add_argument("--run", type=str | None, default=None, help="name of the run; default version_<n>")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all experiments")
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="auto: go on from the newest good checkpoint of the run (without --run: of the newest run), or start"
            " if there is none; else a checkpoint",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="of products of float32 matrices on GPUs (torch.set_float32_matmul_precision); for results that repeat"
            " to the last bit there, --trainer.deterministic=true",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data", "model.datasets", compute_fn=_specs, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Find what to resume and the data's files before a network is built or weights are downloaded."""
        if self.subcommand is None:
            return
        torch.set_float32_matmul_precision(self.config[self.subcommand].float32_matmul_precision)
        self._choose_run(self.config[self.subcommand])
        if self.subcommand == "fit":
            self._resume()
        elif self.config[self.subcommand].get("ckpt_path"):
            self._compare_method(Path(self.config[self.subcommand].ckpt_path))
        self.build_data().require_files(self.subcommand)
        config = self.config[self.subcommand]
        self._prepare_trainer(config)
        if config.ckpt_path or config.model.weights:
            _fetch_nothing(config.model.network)

    def _choose_run(self, config: Namespace) -> None:
        """Name the run, and reserve its folder for this process before anything in it is read."""
        experiment = config.runs / config.exp
        if self.subcommand == "fit" and config.resume == "auto" and config.run is None:
            config.run = resume.newest_run(experiment)
        elif self.subcommand == "validate" and config.run and RunFolder(experiment / config.run).checkpoints.exists():
            config.run = f"{config.run}_eval"  # leaves the training run's scores and configuration as they are
        if rank_zero_only.rank or config.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            folder = RunFolder(experiment / config.run) if config.run else RunFolder.new(experiment)
            folder.path.mkdir(parents=True, exist_ok=True)
            self._held.callback(_remove_empty, folder.path, experiment)  # of a run that came to nothing
            remedy = "wait for its end, stop it (SIGTERM: it saves first), or take another RUN"
            self._lease = self._held.enter_context(reserved(folder.lock, f"run {folder.path}", remedy))
        except PermissionError as error:
            raise UserError(f"{experiment} cannot be written to ({error}): take another folder, RUNS=...") from error
        config.run = folder.path.name

    def build_data(self) -> Any:
        """The configuration's data module alone."""
        parser = ArgumentParser()
        parser.add_subclass_arguments(LightningDataModule, "data")
        config = Namespace(data=self._get(self.config, "data"))  # type: ignore[no-untyped-call]
        return parser.instantiate(config).data

    def _resume(self) -> None:
        config = self.config[self.subcommand]
        if config.resume is None:
            own = RunFolder(config.runs / config.exp / (config.run or "")).checkpoints
            if config.run and files.step_files(own):
                raise UserError(
                    f"{own} has the checkpoints of an earlier run: RESUME=auto goes on, or take another RUN"
                )
            return
        if config.resume != "auto":
            config.ckpt_path = config.resume
            self._require_whole(Path(config.resume))
            source = RunFolder.of_file(Path(config.resume))
            if source.checkpoints == Path(config.resume).absolute().parent and source.experiment != config.exp:
                rank_zero_warn(f"resuming a run of {source.experiment} with the data and settings of {config.exp}")
            return
        found = resume.find(config.runs / config.exp, config.run)
        if found is None:
            rank_zero_info("nothing to resume: a new run")
            return
        self._require_whole(found.checkpoint)
        config.run, config.ckpt_path = found.run, str(found.checkpoint)
        self._step = found.step
        rank_zero_info(f"resuming run {found.run} after step {found.step}")
        then, now = self._configs(found.checkpoint)
        changes = differences([then, now], ABOUT_THE_RUN - {"seed_everything"} | {_FETCHED}) if then else {}
        if changes:
            run = RunFolder.of_file(found.checkpoint)
            kept = run.earlier_config(found.step)
            rank_zero_only(shutil.copy2)(run.config, kept)
            rank_zero_warn(f"going on with other settings than before, which {kept} keeps: {_listed(changes)}")

    def _require_whole(self, checkpoint: Path) -> None:
        if checkpoint.is_dir() and "FullySharded" not in str(self.config[self.subcommand].trainer.strategy):
            advice = f"take STRATEGY=fsdp, or {MAKE_WHOLE.format(checkpoint)}"
            raise UserError(f"{checkpoint} is sharded: {advice}")

    def _compare_method(self, checkpoint: Path) -> None:
        """Warn where a checkpoint was trained with another method than it is evaluated with."""
        self._require_whole(checkpoint)
        then, now = self._configs(checkpoint)
        methods = [{"model": config["model"]} for config in (then, now)] if "model" in then else [{}]
        changes = differences(methods, _NOT_EVALUATED)
        if changes:
            rank_zero_warn(
                f"{checkpoint} was trained with other settings than it is evaluated with: {_listed(changes)}"
            )

    def _configs(self, checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Configuration of the run that a checkpoint lies in, empty where that is not known; and of this one."""
        try:
            then = read_plain(RunFolder.of_file(checkpoint).config)
        except UserError:
            then = None
        now = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        return with_current_names(then) if isinstance(then, Mapping) else {}, yaml.safe_load(now)

    def _prepare_trainer(self, config: Namespace) -> None:
        """TensorBoard's logger names the run's folder; those of ``trainer.logger`` without a folder get that one."""
        hidden_from = None if self._step is None else self._step + 1  # curves of steps that will be done again
        self._board = TensorBoardLogger(
            config.runs, name=config.exp, version=config.run, default_hp_metric=False, purge_step=hidden_from
        )
        if config.trainer.enable_progress_bar is False:  # Lightning refuses it beside a callback that is one
            callbacks = config.trainer.callbacks or []
            config.trainer.callbacks = [c for c in callbacks if not c.class_path.endswith("ProgressBar")]
        if config.trainer.logger is False:
            raise UserError("trainer.logger=false: the run's folder is the logger's; leave it out")
        for logger in _as_list(config.trainer.logger):
            if logger.init_args.get("save_dir") == _RUN_FOLDER:
                logger.init_args.save_dir = self._board.log_dir

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        others = _as_list(self._get(self.config_init, "trainer.logger"))
        kwargs.setdefault("logger", [self._board, *others])
        trainer = super().instantiate_trainer(**kwargs)
        if any(isinstance(callback, BackboneFinetuning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "BackboneFinetuning adds parameter groups on the way, which the optimiser here has from the start:"
                " freeze with model.optimization.frozen='[\"backbone.*\"]', or let the backbone learn later and less"
                " with model.optimization.backbone_warmup_steps and .backbone_lr_factor"
            )
        if self._lease is not None:
            trainer.callbacks.append(_StaysReserved(self._lease))  # type: ignore[attr-defined]
        return trainer


_RUN_FOLDER = ""
"""``save_dir`` of a logger that was given none."""

_NEED_A_FOLDER = ("CSVLogger", "TensorBoardLogger")
"""Loggers of Lightning whose ``save_dir`` has no default."""


def _with_folders(words: Sequence[str]) -> Iterator[str]:
    """Let ``--trainer.logger=CSVLogger`` do: its folder is the run's unless another is given after it."""
    for word in words:
        yield word
        option, _, name = word.partition("=")
        if option in ("--trainer.logger", "--trainer.logger+") and name.rpartition(".")[2] in _NEED_A_FOLDER:
            yield f"--trainer.logger.save_dir={_RUN_FOLDER}"


def _as_list(loggers: Any) -> list[Any]:
    """Of ``trainer.logger``: one, several, or True or None for none beside TensorBoard's."""
    if loggers is None or isinstance(loggers, bool):
        return []
    return list(loggers) if isinstance(loggers, list | tuple) else [loggers]


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):  # something lies in it
        for folder in folders:
            folder.rmdir()


def _listed(changes: dict[str, list[str]]) -> str:
    return "; ".join(f"{key} {now}, was {then}" for key, (then, now) in changes.items())


_NOTICES = (
    "\N{ELECTRIC LIGHT BULB} Tip:",
    "GPU available:",
    "TPU available:",
    "`Trainer.fit` stopped:",
    "Restoring states",
)
"""How lines of Lightning begin that advertise, or repeat what the run itself tells."""


def _leave_out_notices() -> None:
    """Of libraries, about what the user can do nothing about."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_of_use)
    # Lightning 2.6 calls what torch 2.15 has deprecated
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec", FutureWarning)
    # arguments are given from Python, and those of the notebook or test that runs are none of ours
    warnings.filterwarnings("ignore", r"LightningCLI's args parameter")
    # the datasets' order is our own, and images of evaluation are loaded by as many processes as data.num_workers says
    warnings.filterwarnings("ignore", r".*does not have many workers")


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES)


def run(args: ArgsType = None) -> CoTrainingCLI:
    """Run one sub-command, fit or validate; returns what it has built.

    Raises:
        ValueError: a mistake of the user, see `dataseg.cli.errors`.
    """
    _leave_out_notices()
    return CoTrainingCLI(
        CoTrainedSegmenter,
        LightningDataModule,
        subclass_mode_data=True,
        args=args,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
    )


class Experiment(NamedTuple):
    """What an experiment's configuration describes; ``trainer.fit(module, data)`` trains it."""

    module: CoTrainedSegmenter
    data: LightningDataModule
    trainer: Trainer


class _InPython(CoTrainingCLI):
    """Builds what the command line would run."""

    def before_instantiate_classes(self) -> None:
        self._prepare_trainer(self.config)
        self.build_data().require_files("fit")


def experiment(name: str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Build an experiment as ``dataseg fit --exp NAME`` does, without running it: for scripts and notebooks.

    Args:
        name: file of ``conf/exp``, ``+overlay`` for files of ``conf/with``: ``mini_all+ema``.
        overrides: of the configuration, by dotted key as on the command line: ``{"trainer.max_steps": 50}``.

    Raises:
        UserError: no such experiment, a key that is none, a value of another type, or data that are missing.
    """
    words = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (overrides or {}).items()
    ]
    _leave_out_notices()
    try:
        built = _InPython(
            CoTrainedSegmenter,
            LightningDataModule,
            subclass_mode_data=True,
            args=["--exp", name, *words],
            run=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
        )
    except ArgumentError as error:
        raise UserError(message_of(error) or str(error)) from error
    return Experiment(built.model, built.datamodule, built.trainer)


def main(args: ArgsType = None) -> int:
    """Command line; the exit status is 0."""
    run(args)
    return 0

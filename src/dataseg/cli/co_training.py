"""Train an experiment (fit) or evaluate a checkpoint (validate).

LightningCLI over `CoTrainedSegmenter` and a data module::

    dataseg fit --config conf/exp/mini_all.yaml [--config conf/with/OVERLAY.yaml] [--exp NAME --run NAME] [overrides]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from dataseg.checkpoint import files, resume
from dataseg.checkpoint.consolidate import MAKE_WHOLE
from dataseg.checkpoint.load import require_checkpoint
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.config import extends as config_files
from dataseg.config.diff import ABOUT_THE_RUN, differences
from dataseg.config.renamed import with_current_names
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


class CoTrainingCLI(LightningCLI):
    """LightningCLI, the link from data to module, and ``runs/<exp>/<run>/`` as the place of all that a run writes."""

    _step: int | None = None  # that is resumed after

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Of option names in full: a misspelled ``--trainer.max_step`` is refused, not taken for the next longer."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments, with what their configuration files extend; a checkpoint must be one."""
        if args is None or isinstance(args, list):
            self.config = parser.parse_args(config_files.expand(sys.argv[1:] if args is None else args))
        else:
            self.config = parser.parse_object(args)
        given = self.config.get(self.config.get("subcommand"), {})
        for key in ("ckpt_path", "resume"):
            if given.get(key) not in (None, "auto"):
                require_checkpoint(Path(given[key]))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            f"--{config_files.KEY}", type=str | None, default=None, help="configuration file that this one builds on"
        )
        parser.add_argument("--exp", type=str, default="unnamed", help="name of the experiment")
        parser.add_argument("--run", type=str | None, default=None, help="name of the run; default version_<n>")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all experiments")
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="auto: go on from the newest good checkpoint of the run (without --run: of the newest run), or start"
            " if there is none; else a checkpoint",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data", "model.datasets", compute_fn=_specs, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Find what to resume and the data's files before a network is built or weights are downloaded."""
        if self.subcommand is None:
            return
        if self.subcommand == "fit":
            self._resume()
        elif self.config[self.subcommand].get("ckpt_path"):
            self._compare_method(Path(self.config[self.subcommand].ckpt_path))
        self.build_data().require_files(self.subcommand)
        config = self.config[self.subcommand]
        if config.ckpt_path or config.model.weights:
            _fetch_nothing(config.model.network)

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
            then = yaml.safe_load(RunFolder.of_file(checkpoint).config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            then = None
        now = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_unset=False)
        return with_current_names(then) if isinstance(then, Mapping) else {}, yaml.safe_load(now)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        runs, exp, run = (self._get(self.config, key) for key in ("runs", "exp", "run"))
        if self.subcommand == "validate" and run is not None and RunFolder(runs / exp / run).checkpoints.exists():
            run = f"{run}_eval"  # leaves the training run's scores and configuration as they are
        hidden_from = None if self._step is None else self._step + 1  # curves of steps that will be done again
        logger = TensorBoardLogger(runs, name=exp, version=run, default_hp_metric=False, purge_step=hidden_from)
        kwargs.setdefault("logger", logger)
        return super().instantiate_trainer(**kwargs)


def _listed(changes: dict[str, list[str]]) -> str:
    return "; ".join(f"{key} {now}, was {then}" for key, (then, now) in changes.items())


def run(args: ArgsType = None) -> CoTrainingCLI:
    """Run one sub-command, fit or validate; returns what it has built.

    Raises:
        ValueError: a mistake of the user, see `dataseg.cli.errors`.
    """
    return CoTrainingCLI(
        CoTrainedSegmenter,
        LightningDataModule,
        subclass_mode_data=True,
        args=args,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
    )


def main(args: ArgsType = None) -> int:
    """Command line; the exit status is 0."""
    run(args)
    return 0

"""The command line: LightningCLI over `CoTrainedSegmenter` and a data module.

``dataseg fit --config conf/base.yaml --config conf/exp/mini_all.yaml [--exp NAME --run NAME] [overrides]``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from dataseg.module import CoTrainedSegmenter
from dataseg.structures import DatasetSpec, UserError


def _specs(data: LightningDataModule) -> dict[str, DatasetSpec]:
    return data.specs  # type: ignore[attr-defined, no-any-return]


class CoTrainingCLI(LightningCLI):
    """LightningCLI, the link from data to module, and ``runs/<exp>/<run>/`` as the place of all that a run writes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--exp", type=str, default="unnamed", help="name of the experiment")
        parser.add_argument("--run", type=str | None, default=None, help="name of the run; default version_<n>")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all experiments")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("data", "model.datasets", compute_fn=_specs, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Look for the data's files before a network is built or weights are downloaded."""
        parser = ArgumentParser()
        parser.add_subclass_arguments(LightningDataModule, "data")
        config = Namespace(data=self._get(self.config, "data"))  # type: ignore[no-untyped-call]
        data = parser.instantiate_classes(config).data
        data.require_files(self.subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        runs, exp, run = (self._get(self.config, key) for key in ("runs", "exp", "run"))
        kwargs.setdefault("logger", TensorBoardLogger(save_dir=runs, name=exp, version=run, default_hp_metric=False))
        return super().instantiate_trainer(**kwargs)


def main(args: ArgsType = None) -> CoTrainingCLI:
    """Run one sub-command: fit, validate.

    A user's mistake (`UserError`) ends in its message alone and exit status 1.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest version
    try:
        return CoTrainingCLI(
            CoTrainedSegmenter,
            LightningDataModule,
            subclass_mode_data=True,
            args=args,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
        )
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

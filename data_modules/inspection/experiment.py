"""An experiment's data module, built from the configuration files and overrides that training takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from data_modules.co_training import CoTraining
from data_modules.formats.reader import Reader
from dataseg.cli.co_training import CoTrainingCLI
from dataseg.structures import UserError
from dataseg.text.embeddings import TextEmbeddings
from dataseg.training.module import CoTrainedSegmenter

Options = Mapping[str, tuple[type, Any, str]]
"""Further command line options: type, default, help."""


class Experiment(CoTrainingCLI):
    """The command line of training, of which only the data module is built.

    Attributes:
        data: not set up yet.
    """

    data: CoTraining

    def __init__(self, options: Options, args: ArgsType = None) -> None:
        self._options = options
        super().__init__(
            CoTrainedSegmenter,
            LightningDataModule,
            subclass_mode_data=True,
            run=False,
            args=args,
            seed_everything_default=0,
            save_config_callback=None,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        for name, (kind, default, help_) in self._options.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=help_)

    def instantiate_classes(self) -> None:
        """Only the data."""
        data = self.build_data()
        if not isinstance(data, CoTraining):
            raise UserError(f"data.class_path must be data_modules.CoTraining, not {type(data).__name__}")
        self.data = data

    def option(self, name: str) -> Any:
        """A command line option's value."""
        return self.config[name]

    @property
    def folder(self) -> Path:
        """``runs/<experiment>``."""
        return Path(self.config["runs"]) / str(self.config["exp"])

    def readers(self) -> dict[tuple[str, str], Reader]:
        """By ("train" or "val", name); the training sets that have a ratio, and all evaluation sets."""
        train = {("train", name): reader for name, reader in self.data.train_readers.items()}
        return train | {("val", name): reader for name, reader in self.data.val_readers.items()}

    def text(self) -> TextEmbeddings:
        """The experiment's own text embeddings."""
        parser = ArgumentParser()
        parser.add_class_arguments(TextEmbeddings, "text")
        config = self.config["model"]["text"]
        arguments = config.init_args if hasattr(config, "init_args") else config
        text: TextEmbeddings = parser.instantiate(Namespace(text=arguments)).text  # type: ignore[no-untyped-call]
        return text

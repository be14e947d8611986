"""The folder of a run, ``runs/<experiment>/<run>``, and the names of what lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


@dataclass(frozen=True)
class RunFolder:
    """The one owner of these names.

    Attributes:
        path: of the folder, there or not.
    """

    path: Path

    @classmethod
    def of(cls, trainer: Trainer) -> RunFolder:
        """Of the run of a trainer; without a logger, the trainer's root. All ranks must ask (the first one tells)."""
        return cls(Path(trainer.log_dir or trainer.default_root_dir))

    @classmethod
    def of_file(cls, path: Path) -> RunFolder:
        """The folder that a checkpoint or replay file of a run was written in."""
        return cls(path.absolute().parent.parent)

    @classmethod
    def new(cls, experiment: Path) -> Self:
        """Make the folder of the next ``version_<n>``, which no other process gets."""
        numbers = [int(path.name[8:]) for path in experiment.glob("version_*") if path.name[8:].isdecimal()]
        number = max(numbers, default=-1)
        while True:
            number += 1
            try:
                (experiment / f"version_{number}").mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(experiment / f"version_{number}")

    @property
    def experiment(self) -> str:
        """Name of the experiment that the run belongs to."""
        return self.path.parent.name

    @property
    def config(self) -> Path:
        """The resolved configuration, as LightningCLI saves it."""
        return self.path / "config.yaml"

    def earlier_config(self, step: int) -> Path:
        """The configuration until a step, after which the run went on with other settings."""
        return self.path / f"config.until_step_{step}.yaml"

    @property
    def lock(self) -> Path:
        """Held by the process that writes to the folder (of several ranks the first); see `dataseg.io.lock`."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """Scores of the newest evaluation, and of all before it."""
        return self.path / "metrics.json"

    @property
    def progress(self) -> Path:
        """How far a run that goes on is: ``{"step": optimisation steps}``."""
        return self.path / "progress.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints; see `dataseg.checkpoint.files`."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        """Folder of the steps at which a loss or gradient was not finite."""
        return self.path / "replay"

    @property
    def submissions(self) -> Path:
        """Folder of predictions in the official formats."""
        return self.path / "submissions"

    def events(self) -> list[Path]:
        """TensorBoard's event files, the oldest first."""
        return sorted(self.path.glob("events.out.tfevents.*"))

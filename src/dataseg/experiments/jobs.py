"""One run of a suite: its command, its folder, and how far it is."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dataseg.checkpoint.files import step_files
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.config.extends import lineage
from dataseg.experiments.suite import Row, Suite
from dataseg.io.json_files import write_json
from dataseg.io.shipped import find
from dataseg.structures import UserError

COMMAND, OUTPUT, SUBMITTED = "command.json", "output.txt", "submitted.json"
"""Files that a suite adds to a run's folder: what was asked for, what it printed, its number on a cluster."""

MACHINE = (
    "--data.root",
    "--data.cache",
    "--data.num_workers",
    "--data.prefetch_factor",
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.num_nodes",
    "--config=conf/strategy/",
)
"""Arguments that say where and on what a run is computed, not what."""

_TAIL = 4096  # bytes at the output's end that are searched for an error


@dataclass(frozen=True, eq=False)  # one is itself alone: it serves as a key
class Job:
    """A row with a seed.

    Attributes:
        folder: of the run, an ordinary one of the command line.
        arguments: of ``python -m dataseg.cli``.
        steps: optimisation steps.
    """

    row: Row
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    steps: int

    @property
    def name(self) -> str:
        """For display."""
        return f"{self.row.name} seed {self.seed}"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "dataseg.cli", *self.arguments]

    def is_done(self) -> bool:
        """Whether its last evaluation is there, and was asked for by this command (but for `MACHINE`)."""
        return not self.is_another() and is_complete(_read(RunFolder(self.folder).metrics), self.steps)

    def is_another(self) -> bool:
        """Whether the folder holds what another command was asked for."""
        asked = _read(self.folder / COMMAND)
        return asked is not None and _what(asked) != _what(self.arguments)

    def clear(self) -> Path | None:
        """Make room for the run to start or to go on.

        Returns:
            where an earlier run of another command was moved to.
        """
        moved = None
        if self.is_another():
            names = (self.folder.with_name(f"{self.folder.name}.old{n}") for n in range(1, 1000))
            moved = next(name for name in names if not name.exists())
            self.folder.rename(moved)
        elif not step_files(RunFolder(self.folder).checkpoints):  # curves of its first steps would come twice
            for file in (*RunFolder(self.folder).events(), RunFolder(self.folder).progress):
                file.unlink(missing_ok=True)
        write_json(self.folder / COMMAND, list(self.arguments), indent=1)
        return moved

    @property
    def submitted_as(self) -> str:
        """Number of the cluster's job that it was last submitted as; "" if it never was."""
        return str((_read(self.folder / SUBMITTED) or {}).get("job", ""))

    def note_submission(self, number: str) -> None:
        write_json(self.folder / SUBMITTED, {"job": number})

    def scores(self, suite: Suite) -> str:
        """Its scores in the suite's columns, percent."""
        metrics = _read(RunFolder(self.folder).metrics) or {}
        values = {column.title: metrics.get(column.metric) for column in suite.columns}
        return ", ".join(f"{title} {value:.1f}" for title, value in values.items() if value is not None)

    def steps_done(self) -> int:
        """Optimisation steps that the run in its folder has done."""
        return int((_read(RunFolder(self.folder).progress) or {}).get("step", 0))

    def last_error(self) -> str:
        """The last error in its output, or its last line."""
        lines = [line.strip() for line in re.split(r"[\r\n]", self._tail()) if line.strip()]
        errors = [line for line in lines if re.match(r"error: |\w*(Error|Exception|Interrupt)\b", line)]
        return (errors or lines or ["it printed nothing"])[-1][:300]

    def _tail(self) -> str:
        try:
            with (self.folder / OUTPUT).open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _what(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith(MACHINE)]


def folder_of(suite: Suite, row: Row, seed: int, runs: Path) -> Path:
    """Where a run of a suite lies below the folder of all runs."""
    return runs / suite.name / row.name / f"seed{seed}"


def is_complete(metrics: Any, steps: int) -> bool:
    """Whether the content of a ``metrics.json`` is of a run's last evaluation; ``steps``: 0 = of any length."""
    state = metrics.get("run") if isinstance(metrics, dict) else None
    if not isinstance(state, dict):
        return False
    step = state.get("step")
    return step is not None and step == state.get("max_steps") and steps in (0, step)


def jobs_of(suite: Suite, seeds: int, runs: Path, extra: Sequence[str] = (), conf: Path = Path("conf")) -> list[Job]:
    """Every run of a suite, in the order they are to be done.

    Args:
        seeds: seeds of each row, from 0.
        runs: folder of all runs; the suite's lie in a folder of its name.
        extra: overrides for all of them, after the suite's.
        conf: folder of configuration files; what it lacks of the project's own is taken from there.

    Raises:
        UserError: a file of a row that is missing, or evaluations that its steps cannot be divided into.
    """
    if seeds < 1:
        raise UserError(f"SEEDS must be 1 or more, got {seeds}")
    return [_job(suite, row, seed, runs, extra, conf) for row, seed in suite.runs(seeds)]


def _job(suite: Suite, row: Row, seed: int, runs: Path, extra: Sequence[str], conf: Path) -> Job:
    names = [f"exp/{row.exp}", *suite.overlays, *(f"with/{overlay}" for overlay in row.overlays)]
    files = [conf / f"{name}.yaml" for name in names]
    missing = [str(file) for file in files if not find(file).is_file()]
    if missing:
        raise UserError(f"suite {suite.name}, row {row.name}: there is no {', '.join(missing)}")
    steps = row.steps or _max_steps(files)
    folder = folder_of(suite, row, seed, runs)
    arguments = ["fit", *(f"--config={file}" for file in files), "--exp", row.name, "--run", folder.name]
    arguments += ["--runs", str(folder.parents[1]), f"--seed_everything={seed}"]
    arguments += ["--resume=auto", f"--trainer.max_steps={steps}"]
    if suite.validations:
        if steps % suite.validations:
            raise UserError(
                f"suite {suite.name}, row {row.name}: {steps} steps cannot be divided into {suite.validations} equal"
                " parts, each followed by an evaluation: change steps or validations"
            )
        arguments.append(f"--trainer.val_check_interval={steps // suite.validations}")
    return Job(row, seed, folder, (*arguments, *suite.args, *row.args, *extra), steps)


def _max_steps(files: Sequence[Path]) -> int:
    """As the newest of the files that states it."""
    steps = 0
    for file in files:
        for path in lineage(file):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            steps = content.get("trainer", {}).get("max_steps", steps)
    return steps


def _read(path: Path) -> Any:
    """A JSON file's content; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None

"""A suite's runs as they lie on disk. What is missing or damaged becomes a note, never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataseg.checkpoint.run_folder import RunFolder
from dataseg.config.build import parse_plain
from dataseg.config.extends import lineage
from dataseg.experiments.jobs import OUTPUT, Job, folder_of, is_complete
from dataseg.experiments.report.tensorboard_events import Events, read_events
from dataseg.experiments.suite import Row, Suite, Table
from dataseg.metrics.by_task import column_of
from dataseg.structures import UserError


@dataclass(frozen=True)
class Run:
    """One row with one seed.

    Attributes:
        metrics: content of ``metrics.json``; empty if it cannot be read.
        config: the resolved configuration; empty if it cannot be read.
        is_done: whether its last evaluation is there; others count for nothing.
        notes: what is missing, for people.
    """

    row: Row
    seed: int
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    events: Events = field(default_factory=Events)
    is_done: bool = False
    notes: tuple[str, ...] = ()

    def score(self, metric: str) -> float | None:
        """Percent; None where undefined."""
        return finite(self.metrics.get(metric))

    def history(self, metric: str) -> list[tuple[float, float]]:
        """(step, percent) of each evaluation."""
        points = [(finite(entry.get("step")), finite(entry.get(metric))) for entry in records(self.metrics, "history")]
        return [(step, value) for step, value in points if step is not None and value is not None]

    @property
    def steps(self) -> int:
        """Optimisation steps taken."""
        return int(finite(mapping(self.metrics, "run").get("step")) or 0)

    def per_class(self, metric: str) -> dict[str, float]:
        """Percent by class, of the score that ``metric`` averages; empty if it is none."""
        dataset, _, name = metric.partition(".")
        column = column_of(name)
        for group, classes in mapping(self.metrics, "per_class").items():
            if group.partition(".")[0] == dataset and isinstance(classes, dict):
                values = {c: finite(columns.get(column)) for c, columns in classes.items() if isinstance(columns, dict)}
                found = {c: value for c, value in values.items() if value is not None}
                if found:
                    return found
        return {}


def finite(value: object) -> float | None:
    """A number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def mapping(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A nested mapping; empty if there is none."""
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def records(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A nested list of mappings; empty if there is none."""
    found = content.get(key)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


@dataclass(frozen=True)
class Findings:
    """Everything a report is made from.

    Attributes:
        runs: by name of the row and seed.
        seeds: of each row, as far as any row has been run.
        ratios: sampling ratios above 0 by dataset, by name of the row; a row is left out where they are not known.
    """

    suite: Suite
    runs: dict[tuple[str, int], Run]
    seeds: int
    ratios: dict[str, dict[str, float]]

    def expected(self, table: Table) -> range:
        """Seeds that each row of a table should have."""
        return range(min(self.seeds, table.seeds or self.seeds))

    def done(self, table: Table, row: Row) -> list[Run]:
        """A row's runs that count in a table, by seed."""
        found = (self.runs.get((row.name, seed)) for seed in self.expected(table))
        return [run for run in found if run is not None and run.is_done]

    @cached_property
    def datasets(self) -> list[str]:
        """Training datasets of all rows, in order of first appearance."""
        return list(dict.fromkeys(name for ratios in self.ratios.values() for name in ratios))

    @property
    def notes(self) -> list[str]:
        """What is missing."""
        seeds: dict[tuple[str, str], list[str]] = {}
        for row, seed in self.suite.runs(self.seeds):
            run = self.runs.get((row.name, seed))
            for note in run.notes if run else ("not run",):
                seeds.setdefault((row.name, note), []).append(str(seed))
        return [f"{name}, seed {', '.join(found)}: {note}" for (name, note), found in seeds.items()]


def collect(suite: Suite, runs: Path, conf: Path = Path("conf")) -> Findings:
    """Read all runs of a suite.

    Args:
        runs: folder of all runs; the suite's lie in ``<runs>/<suite>/<row>/seed<k>``.
        conf: folder of configuration files, for the datasets of rows that were never run.

    Raises:
        UserError: no run at all.
    """
    rows = {row.name: row for table in suite.tables for row in table.rows}.values()
    seeds = [
        int(path.name.removeprefix("seed"))
        for row in rows
        for path in folder_of(suite, row, 0, runs).parent.glob("seed*")
        if path.name.removeprefix("seed").isdecimal() and path.is_dir()
    ]
    if not seeds:
        raise UserError(f"{runs / suite.name}: no runs of this suite; first: make ablation SUITE={suite.name}")
    found: dict[tuple[str, int], Run] = {}
    for row, seed in suite.runs(max(seeds) + 1):
        path = folder_of(suite, row, seed, runs)
        if path.is_dir():
            found[row.name, seed] = _read(row, seed, path)
    return Findings(suite, found, max(seeds) + 1, _ratios(suite, found, conf))


def _read(row: Row, seed: int, folder: Path) -> Run:
    notes: list[str] = []
    metrics, config = _content(RunFolder(folder).metrics, json.loads, notes), {}
    state = mapping(metrics, "run")
    is_done = is_complete(metrics, row.steps)
    if metrics and not is_done:
        steps = row.steps or state.get("max_steps")
        notes.append(f"not complete: evaluated at step {state.get('step')} of {steps}; its scores are left out")
    if not is_done and (folder / OUTPUT).is_file():
        notes.append(f"its last word: {Job(row, seed, folder, (), row.steps).last_error()}")
    if metrics or RunFolder(folder).config.exists():
        config = _content(RunFolder(folder).config, parse_plain, notes)
    events = read_events(folder) if is_done else Events()
    if is_done and not events.scalars:
        notes.append("no TensorBoard curves: left out of the charts of losses and sampling")
    return Run(row, seed, metrics, config, events, is_done, tuple(notes))


def _content(path: Path, parse: Any, notes: list[str]) -> dict[str, Any]:
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"no {path.name}")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})")
    else:
        if isinstance(content, dict):
            return content
        notes.append(f"{path.name} holds no mapping")
    return {}


def _ratios(suite: Suite, runs: Mapping[tuple[str, int], Run], conf: Path) -> dict[str, dict[str, float]]:
    """Of each row: from its runs' configuration, else from its files."""
    found = {}
    for row in (row for table in suite.tables for row in table.rows):
        configs = [run.config for (name, _), run in runs.items() if name == row.name and run.config]
        stated = [mapping(mapping(mapping(c, "data"), "init_args"), "ratios") for c in configs or _files(row, conf)]
        ratios = next((r for r in stated if r), {})
        active = {name: value for name, ratio in ratios.items() if (value := finite(ratio))}
        if active:
            found[row.name] = active
    return found


def _files(row: Row, conf: Path) -> list[dict[str, Any]]:
    """A row's configuration files, the newest first; none if they cannot be read."""
    heads = [conf / "with" / f"{overlay}.yaml" for overlay in reversed(row.overlays)]
    heads.append(conf / "exp" / f"{row.exp}.yaml")
    contents: list[dict[str, Any]] = []
    for head in heads:
        try:
            paths = reversed(lineage(head))
            contents += [_content(path, parse_plain, []) for path in paths]
        except UserError:  # such a row has no runs either, which is noted
            continue
    return contents

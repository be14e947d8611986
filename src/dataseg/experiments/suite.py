"""A suite of experiments: the rows and columns of an ablation's tables, as ``conf/suite/*.yaml`` states them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from dataseg.io.shipped import CONF, find
from dataseg.structures import UserError


@dataclass(frozen=True)
class Column:
    """One score of the tables.

    Attributes:
        metric: key of ``metrics.json``, e.g. ``ade.miou``; percent.
        title: for display.
        trained_by: dataset whose rows are trained for this score; the others are transfer.
    """

    metric: str
    title: str
    trained_by: str = ""


@dataclass(frozen=True)
class Row:
    """One experiment of a table.

    Attributes:
        exp: file of ``conf/exp`` without ``.yaml``.
        overlays: files of ``conf/with`` without ``.yaml``.
        args: further overrides of the command line.
        steps: optimisation steps; 0 = as the experiment has it.
        title: for display; default: `name`.
        paper: the paper's scores by metric.
    """

    exp: str
    overlays: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    steps: int = 0
    title: str = ""
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``exp+overlay+overlay``, and ``@steps`` where they are given: folder of its runs."""
        return "+".join([self.exp, *self.overlays]) + (f"@{self.steps}" if self.steps else "")


@dataclass(frozen=True)
class Table:
    """Rows that are compared with each other.

    Attributes:
        title: for display.
        rows: in order; a row that several tables share is run once.
        about: what is equal in all rows, and what is not.
        seeds: at most so many seeds, 0 to seeds - 1; 0 = as many as are asked for.
        baselines: by metric, the `Row.name` that differences are taken to; "" as metric = all others.
    """

    title: str
    rows: list[Row]
    about: str = ""
    seeds: int = 0
    baselines: dict[str, str] = field(default_factory=dict)

    def baseline(self, metric: str) -> Row | None:
        """The row that others are compared with by this metric."""
        name = self.baselines.get(metric, self.baselines.get(""))
        return next((row for row in self.rows if row.name == name), None)


@dataclass(frozen=True)
class Cluster:
    """What each run asks of a cluster.

    Attributes:
        nodes: machines.
        gpus: of each node, with one process for each; 0 = one process a node, on its CPUs.
        cpus: cores of each process; 0 = as many as the cluster gives.
        minutes: time limit. A run that meets it saves, is put in the queue again and goes on.
        warning: seconds before the limit at which the run is asked to save.
        partition: default: the cluster's.
        options: further ones of sbatch by their long names, e.g. ``{account: vision, constraint: h100}``.
        setup: lines of the shell before the run, e.g. ``module load cuda``.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    minutes: int = 24 * 60
    warning: int = 180
    partition: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.nodes < 1 or min(self.gpus, self.cpus) < 0 or not 0 < self.warning < 60 * self.minutes:
            raise UserError(
                "cluster: need nodes >= 1, gpus >= 0, cpus >= 0 and 0 < warning < 60 * minutes, got nodes"
                f" {self.nodes}, gpus {self.gpus}, cpus {self.cpus}, warning {self.warning} (s), minutes {self.minutes}"
            )

    @property
    def processes(self) -> int:
        """Of each node."""
        return max(1, self.gpus)


@dataclass(frozen=True)
class Suite:
    """Tables of experiments.

    Attributes:
        title: for display.
        columns: scores that every row is compared by.
        tables: the first is the main one.
        about: what the reader should know; Markdown paragraphs.
        args: overrides that all rows share.
        validations: evaluations of a run, evenly spaced, the last one at its end; 0 = as the experiment has it.
        overlays: files of ``conf`` that all rows share, e.g. ``on/mini_all``.
        cluster: what each run asks for where it is computed on one.
        name: of the file.
    """

    title: str
    columns: list[Column]
    tables: list[Table]
    about: str = ""
    args: list[str] = field(default_factory=list)
    validations: int = 0
    overlays: list[str] = field(default_factory=list)
    cluster: Cluster = field(default_factory=Cluster)
    name: str = ""

    def runs(self, seeds: int) -> Iterator[tuple[Row, int]]:
        """Every row with every seed, once: all rows of a table with the first seed, then with the next."""
        seen: set[tuple[str, int]] = set()
        for table in self.tables:
            for seed in range(min(seeds, table.seeds or seeds)):
                for row in table.rows:
                    if (row.name, seed) not in seen:
                        seen.add((row.name, seed))
                        yield row, seed


def load(path: Path | str, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite: a file, or the name of one in ``conf/suite``.

    Args:
        overrides: of its keys, e.g. ``--cluster.nodes=2``.

    Raises:
        UserError: no such file, a key that is none, a value of another type, or a baseline that is no row.
    """
    path = find(path if Path(path).suffix else f"conf/suite/{path}.yaml")
    if not path.is_file():
        folders = path.parent, CONF / "suite"
        known = ", ".join(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})) or "none"
        raise UserError(f"{path}: there is no such suite; choose one of: {known}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Suite, "suite")
    try:
        others = [f"--suite.{override.removeprefix('--')}" for override in overrides]
        config = parser.parse_args([f"--suite={path}", f"--suite.name={path.stem}", *others])
    except Exception as error:  # jsonargparse raises several types
        raise UserError(f"{path}: {error}") from error
    suite: Suite = parser.instantiate(config).suite
    for table in suite.tables:
        names = {row.name for row in table.rows}
        for metric, baseline in table.baselines.items():
            if baseline not in names:
                raise UserError(
                    f"{path}: table {table.title!r} compares {metric or 'all metrics'} with {baseline!r}, which is none"
                    f" of its rows {sorted(names)}"
                )
    return suite

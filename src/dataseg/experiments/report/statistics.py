"""The scores of a report: median and range over seeds, differences to the baseline, and what they amount to.

All scores are percent. Two rows differ clearly if their ranges over the seeds, from the least to the largest, do not
overlap; with one seed there is no range, and nothing is clear: such a row can only lie within the range of the
baseline's seeds or outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dataseg.experiments.report.collect import Findings, Run
from dataseg.experiments.suite import Column, Row, Table

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"

LEGEND = (
    "Scores are percent: median over the seeds, range from the least to the largest, and the difference to the "
    "column's baseline (ref.). A full triangle marks differences larger than the seeds' range: the ranges of the two "
    "rows do not overlap. A hollow one: one seed, which lies outside the range of the baseline's seeds. Bold: best of "
    "the column. Italic: direct transfer, the row does not train on that dataset. Paper: the published score and its "
    "difference to the published baseline, on the real datasets. n/a: the runs do not have this score."
)


@dataclass(frozen=True)
class Spread:
    """One score over the seeds."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{number(self.median)} [{self.range}]" if self.count > 1 else number(self.median)

    @property
    def range(self) -> str:
        return f"{number(self.low)}{DASH}{number(self.high)}"

    def is_apart(self, other: Spread) -> bool:
        """Whether the ranges do not overlap."""
        return self.low > other.high or self.high < other.low

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None if no value is defined."""
        found = [value for value in values if value is not None]
        return cls(median(found), min(found), max(found), len(found)) if found else None


@dataclass(frozen=True)
class Difference:
    """Of two medians.

    Attributes:
        is_clear: whether the ranges do not overlap; None with one seed.
        is_outside: with one seed: whether it is out of the range of all seeds of the baseline; None if they are one.
    """

    value: float
    is_clear: bool | None
    is_outside: bool | None = None

    @classmethod
    def between(cls, ours: Spread | None, base: Spread | None, all_of_base: Spread | None) -> Difference | None:
        """Of a row to the baseline; ``all_of_base``: of all its seeds, where a table takes fewer of them."""
        if ours is None or base is None:
            return None
        value = ours.median - base.median
        if min(ours.count, base.count) > 1:
            return cls(value, ours.is_apart(base))
        if ours.count == 1 and all_of_base is not None and all_of_base.count > 1:
            return cls(value, None, ours.is_apart(all_of_base))
        return cls(value, None)


@dataclass(frozen=True)
class Cell:
    """A row's entry in a column.

    Attributes:
        spread: None where nothing was run, or the score is undefined.
        difference: to the baseline; None for the baseline itself.
        paper: the paper's score.
        paper_difference: to the paper's score of the baseline.
        is_best: largest median of the column, if there are several.
        is_transfer: the row does not train on the column's dataset.
    """

    spread: Spread | None
    difference: Difference | None
    paper: float | None
    paper_difference: float | None
    is_best: bool
    is_transfer: bool
    is_baseline: bool


@dataclass(frozen=True)
class Line:
    """A row with its entries.

    Attributes:
        label: for display, no other line of the table has it.
        trained: training datasets; None if not known.
        steps: optimisation steps; None if not known.
        runs: those that count.
        cells: in the order of the suite's columns.
    """

    row: Row
    label: str
    trained: list[str] | None
    steps: int | None
    runs: list[Run]
    cells: list[Cell]


def lines_of(findings: Findings, table: Table) -> list[Line]:
    """A table's rows with their scores, in order."""
    columns = findings.suite.columns
    runs = [findings.done(table, row) for row in table.rows]
    cells = [_cells(findings, table, column, runs) for column in columns]  # by column, then row
    labels = _labels(table)
    lines = []
    for k, row in enumerate(table.rows):
        ratios = findings.ratios.get(row.name)
        steps = row.steps or next((run.steps for run in runs[k]), None)
        of_row = [cells[c][k] for c in range(len(columns))]
        lines.append(Line(row, labels[k], None if ratios is None else list(ratios), steps, runs[k], of_row))
    return lines


def _labels(table: Table) -> list[str]:
    """Titles, else names, without steps where they are not needed to tell rows apart."""
    short = [row.title or row.name.removesuffix(f"@{row.steps}") for row in table.rows]
    return [label if short.count(label) == 1 else row.name for label, row in zip(short, table.rows, strict=True)]


def _cells(findings: Findings, table: Table, column: Column, runs: list[list[Run]]) -> list[Cell]:
    spreads = [Spread.of(run.score(column.metric) for run in of_row) for of_row in runs]
    papers = [row.paper.get(column.metric) for row in table.rows]
    baseline = table.baseline(column.metric)
    base = table.rows.index(baseline) if baseline is not None else None
    all_of_base = base_spread = theirs = None
    if base is not None and baseline is not None:
        base_spread, theirs = spreads[base], papers[base]
        everything = (run for (name, _), run in findings.runs.items() if name == baseline.name and run.is_done)
        all_of_base = Spread.of(run.score(column.metric) for run in everything)
    defined = [spread.median for spread in spreads if spread is not None]
    best = max(defined) if len(defined) > 1 else None
    cells = []
    for k, (row, spread, paper) in enumerate(zip(table.rows, spreads, papers, strict=True)):
        is_other = base is not None and k != base
        trained = findings.ratios.get(row.name)
        cells.append(
            Cell(
                spread=spread,
                difference=Difference.between(spread, base_spread, all_of_base) if is_other else None,
                paper=paper,
                paper_difference=paper - theirs if is_other and None not in (paper, theirs) else None,  # type: ignore[operator]
                is_best=spread is not None and spread.median == best,
                is_transfer=bool(column.trained_by) and trained is not None and column.trained_by not in trained,
                is_baseline=k == base,
            )
        )
    return cells


def absent_text(line: Line) -> str:
    """What stands in the place of a score: never a number."""
    return "n/a" if line.runs else "not run"


def has_baseline(lines: Sequence[Line], column: int) -> bool:
    """Whether the rows of a column are compared with one of them."""
    return any(line.cells[column].is_baseline for line in lines)


def has_paper(lines: Sequence[Line], column: int) -> bool:
    """Whether the paper has any score of a column."""
    return any(line.cells[column].paper is not None for line in lines)


def difference_text(cell: Cell) -> str:
    """The sign and the triangle carry what the colour says."""
    if cell.is_baseline:
        return "ref."
    if cell.difference is None:
        return ""
    is_up = cell.difference.value > 0
    mark = ""
    if cell.difference.is_clear:
        mark = "\N{BLACK UP-POINTING TRIANGLE} " if is_up else "\N{BLACK DOWN-POINTING TRIANGLE} "
    elif cell.difference.is_outside:
        mark = "\N{WHITE UP-POINTING TRIANGLE} " if is_up else "\N{WHITE DOWN-POINTING TRIANGLE} "
    return mark + signed(cell.difference.value)


def joined(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def number(value: float) -> str:
    """One decimal, as such tables have."""
    return f"{value:.1f}".replace("-", MINUS)


def signed(value: float) -> str:
    """With its sign, one decimal."""
    text = f"{value:+.1f}".replace("-", MINUS)
    return text if text[1:] != "0.0" else "0.0"

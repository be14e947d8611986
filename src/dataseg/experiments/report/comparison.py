"""What a table's scores amount to: the rows that a report looks at closely, and its sentence of result."""

from __future__ import annotations

from dataclasses import dataclass

from dataseg.experiments.report.collect import Findings
from dataseg.experiments.report.statistics import Cell, Line, joined, number, signed
from dataseg.experiments.suite import Column, Table


@dataclass(frozen=True)
class Comparison:
    """A line and the baseline that it is compared with in one column."""

    column: Column
    base: Line
    other: Line
    cell: Cell
    base_cell: Cell

    @property
    def change(self) -> float:
        """Of the median; 0 where there is nothing to compare."""
        return self.cell.difference.value if self.cell.difference else 0.0

    @property
    def brief(self) -> str:
        """Row, column and change."""
        return f"{self.other.label} in {self.column.title} ({signed(self.change)})"

    @property
    def answer(self) -> str:
        """Whether the line beats the baseline by more than the seeds' range; with one seed, by how much it differs."""
        difference = self.cell.difference
        if difference is None:
            return "not known"
        if difference.is_clear is None:
            points = number(abs(difference.value))
            way = "higher" if difference.value > 0 else "lower"
            return "equal" if points == "0.0" else f"{way} by {points} points"
        return "yes" if difference.is_clear and difference.value > 0 else "no"

    @property
    def explanation(self) -> str:
        """The scores behind the answer."""
        if self.cell.difference is None:
            missing = [line.label for line, cell in self._both if cell.spread is None]
            return f"not run: {', '.join(missing)}"
        text = f"{self.cell.spread} against {self.base_cell.spread} of {self.base.label}{_steps(self.base)}, "
        text += signed(self.cell.difference.value)
        if self.cell.difference.is_clear is None:
            text += ", one seed"
            if self.cell.difference.is_outside is not None:
                side = "outside" if self.cell.difference.is_outside else "within"
                text += f", {side} the range of the baseline's seeds"
        elif not self.cell.difference.is_clear:
            text += ", the ranges overlap"
        if self.cell.paper_difference is not None:
            text += f" (paper: {signed(self.cell.paper_difference)})"
        return text

    @property
    def _both(self) -> list[tuple[Line, Cell]]:
        return [(self.other, self.cell), (self.base, self.base_cell)]


def comparisons_of(findings: Findings, table: Table, lines: list[Line]) -> list[Comparison]:
    """What the report looks at closely: in each column, the row on the most datasets and its baseline.

    Where several rows have the most, as in a comparison of methods, each of them is looked at.
    """
    most = max((len(line.trained or ()) for line in lines), default=0)
    others = [line for line in lines if len(line.trained or ()) == most]
    comparisons = []
    for other in others:
        for c, column in enumerate(findings.suite.columns):
            base = next((line for line in lines if line.cells[c].is_baseline), None)
            if base is not None and base is not other:
                comparisons.append(Comparison(column, base, other, other.cells[c], base.cells[c]))
    return comparisons


def headlines(comparisons: list[Comparison]) -> list[str]:
    """What the comparisons amount to, in a few sentences."""
    if not comparisons:
        return []
    return _of_one(comparisons) if len({c.other.label for c in comparisons}) == 1 else _of_many(comparisons)


def _of_one(comparisons: list[Comparison]) -> list[str]:
    """A row against the baseline of each column."""
    other = comparisons[0].other
    subject = f"{other.label}{_steps(other)}, trained on {joined(other.trained or ['?'])},"
    beats = [c for c in comparisons if c.answer == "yes"]
    unknown = sum(c.answer not in ("yes", "no") for c in comparisons)
    if unknown == len(comparisons):
        changes = [c.change for c in comparisons if c.cell.difference is not None]
        higher = f"; it is higher in {sum(c > 0 for c in changes)} of {len(changes)} scores" if changes else ""
        return [
            f"Whether {subject} beats its baseline by more than the seeds' range cannot be told without several seeds"
            f" of both{higher}."
        ]
    text = f"{subject} beats its baseline by more than the seeds' range in {len(beats)} of {len(comparisons)} scores"
    if beats:
        text += f": {joined([f'{c.column.title} {signed(c.change)}' for c in beats])}"
    return [text + (f"; {unknown} cannot be told." if unknown else ".")]


def _of_many(comparisons: list[Comparison]) -> list[str]:
    """Several rows, each against the baseline of each column."""
    compared = [(c, c.cell.difference) for c in comparisons if c.cell.difference is not None]
    rows = len({c.other.label for c in comparisons})
    if not compared:
        return [f"None of the {rows} rows can be compared with its baseline yet."]
    changes = sorted((c for c, _ in compared), key=lambda c: -c.change)
    clear = [difference.value for _, difference in compared if difference.is_clear]
    outside = [difference.value for _, difference in compared if difference.is_outside]
    missing = len(comparisons) - len(compared)
    text = f"{rows} rows are compared with their baseline, {len(compared)} scores in all"
    sentences = [f"{text}, {missing} are missing." if missing else f"{text}."]
    if any(difference.is_clear is not None for _, difference in compared):
        sentences.append(f"Larger than the seeds' range: {_ways(clear)}.")
    if any(difference.is_clear is None for _, difference in compared):
        sentences.append(f"One seed, outside the range of the baseline's seeds: {_ways(outside)}.")
    sentences.append(f"The largest changes: {changes[0].brief} and {changes[-1].brief}.")
    return [" ".join(sentences)]


def _steps(line: Line) -> str:
    """Scores mean little without them."""
    return f" ({line.steps:,} steps)" if line.steps else ""


def _ways(changes: list[float]) -> str:
    up = sum(change > 0 for change in changes)
    return f"{len(changes)} differences, {up} up and {len(changes) - up} down" if changes else "no difference"

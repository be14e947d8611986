"""What a table's figures amount to: the rows that a report looks at closely, and its sentence of result."""

from __future__ import annotations

from dataclasses import dataclass

from dataseg.experiments.report.collect import Findings
from dataseg.experiments.report.statistics import Cell, Line, joined, signed
from dataseg.experiments.suite import Column, Table


@dataclass(frozen=True)
class Pair:
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
        """Whether the line beats the baseline by more than the seeds' range: yes, no, or not known."""
        difference = self.cell.difference
        if difference is None or difference.is_clear is None:
            return "not known"
        return "yes" if difference.is_clear and difference.value > 0 else "no"

    @property
    def explanation(self) -> str:
        """The figures behind the answer."""
        if self.cell.difference is None:
            missing = [line.label for line, cell in self._both if cell.spread is None]
            return f"not run: {', '.join(missing)}"
        text = f"{self.cell.spread} against {self.base_cell.spread} of {self.base.label}, "
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


def pairs_of(findings: Findings, table: Table, lines: list[Line]) -> list[Pair]:
    """What the report looks at closely: in each column, the row on the most datasets and its baseline.

    Where several rows have the most, as in a comparison of methods, each of them is looked at.
    """
    most = max((len(line.trained or ()) for line in lines), default=0)
    others = [line for line in lines if len(line.trained or ()) == most]
    pairs = []
    for other in others:
        for c, column in enumerate(findings.suite.columns):
            base = next((line for line in lines if line.cells[c].is_baseline), None)
            if base is not None and base is not other:
                pairs.append(Pair(column, base, other, other.cells[c], base.cells[c]))
    return pairs


def headlines(pairs: list[Pair]) -> list[str]:
    """What the pairs amount to, in a few sentences."""
    if not pairs:
        return []
    return _of_one(pairs) if len({pair.other.label for pair in pairs}) == 1 else _of_many(pairs)


def _of_one(pairs: list[Pair]) -> list[str]:
    """A row against the baseline of each column."""
    other = pairs[0].other
    subject = f"{other.label}, trained on {joined(other.trained or ['?'])},"
    beats = [pair for pair in pairs if pair.answer == "yes"]
    unknown = sum(pair.answer == "not known" for pair in pairs)
    if unknown == len(pairs):
        changes = [pair.change for pair in pairs if pair.cell.difference is not None]
        higher = f"; it is higher in {sum(c > 0 for c in changes)} of {len(changes)} figures" if changes else ""
        return [
            f"Whether {subject} beats its baseline by more than the seeds' range cannot be told without several seeds"
            f" of both{higher}."
        ]
    text = f"{subject} beats its baseline by more than the seeds' range in {len(beats)} of {len(pairs)} figures"
    if beats:
        text += f": {joined([f'{pair.column.title} {signed(pair.change)}' for pair in beats])}"
    return [text + (f"; {unknown} cannot be told." if unknown else ".")]


def _of_many(pairs: list[Pair]) -> list[str]:
    """Several rows, each against the baseline of each column."""
    compared = [(pair, pair.cell.difference) for pair in pairs if pair.cell.difference is not None]
    rows = len({pair.other.label for pair in pairs})
    if not compared:
        return [f"None of the {rows} rows can be compared with its baseline yet."]
    changes = sorted((pair for pair, _ in compared), key=lambda pair: -pair.change)
    clear = [difference.value for _, difference in compared if difference.is_clear]
    outside = [difference.value for _, difference in compared if difference.is_outside]
    missing = len(pairs) - len(compared)
    text = f"{rows} rows are compared with their baseline, {len(compared)} figures in all"
    sentences = [f"{text}, {missing} are missing." if missing else f"{text}."]
    if any(difference.is_clear is not None for _, difference in compared):
        sentences.append(f"Larger than the seeds' range: {_ways(clear)}.")
    if any(difference.is_clear is None for _, difference in compared):
        sentences.append(f"One seed, outside the range of the baseline's seeds: {_ways(outside)}.")
    sentences.append(f"The largest changes: {changes[0].brief} and {changes[-1].brief}.")
    return [" ".join(sentences)]


def _ways(changes: list[float]) -> str:
    up = sum(change > 0 for change in changes)
    return f"{len(changes)} differences, {up} up and {len(changes) - up} down" if changes else "no difference"

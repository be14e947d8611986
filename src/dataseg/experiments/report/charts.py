"""The charts of one table: scores by row, learning curves, training losses, gains by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from dataseg.experiments.report.collect import Findings
from dataseg.experiments.report.comparison import Comparison
from dataseg.experiments.report.statistics import Line, absent_text
from dataseg.visualization.plots import Curve, Dots, bar_chart, dot_chart, line_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 60  # of a loss curve; neighbours are averaged
_MOST_BARS = 40  # classes of a chart: the largest changes


@dataclass(frozen=True)
class Chart:
    """A figure with what stands around it on a page.

    Attributes:
        name: of its files and ids; no other chart of the table has it.
        title: above it.
        note: below it.
    """

    name: str
    title: str
    figure: Figure
    note: str = ""


def seeds_charts(findings: Findings, lines: Sequence[Line]) -> list[Chart]:
    """Each column's scores by row: seeds, range, median, and the baseline's median."""
    charts = []
    for c, column in enumerate(findings.suite.columns):
        entries, reference = [], None
        for k, line in enumerate(lines):
            cell = line.cells[c]
            values = [v for run in line.runs if (v := run.score(column.metric)) is not None]
            center = cell.spread.median if cell.spread else 0.0
            entries.append(Dots(line.label, values, center, k, str(cell.spread or absent_text(line))))
            if cell.is_baseline and cell.spread is not None:
                reference = cell.spread.median
        charts.append(Chart(f"rows-{column.metric}", column.title, dot_chart(entries, reference, "percent")))
    return charts


def learning_curves(findings: Findings, lines: Sequence[Line]) -> list[Chart]:
    """Each column's score over the steps; dashed where the row does not train on the column's dataset."""
    charts = []
    for c, column in enumerate(findings.suite.columns):
        curves = []
        for k, line in enumerate(lines):
            seeds = [run.history(column.metric) for run in line.runs]
            curves += _curves(line.label, seeds, k, line.cells[c].is_transfer)
        if curves:
            figure = line_chart(curves, "optimisation step", "percent")
            charts.append(Chart(f"curves-{column.metric}", column.title, figure))
    return charts


def loss_curves(findings: Findings, lines: Sequence[Line]) -> list[Chart]:
    """Training loss by dataset."""
    charts = []
    for dataset in findings.datasets:
        curves = []
        for k, line in enumerate(lines):
            seeds = [_thinned(run.events.scalars.get(f"loss/{dataset}/total", [])) for run in line.runs]
            curves += _curves(line.label, seeds, k, False)
        if curves:
            figure = line_chart(curves, "optimisation step", "loss")
            charts.append(Chart(f"loss-{dataset}", f"training loss on {dataset}", figure))
    return charts


def _curves(label: str, seeds: Iterable[Sequence[tuple[float, float]]], color: int, is_dashed: bool) -> list[Curve]:
    """The median over the seeds, and each seed thinly behind it."""
    found = [points for points in seeds if points]
    by_step: dict[float, list[float]] = {}
    for points in found:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    middle = [(step, median(values)) for step, values in sorted(by_step.items())]
    thin = [Curve(label, points, color, is_dashed, is_thin=True) for points in found if len(found) > 1]
    return [*thin, Curve(label, middle, color, is_dashed)] if middle else []


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    group = -(-len(points) // _MOST_POINTS) or 1
    parts = [points[k : k + group] for k in range(0, len(points), group)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def class_gains(comparisons: Sequence[Comparison]) -> list[Chart]:
    """Change of each class's score from the baseline to the row it is compared with; medians over the seeds."""
    charts = []
    for comparison in comparisons:
        metric = comparison.column.metric
        base, other = (_classes(line, metric) for line in (comparison.base, comparison.other))
        changes = sorted(((name, other[name] - base[name]) for name in other if name in base), key=lambda e: -e[1])
        if not changes:
            continue
        title = f"{comparison.column.title}: {comparison.base.label} \N{RIGHTWARDS ARROW} {comparison.other.label}"
        note = f"{sum(change > 0 for _, change in changes)} of {len(changes)} classes gain"
        if len(changes) > _MOST_BARS:
            note += f"; the {len(changes) - _MOST_BARS} between the largest gains and losses are left out"
            changes = changes[: _MOST_BARS // 2] + changes[-_MOST_BARS // 2 :]
        figure = bar_chart(changes, "change in percentage points")
        charts.append(Chart(f"classes-{metric}-{comparison.other.row.name}", title, figure, note))
    return charts


def _classes(line: Line, metric: str) -> dict[str, float]:
    seeds = [run.per_class(metric) for run in line.runs]
    names = dict.fromkeys(name for classes in seeds for name in classes)
    return {name: median(classes[name] for classes in seeds if name in classes) for name in names}

"""The parts of a report's page about one table: figures, charts, sampling, classes, examples, configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from statistics import median

from dataseg.config.diff import differences
from dataseg.experiments.report.charts import COLORS, Curve, Dots, bar_chart, dot_chart, line_chart
from dataseg.experiments.report.collect import Findings, Run, mapping
from dataseg.experiments.report.comparison import Pair
from dataseg.experiments.report.statistics import (
    Cell,
    Line,
    Spread,
    absent_text,
    difference_text,
    has_baseline,
    has_paper,
    joined,
    signed,
)
from dataseg.experiments.suite import Column

NOTHING = "<p class=note>Nothing to compare yet.</p>"
_MOST_POINTS = 60  # of a loss curve; neighbours are averaged
_MOST_BARS = 40  # classes of a chart: the largest changes


def figures_table(findings: Findings, lines: Sequence[Line]) -> str:
    """Rows and columns as on the poster. Every number stands in full in a ``data`` element's value."""
    first, second = ["<th rowspan=2>row"], []
    first += [f"<th rowspan=2 class=tick>{escape(name)}" for name in findings.datasets]
    first += ["<th rowspan=2 class=n>steps", "<th rowspan=2 class=n>seeds"]
    for c, column in enumerate(findings.suite.columns):
        with_paper = has_paper(lines, c)
        with_change = has_baseline(lines, c)
        first.append(f'<th colspan={1 + with_change + with_paper} class="n first">{escape(column.title)}')
        second += ['<th class="n first sub">median'] + ['<th class="n sub">change'] * with_change
        second += ['<th class="n sub">paper'] if with_paper else []
    body = "".join(_figures_row(findings, lines, line) for line in lines)
    return _table(f"<tr>{''.join(first)}<tr>{''.join(second)}", body)


def _figures_row(findings: Findings, lines: Sequence[Line], line: Line) -> str:
    cells = [f"<th scope=row>{escape(line.label)}"]
    for name in findings.datasets:
        mark = "?" if line.trained is None else "\N{CHECK MARK}" if name in line.trained else ""
        cells.append(f'<td class=tick aria-label="{"trained on" if mark else "not trained on"}">{mark}')
    cells.append(f"<td class=n>{line.steps:,}" if line.steps else "<td>")
    cells.append(f"<td class=n>{len(line.runs)}")
    for c, (column, cell) in enumerate(zip(findings.suite.columns, line.cells, strict=True)):
        cells.append(_figure(line, column, cell))
        if has_baseline(lines, c):
            cells.append(_difference(cell))
        if has_paper(lines, c):
            cells.append(_paper(cell))
    return f"<tr>{''.join(cells)}"


def _figure(line: Line, column: Column, cell: Cell) -> str:
    where = f'data-row="{escape(line.row.name)}" data-metric="{escape(column.metric)}"'
    kind = " best" * cell.is_best + " transfer" * cell.is_transfer
    if cell.spread is None:
        return f'<td class="n first absent" {where}>{absent_text(line)}'
    text = f"<data class=median value={cell.spread.median!r}>{cell.spread.median:.1f}</data>"
    if cell.spread.count > 1:
        low, high = (f"<data value={value!r}>{value:.1f}</data>" for value in (cell.spread.low, cell.spread.high))
        text += f"<small>{low}\N{EN DASH}{high}</small>"
    return f'<td class="n first{kind}" {where}>{text}'


def _difference(cell: Cell) -> str:
    if cell.difference is None:
        return f'<td class="n ref">{difference_text(cell)}'
    way = "up" if cell.difference.value > 0 else "down"
    clear = "clear" if cell.difference.is_clear else "unclear"
    value = f"<data value={cell.difference.value!r}>{difference_text(cell)}</data>"
    return f'<td class="n diff {way} {clear}{" transfer" * cell.is_transfer}">{value}'


def _paper(cell: Cell) -> str:
    if cell.paper is None:
        return "<td>"
    change = f"<small>{signed(cell.paper_difference)}</small>" if cell.paper_difference is not None else ""
    return f'<td class="n paper"><data value={cell.paper!r}>{cell.paper:.1f}</data>{change}'


def seeds_charts(findings: Findings, lines: Sequence[Line]) -> str:
    """Each column's figures by row: seeds, range, median, and the baseline's median."""
    charts = []
    for c, column in enumerate(findings.suite.columns):
        entries, reference = [], None
        for k, line in enumerate(lines):
            cell = line.cells[c]
            values = [v for run in line.runs if (v := run.figure(column.metric)) is not None]
            entries.append(
                Dots(line.label, values, median(values) if values else 0.0, k, str(cell.spread or absent_text(line)))
            )
            if cell.is_baseline and cell.spread is not None:
                reference = cell.spread.median
        charts.append(_chart(column.title, dot_chart(entries, reference, "percent", f"{column.title} by row")))
    return _charts(charts)


def learning_curves(findings: Findings, lines: Sequence[Line]) -> str:
    """Each column's figure over the steps; dashed where the row does not train on the column's dataset."""
    charts = []
    for c, column in enumerate(findings.suite.columns):
        curves = []
        for k, line in enumerate(lines):
            seeds = [run.history(column.metric) for run in line.runs]
            curves += _curves(line.label, seeds, k, line.cells[c].is_transfer)
        name = f"{column.title} while training"
        charts.append(_chart(column.title, line_chart(curves, "optimisation step", "percent", name)))
    return _legend(lines) + _charts(charts)


def loss_curves(findings: Findings, lines: Sequence[Line]) -> str:
    """Training loss by dataset."""
    charts = []
    for dataset in findings.datasets:
        curves = []
        for k, line in enumerate(lines):
            seeds = [_thinned(run.events.scalars.get(f"loss/{dataset}/total", [])) for run in line.runs]
            curves += _curves(line.label, seeds, k, False)
        if curves:
            name = f"training loss on {dataset}"
            charts.append(_chart(name, line_chart(curves, "optimisation step", "loss", name)))
    return _legend(lines) + _charts(charts) if charts else "<p class=note>No curves were found.</p>"


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


def _legend(lines: Sequence[Line]) -> str:
    keys = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden=true><path class="line c{k % COLORS}" d="M0 5H26"/></svg>'
        f"{escape(line.label)}"
        for k, line in enumerate(lines)
        if line.runs
    )
    return f"<ul class=keys>{keys}</ul>"


def sampling_table(findings: Findings, lines: Sequence[Line]) -> str:
    """Configured and realised share of each dataset, speed and time; medians over the seeds."""
    names = findings.datasets
    head = "<th>row" + "".join(f"<th class=n>{escape(name)}" for name in names)
    head += "<th class=n>images/s<th class=n>wall time<th class=n>parameters"
    rows = []
    for line in lines:
        ratios = findings.ratios.get(line.row.name, {})
        cells = [_shares(line, name, ratios.get(name, 0.0) / (sum(ratios.values()) or 1.0)) for name in names]
        speeds = [v for run in line.runs for _, v in run.events.scalars.get("throughput/images_per_second", [])]
        times = [run.events.seconds for run in line.runs if run.events.seconds]
        sizes = sorted({f"{run.metrics['run'].get('parameters', 0):,}" for run in line.runs})
        cells.append(f"<td class=n>{median(speeds):.1f}" if speeds else "<td>")
        cells.append(f"<td class=n>{_duration(median(times))}" if times else "<td>")
        cells.append(f"<td class=n>{', '.join(sizes)}")
        rows.append(f"<tr><th scope=row>{escape(line.label)}{''.join(cells)}")
    return _table(f"<tr>{head}", "".join(rows))


def _shares(line: Line, dataset: str, configured: float) -> str:
    if not configured:
        return "<td>"
    realised = Spread.of(run.events.last(f"sampling/{dataset}") for run in line.runs)
    text = f"{100 * configured:.1f} %"
    if realised is not None:
        text += f" \N{RIGHTWARDS ARROW} <data value={realised.median!r}>{100 * realised.median:.1f} %</data>"
        if line.steps and not _is_mixed(line.runs[0]):
            text += f"<small>about {realised.median * line.steps:,.0f} steps</small>"
    return f"<td class=n>{text}"


def _is_mixed(run: Run) -> bool:
    """Whether every step has images of all datasets."""
    return bool(mapping(mapping(run.config, "data"), "init_args").get("mixed"))


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def class_gains(pairs: Sequence[Pair]) -> str:
    """Change of each class's figure from the baseline to the row it is compared with; medians over the seeds."""
    charts = []
    for pair in pairs:
        base, other = (_classes(line, pair.column.metric) for line in (pair.base, pair.other))
        changes = sorted(
            ((name, other[name] - base[name]) for name in other if name in base), key=lambda entry: -entry[1]
        )
        if not changes:
            continue
        title = f"{pair.column.title}: {pair.base.label} \N{RIGHTWARDS ARROW} {pair.other.label}"
        gained = sum(change > 0 for _, change in changes)
        note = f"{gained} of {len(changes)} classes gain"
        if len(changes) > _MOST_BARS:
            left = len(changes) - _MOST_BARS
            changes = changes[: _MOST_BARS // 2] + changes[-_MOST_BARS // 2 :]
            note += f"; the {left} between the largest gains and losses are left out"
        chart = bar_chart(changes, "change in percentage points", f"{title}, by class")
        charts.append(_chart(title, chart + f"<small>{note}</small>"))
    return _charts(charts) if charts else NOTHING


def _classes(line: Line, metric: str) -> dict[str, float]:
    seeds = [run.per_class(metric) for run in line.runs]
    names = dict.fromkeys(name for classes in seeds for name in classes)
    return {name: median(classes[name] for classes in seeds if name in classes) for name in names}


def configuration_table(lines: Sequence[Line]) -> str:
    """Keys that differ between the rows that were run."""
    shown = [line for line in lines if line.runs and line.runs[0].config]
    if len(shown) < 2:
        return "<p class=note>Fewer than two rows have a configuration.</p>"
    found = differences([line.runs[0].config for line in shown])
    head = "<th>key" + "".join(f"<th scope=row>{escape(line.label)}" for line in shown)
    rows = "".join(
        f"<tr><th scope=row><code>{escape(key)}</code>" + "".join(f"<td class=wrap>{escape(value)}" for value in values)
        for key, values in found.items()
    )
    return (
        _table(f"<tr>{head}", rows)
        if found
        else f"<p>{escape(joined([line.label for line in shown]))} do not differ.</p>"
    )


def _table(head: str, body: str) -> str:
    return f"<div class=scroll tabindex=0><table><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _chart(title: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def _charts(charts: Sequence[str]) -> str:
    return f"<div class=charts>{''.join(charts)}</div>"

"""A report's page, and the files of its figures. All pages share one layout, one style sheet and one palette."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataseg.config.diff import differences
from dataseg.experiments.report import charts, statistics
from dataseg.experiments.report.charts import Chart
from dataseg.experiments.report.collect import Findings, Run, mapping
from dataseg.experiments.report.comparison import Comparison, comparisons_of, headlines
from dataseg.experiments.report.examples import Example, data_uris, examples_of
from dataseg.experiments.report.statistics import Line, Spread, lines_of
from dataseg.experiments.suite import Table
from dataseg.visualization.plots import add_legend
from dataseg.visualization.style import DARK, LIGHT, SERIES, inline_svg, save

LIMIT = 5_800_000
"""Bytes of a page: what a repository's pages and mail still take well."""

_IMAGES = {1: 8, 2: 4}
"""Example pictures of each dataset and task, in the first table and in the others."""


def render(template: Path, **context: Any) -> str:
    """A page that needs no other file, from a template that extends ``layout.html.j2`` of this folder.

    Args:
        context: what the template uses; text is escaped, a name that the template lacks is an error.
    """
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template.name).render(light=LIGHT, dark=DARK, series=SERIES, **context)


@dataclass(frozen=True)
class Chapter:
    """A table with everything that a page shows of it."""

    number: int
    table: Table
    lines: list[Line]
    comparisons: list[Comparison]
    examples: list[Example]
    findings: Findings

    @cached_property
    def charts(self) -> dict[str, list[Chart]]:
        """By part of the chapter."""
        return {
            "scores": charts.seeds_charts(self.findings, self.lines),
            "curves": charts.learning_curves(self.findings, self.lines),
            "losses": charts.loss_curves(self.findings, self.lines),
            "classes": [chart for of_row in self.gains.values() for chart in of_row],
        }

    @cached_property
    def gains(self) -> dict[str, list[Chart]]:
        """Gains by class, by label of the row that is compared with a baseline."""
        rows = dict.fromkeys(comparison.other.label for comparison in self.comparisons)
        return {row: charts.class_gains([c for c in self.comparisons if c.other.label == row]) for row in rows}

    @cached_property
    def svgs(self) -> dict[str, Markup]:
        """By name of the chart."""
        every = [chart for part in self.charts.values() for chart in part]
        return {
            chart.name: Markup(inline_svg(chart.figure, f"t{self.number}c{k}", chart.title))
            for k, chart in enumerate(every)
        }

    @property
    def headlines(self) -> list[str]:
        return headlines(self.comparisons) or ["No row can be compared with a baseline."]

    @property
    def groups(self) -> dict[str, list[Example]]:
        """Examples by dataset and task."""
        names = dict.fromkeys(example.group for example in self.examples)
        return {name: [example for example in self.examples if example.group == name] for name in names}

    @property
    def settings(self) -> dict[str, list[str]] | None:
        """Keys of the configuration that differ between the rows of `configured`; None if these are too few."""
        found = [line.runs[0].config for line in self.configured]
        return differences(found) if len(found) > 1 else None

    @property
    def configured(self) -> list[Line]:
        return [line for line in self.lines if line.runs and line.runs[0].config]

    def sampling(self, line: Line) -> list[tuple[float, Spread | None, float | None]]:
        """Of each dataset: share as configured, as it came about, and steps; steps only where each is of one."""
        ratios = self.findings.ratios.get(line.row.name, {})
        shares = []
        for name in self.findings.datasets:
            configured = ratios.get(name, 0.0) / (sum(ratios.values()) or 1.0)
            realised = Spread.of(run.events.last(f"sampling/{name}") for run in line.runs)
            has_steps = realised is not None and line.steps and not _is_mixed(line.runs[0])
            steps = realised.median * line.steps if has_steps else None  # type: ignore[union-attr, operator]
            shares.append((configured, realised, steps))
        return shares


def chapters_of(findings: Findings) -> list[Chapter]:
    """One a table."""
    chapters = []
    for number, table in enumerate(findings.suite.tables, start=1):
        lines = lines_of(findings, table)
        comparisons = comparisons_of(findings, table, lines)
        examples = examples_of(comparisons, most=_IMAGES[min(number, 2)])
        chapters.append(Chapter(number, table, lines, comparisons, examples, findings))
    return chapters


def page(findings: Findings, chapters: Sequence[Chapter], today: date, limit: int = LIMIT) -> str:
    """The whole page.

    Args:
        today: shown as its date.
        limit: bytes of the page; pictures are made smaller to keep it.
    """
    done = [run for run in findings.runs.values() if run.is_done]
    context = {
        "findings": findings,
        "chapters": chapters,
        "today": today,
        "done": done,
        "conventions": _conventions(done),
        "statistics": statistics,
        "speed": _speed,
        "duration": _duration,
        "parameters": _parameters,
    }
    template = Path(__file__).with_name("page.html.j2")
    pictures = [panel for c in chapters for e in c.examples for panel in e.panels.values()]
    rest = len(render(template, uris={}, **context).encode())
    return render(template, uris=data_uris(pictures, limit - rest), **context)


def save_figures(chapters: Sequence[Chapter], folder: Path) -> None:
    """Write every chart as PDF and as SVG into a new folder, with a legend where it has curves."""
    folder.mkdir()
    for chapter in chapters:
        for chart in (chart for part in chapter.charts.values() for chart in part):
            add_legend(chart.figure)
            for kind in ("pdf", "svg"):
                name = chart.name.replace("/", "-")
                save(chart.figure, folder / f"table{chapter.number}-{name}.{kind}")


def _speed(line: Line) -> float | None:
    """Images per second, median."""
    speeds = [v for run in line.runs for _, v in run.events.scalars.get("throughput/images_per_second", [])]
    return median(speeds) if speeds else None


def _duration(line: Line) -> str:
    """Median wall time of a row's runs; nothing if no event file tells."""
    times = [run.events.seconds for run in line.runs if run.events.seconds]
    if not times:
        return ""
    seconds = median(times)
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _parameters(line: Line) -> list[str]:
    return sorted({f"{run.metrics['run'].get('parameters', 0):,}" for run in line.runs})


def _is_mixed(run: Run) -> bool:
    """Whether every step has images of all datasets."""
    return bool(mapping(mapping(run.config, "data"), "init_args").get("mixed"))


Stated = dict[str, tuple[list[str], bool]]
"""Of a key: its values, and whether they contradict each other."""


def _conventions(done: Sequence[Run]) -> dict[str, Stated]:
    """What the runs state, by group."""
    groups = dict.fromkeys(group for run in done for group in mapping(run.metrics, "conventions"))
    found = {}
    for group in groups:
        stated = [mapping(mapping(run.metrics, "conventions"), group) for run in done]
        found[group] = _stated([content for content in stated if content], must_agree=True)
    return found | {"Runs": _stated([mapping(run.metrics, "run") for run in done], must_agree=False)}


def _stated(contents: Sequence[Mapping[str, Any]], must_agree: bool) -> Stated:
    """Each key with its values; where runs must agree and do not, how many say what."""
    found = {}
    for key in dict.fromkeys(key for content in contents for key in content):
        counts = Counter(_text(content.get(key)) for content in contents)
        values = sorted(counts, key=lambda value: (len(value), value))
        differ = must_agree and len(values) > 1
        found[key.replace("_", " ")] = [f"{v} ({counts[v]} runs)" if differ else v for v in values], differ
    return found


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)

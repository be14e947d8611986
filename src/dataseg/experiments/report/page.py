"""A report's page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from importlib.resources import files
from typing import Any

from dataseg.experiments.report import sections
from dataseg.experiments.report.collect import Findings, mapping
from dataseg.experiments.report.comparison import Pair, headlines, pairs_of
from dataseg.experiments.report.examples import Example, data_uris, examples_of
from dataseg.experiments.report.statistics import LEGEND, Line, lines_of
from dataseg.experiments.suite import Table

_PARTS = {
    "figures": "Figures",
    "curves": "Learning curves",
    "losses": "Training losses",
    "sampling": "Sampling and speed",
    "classes": "Gains by class",
    "examples": "Example predictions",
    "configuration": "Configuration",
}


LIMIT = 5_800_000
"""Bytes of a page: what a repository's pages and mail still take well."""

_IMAGES = {1: 8, 2: 4}
"""Example pictures of each dataset and task, in the first table and in the others."""


@dataclass(frozen=True)
class _Chapter:
    """A table with what its parts are made from."""

    number: int
    table: Table
    lines: list[Line]
    pairs: list[Pair]
    examples: list[Example]

    @property
    def compares_many(self) -> bool:
        return len({pair.other.label for pair in self.pairs}) > 1

    def anchor(self, part: str = "table") -> str:
        return f"{part}-{self.number}"


def page(findings: Findings, today: date, limit: int = LIMIT) -> str:
    """The whole page.

    Args:
        today: shown as its date.
        limit: bytes of the page; pictures are made smaller to keep it.
    """
    chapters = []
    for number, table in enumerate(findings.suite.tables, start=1):
        lines = lines_of(findings, table)
        pairs = pairs_of(findings, table, lines)
        chapters.append(_Chapter(number, table, lines, pairs, examples_of(pairs, most=_IMAGES[min(number, 2)])))
    pictures = [panel for c in chapters for e in c.examples for panel in e.panels.values()]
    rest = len(_page(findings, today, chapters, {}).encode())
    return _page(findings, today, chapters, data_uris(pictures, limit - rest))


def _page(findings: Findings, today: date, chapters: Sequence[_Chapter], uris: Mapping[bytes, str]) -> str:
    title = escape(findings.suite.title)
    about = "".join(f"<p>{escape(text)}</p>" for text in findings.suite.about.split("\n\n") if text.strip())
    body = [
        f"<header class=top><h1>{title}</h1>{about}<p class=note>Suite <code>{escape(findings.suite.name)}</code>, "
        f"{today.isoformat()}, {sum(run.is_done for run in findings.runs.values())} runs.</p></header>",
        _contents(chapters, bool(findings.notes)),
        f"<main>{_result(chapters)}{_missing(findings)}",
        *(_chapter(findings, chapter, uris) for chapter in chapters),
        _conventions(findings),
        "</main>",
    ]
    style = files("dataseg.experiments.report").joinpath("page.css").read_text(encoding="utf-8")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _contents(chapters: Sequence[_Chapter], is_partial: bool) -> str:
    entries = ['<li><a href="#result">Result</a>']
    if is_partial:
        entries.append('<li><a href="#missing">What is missing</a>')
    entries.append('<li><a href="#conventions">Conventions</a>')
    for chapter in chapters:
        parts = "".join(f'<a href="#{chapter.anchor(part)}">{name}</a> ' for part, name in _PARTS.items())
        entries.append(f'<li class=of><a href="#{chapter.anchor()}">{escape(chapter.table.title)}</a> {parts}')
    return f'<nav aria-label="Contents"><ul>{"".join(entries)}</ul></nav>'


def _result(chapters: Sequence[_Chapter]) -> str:
    parts = ["<h2 id=result>Result</h2>"]
    for chapter in chapters:
        sentences = headlines(chapter.pairs) or ["No row can be compared with a baseline."]
        text = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
        answers = "" if chapter.compares_many else "".join(_answer(pair) for pair in chapter.pairs)
        parts.append(
            f"<h3>{escape(chapter.table.title)}</h3><div class=result>{text}<ul class=answers>{answers}</ul></div>"
        )
    return "".join(parts)


def _answer(pair: Pair) -> str:
    kind = pair.answer if pair.answer in ("yes", "no") else "unknown"
    text = f"<span><b>{escape(pair.column.title)}</b>: {escape(pair.explanation)}</span>"
    return f'<li><span class="answer {kind}">{pair.answer}</span>{text}'


def _missing(findings: Findings) -> str:
    if not findings.notes:
        return ""
    entries = "".join(f"<li>{escape(note)}" for note in findings.notes)
    return f"<h2 id=missing>What is missing</h2><div class=missing><ul>{entries}</ul></div>"


def _chapter(findings: Findings, chapter: _Chapter, uris: Mapping[bytes, str]) -> str:
    lines, pairs = chapter.lines, chapter.pairs
    notes = {
        "figures": LEGEND,
        "curves": "Median over the seeds; each seed thin behind it. Dashed: the row does not train on that dataset.",
        "losses": "Sum of all terms, of every decoder layer; median over the seeds, each seed thin behind it.",
        "sampling": "Share of the images: as configured, and as it came about. Wall time: training and evaluation.",
        "classes": "From the baseline to the row it is compared with; medians over the seeds.",
        "examples": "Each picture: image, ground truth, prediction. The first seed of each row, the first "
        "images of each validation set, not chosen.",
        "configuration": "Keys of the resolved configurations that differ, but for names and folders.",
    }
    contents = {
        "figures": sections.figures_table(findings, lines) + sections.seeds_charts(findings, lines),
        "curves": sections.learning_curves(findings, lines),
        "losses": sections.loss_curves(findings, lines),
        "sampling": sections.sampling_table(findings, lines),
        "classes": _by_row(pairs),
        "examples": _examples(chapter, uris),
        "configuration": sections.configuration_table(lines),
    }
    about = f"<p>{escape(chapter.table.about)}</p>" if chapter.table.about else ""
    parts = [f"<section><h2 id={chapter.anchor()}>{escape(chapter.table.title)}</h2>{about}"]
    for part, name in _PARTS.items():
        parts.append(
            f"<h3 id={chapter.anchor(part)}>{name}</h3><p class=note>{escape(notes[part])}</p>{contents[part]}"
        )
    return "".join(parts) + "</section>"


def _by_row(pairs: Sequence[Pair]) -> str:
    """Gains by class, folded where several rows are compared."""
    rows = dict.fromkeys(pair.other.label for pair in pairs)
    charts = {row: sections.class_gains([pair for pair in pairs if pair.other.label == row]) for row in rows}
    if len(charts) <= 1:
        return "".join(charts.values()) or sections.NOTHING
    return "".join(f"<details><summary>{escape(row)}</summary>{chart}</details>" for row, chart in charts.items())


def _examples(chapter: _Chapter, uris: Mapping[bytes, str]) -> str:
    groups = dict.fromkeys(example.group for example in chapter.examples)
    parts = []
    for group in groups:
        shown = [_example(example, uris) for example in chapter.examples if example.group == group]
        state = "open" if chapter.number == 1 else ""
        parts.append(
            f"<details {state}><summary>{escape(group)}</summary><div class=examples>{''.join(shown)}</div></details>"
        )
    return "".join(parts) or "<p class=note>No pictures that both rows show.</p>"


def _example(example: Example, uris: Mapping[bytes, str]) -> str:
    panels = []
    for label, panel in example.panels.items():
        name = f"{example.group}, image {example.image_id}, {label}"
        uri = uris.get(panel)
        picture = f'<img loading=lazy alt="{escape(name)}" src="{uri}">' if uri else "<small>left out for size</small>"
        panels.append(f"<div><p>{escape(label)}</p>{picture}</div>")
    return (
        f"<figure><figcaption>{escape(example.image_id)}</figcaption><div class=pair>{''.join(panels)}</div></figure>"
    )


def _conventions(findings: Findings) -> str:
    done = [run for run in findings.runs.values() if run.is_done]
    parts = ["<h2 id=conventions>Conventions</h2><p class=note>As the runs state them in metrics.json.</p>"]
    groups = dict.fromkeys(group for run in done for group in mapping(run.metrics, "conventions"))
    for group in groups:
        stated = [mapping(mapping(run.metrics, "conventions"), group) for run in done]
        parts.append(f"<h3>{escape(group)}</h3>{_stated([content for content in stated if content], must_agree=True)}")
    parts.append(f"<h3>Runs</h3>{_stated([mapping(run.metrics, 'run') for run in done], must_agree=False)}")
    return "".join(parts)


def _stated(contents: Sequence[Mapping[str, Any]], must_agree: bool) -> str:
    """Each key with its values; where runs must agree and do not, how many say what."""
    entries = []
    for key in dict.fromkeys(key for content in contents for key in content):
        counts = Counter(_text(content.get(key)) for content in contents)
        values = sorted(counts, key=lambda value: (len(value), value))
        if must_agree and len(values) > 1:
            differing = "; ".join(f"{value} ({counts[value]} runs)" for value in values)
            text = f"<span class=down>The runs differ, and cannot be compared: </span>{escape(differing)}"
        else:
            text = escape(", ".join(values))
        entries.append(f"<dt>{escape(key.replace('_', ' '))}<dd>{text}")
    return f"<dl>{''.join(entries)}</dl>"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)

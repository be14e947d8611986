"""The tables of a report in Markdown, for a repository's pages."""

from __future__ import annotations

from dataseg.experiments.report.collect import Findings
from dataseg.experiments.report.comparison import comparisons_of, headlines
from dataseg.experiments.report.statistics import (
    LEGEND,
    Cell,
    Line,
    absent_text,
    difference_text,
    has_paper,
    lines_of,
    number,
    signed,
)


def markdown(findings: Findings, page: str) -> str:
    """All tables, with the sentence of result; ends with a newline.

    Args:
        page: name of the HTML file, to link to.
    """
    suite = findings.suite
    parts = [f"# {_plain(suite.title)}", suite.about.strip(), f"Charts, examples and conventions: [{page}]({page})."]
    for table in suite.tables:
        lines = lines_of(findings, table)
        comparisons = comparisons_of(findings, table, lines)
        parts += [f"## {_plain(table.title)}", table.about.strip(), *headlines(comparisons)]
        if len({c.other.label for c in comparisons}) == 1:
            parts.append("\n".join(f"- {c.column.title}: {c.answer}, {c.explanation}." for c in comparisons))
        parts.append(_table(findings, lines))
    parts.append(LEGEND)
    if findings.notes:
        parts.append("## Missing\n\n" + "\n".join(f"- {_plain(note)}" for note in findings.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(findings: Findings, lines: list[Line]) -> str:
    columns = findings.suite.columns
    head = ["row", *findings.datasets, "steps", "seeds"]
    marks = ["---", *(":---:" for _ in findings.datasets), "---:", "---:"]
    for c, column in enumerate(columns):
        head.append(column.title)
        marks.append("---:")
        if has_paper(lines, c):
            head.append("paper")
            marks.append("---:")
    rows = []
    for line in lines:
        ticks = ["\N{CHECK MARK}" if name in (line.trained or ()) else "" for name in findings.datasets]
        cells = [_plain(line.label), *ticks, f"{line.steps:,}" if line.steps else "", str(len(line.runs))]
        for c, cell in enumerate(line.cells):
            cells.append(_ours(line, cell))
            if has_paper(lines, c):
                cells.append(_paper(cell))
        rows.append("| " + " | ".join(cells) + " |")
    first = "| " + " | ".join(_plain(cell) for cell in head) + " |"
    return "\n".join([first, "|" + "|".join(marks) + "|", *rows])


def _ours(line: Line, cell: Cell) -> str:
    if cell.spread is None:
        return absent_text(line)
    text = number(cell.spread.median)
    text = f"**{text}**" if cell.is_best else f"*{text}*" if cell.is_transfer else text
    spread = f" [{cell.spread.range}]" if cell.spread.count > 1 else ""
    change = difference_text(cell)
    return text + spread + (f"<br>{change}" if change else "")


def _paper(cell: Cell) -> str:
    if cell.paper is None:
        return ""
    return number(cell.paper) + (f"<br>{signed(cell.paper_difference)}" if cell.paper_difference is not None else "")


def _plain(text: str) -> str:
    """Text that cannot break a table or start markup."""
    text = " ".join(text.split())
    for mark in "\\`*|<>":
        text = text.replace(mark, f"\\{mark}")
    return text

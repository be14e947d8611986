"""The tables of a report in Markdown, for a repository's pages."""

from __future__ import annotations

from collections.abc import Sequence

from dataseg.report.collect import Findings
from dataseg.report.figures import Cell, Line, lines_of, number, signed
from dataseg.report.result import headlines, pairs_of

LEGEND = (
    "Figures are percent: median over the seeds, range from the least to the largest, and the difference to the "
    "column's baseline (ref.). A full triangle marks differences larger than the seeds' range: the ranges of the two "
    "rows do not overlap. A hollow one: one seed, which lies outside the range of the baseline's seeds. Bold: best of "
    "the column. Italic: direct transfer, the row does not train on that data set. Paper: the published figure and its "
    "difference to the published baseline, on the real data sets. n/a: the runs do not have this figure."
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
        pairs = pairs_of(findings, table, lines)
        parts += [f"## {_plain(table.title)}", table.about.strip(), *headlines(pairs)]
        if len({pair.other.label for pair in pairs}) == 1:
            parts.append("\n".join(f"- {p.column.title}: {p.answer}, {p.explanation}." for p in pairs))
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


def absent_text(line: Line) -> str:
    """What stands in the place of a figure: never a number."""
    return "n/a" if line.runs else "not run"


def has_baseline(lines: Sequence[Line], column: int) -> bool:
    """Whether the rows of a column are compared with one of them."""
    return any(line.cells[column].is_baseline for line in lines)


def has_paper(lines: Sequence[Line], column: int) -> bool:
    """Whether the paper has any figure of a column."""
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

"""Write the report of a suite: a page, a Markdown file and its figures, from the runs that are there.

``dataseg report --suite scaling_mini [--runs runs] [--out docs/scaling_mini]``
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from dataseg.experiments.report.collect import collect
from dataseg.experiments.report.html import chapters_of, page, save_figures
from dataseg.experiments.report.markdown import markdown
from dataseg.experiments.suite import load
from dataseg.io.atomic import replacing, write_text


def report(suite_file: Path | str, runs: Path, out: Path | None = None) -> tuple[Path, Path, Path]:
    """Write ``<out>.html``, ``<out>.md`` and, for papers, ``<out>_figures/*.pdf`` and ``.svg``.

    Args:
        suite_file: see `dataseg.experiments.suite.load`.
        runs: folder of all runs.
        out: without suffix; None = ``<runs>/<suite>/report``.

    Returns:
        the two files and the folder of figures.

    Raises:
        UserError: no such suite, or no run of it.
    """
    suite = load(suite_file)
    findings = collect(suite, runs)
    out = out or runs / suite.name / "report"
    html, md, figures = (out.with_name(out.name + ending) for ending in (".html", ".md", "_figures"))
    chapters = chapters_of(findings)
    write_text(html, page(findings, chapters, date.today()))
    write_text(md, markdown(findings, html.name))
    with replacing(figures) as folder:
        save_figures(chapters, folder)
    return html, md, figures


def main(args: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="dataseg report", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True, help="file, or name of one in conf/suite")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, help="files to write, without suffix; default: <runs>/<suite>/report")
    options = parser.parse_args(args)
    html, md, figures = report(options.suite, options.runs, options.out)
    for file in (html, md):
        print(f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)")
    print(f"written: {figures} (every chart as PDF and SVG)")
    return 0

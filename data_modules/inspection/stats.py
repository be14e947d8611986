"""Describe an experiment's datasets on one page: their classes, sizes, and what their vocabularies share.

``dataseg data-stats --exp mini_all``

Writes ``runs/<exp>/data_stats.html``, which needs no other file.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from data_modules.inspection.experiment import Experiment
from data_modules.inspection.statistics import Statistics, describe
from data_modules.layout import MissingDataError
from dataseg.experiments.report.html import render
from dataseg.io.atomic import write_text
from dataseg.structures import UserError
from dataseg.text.overlap import by_vocabularies, report_shared_names
from dataseg.visualization.grid import data_uri


def stats(experiment: Experiment, console: Console | None = None) -> int:
    """Describe all datasets and write the page; returns the exit status."""
    console = console or Console()
    data = experiment.data
    data.make_mini()
    found = []
    for (role, name), reader in experiment.readers().items():
        try:
            reader.setup(data.root)
            result = describe(reader, f"{role} {name}", experiment.option("images"))
        except (MissingDataError, UserError) as error:
            result = Statistics(f"{role} {name}", reader.title, reader.vocabulary, problem=str(error))
            console.print(f"[red]{role} {name}[/]: {error}", highlight=False)
        found.append(result)
    vocabularies = list({result.vocabulary.name: result.vocabulary for result in found}.values())
    similar, note = {}, ""
    try:
        text = experiment.text()
        similar = by_vocabularies(report_shared_names(vocabularies, text, experiment.option("similarity")))
        note = f"cosine of the text vectors of {text.provenance}, {experiment.option('similarity')} or more"
    except UserError as error:
        note = f"not compared: {error}"
        console.print(f"[yellow]vocabularies {note}[/]", highlight=False)
    out = experiment.folder / "data_stats.html"
    context = {"experiment": experiment.config["exp"], "found": found, "similar": similar, "note": note}
    page = render(Path(__file__).with_name("stats.html.j2"), data_uri=data_uri, **context)
    write_text(out, page)
    console.print(f"written: {out}")
    return int(any(result.problem for result in found))


def main(args: list[str] | None = None) -> int:
    options = {
        "images": (int, 2000, "open so many images where no index tells what they hold; 0 = all"),
        "similarity": (float, 0.9, "cosine from which two classes are listed as similar"),
    }
    return stats(Experiment(options, args))

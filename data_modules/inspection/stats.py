"""Describes an experiment's datasets on one page: how much of what there is, how large, and what vocabularies share.

``dataseg data-stats --config conf/exp/mini_all.yaml --exp mini_all``

Writes ``runs/<exp>/data_stats.html``, which needs no other file.
"""

from __future__ import annotations

from rich.console import Console

from data_modules.inspection.experiment import Experiment, run
from data_modules.inspection.statistics import Statistics, describe, similar_classes
from data_modules.inspection.stats_page import page
from data_modules.layout import MissingDataError
from data_modules.mini import ensure
from dataseg.structures import UserError


def stats(experiment: Experiment, console: Console | None = None) -> int:
    """Describe all datasets and write the page; returns the exit status."""
    console = console or Console()
    data = experiment.data
    if data.mini is not None:
        ensure(data.root, data.mini)
    found = []
    for (role, name), reader in experiment.readers().items():
        try:
            reader.setup(data.root)
            result = describe(reader, f"{role} {name}", experiment.option("images"))
        except (MissingDataError, UserError) as error:
            result = Statistics(f"{role} {name}", reader.title, reader.vocabulary, problem=str(error))
            console.print(f"[red]{role} {name}[/]: {error}", highlight=False)
        found.append(result)
    vocabularies = [result.vocabulary for result in found]
    similar, note = {}, ""
    try:
        text = experiment.text()
        similar = similar_classes(vocabularies, text, experiment.option("similarity"))
        note = f"cosine of the text vectors of {text.provenance}, {experiment.option('similarity')} or more"
    except UserError as error:
        note = f"not compared: {error}"
        console.print(f"[yellow]vocabularies {note}[/]", highlight=False)
    out = experiment.folder / "data_stats.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(str(experiment.config["exp"]), found, similar, note), encoding="utf-8")
    console.print(f"written: {out}")
    return int(any(result.problem for result in found))


def main(args: list[str] | None = None) -> int:
    options = {
        "images": (int, 2000, "open so many images where no index tells what they hold; 0 = all"),
        "similarity": (float, 0.9, "cosine from which two classes are listed as similar"),
    }
    return stats(Experiment(options, args))


if __name__ == "__main__":
    run(main)

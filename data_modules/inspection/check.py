"""Find what is wrong with an experiment's data before anything is trained on them.

``dataseg data-check --exp mini_all``

Looks at every record and every image of all datasets, scores each evaluation set against itself, looks for training
images among the evaluation images, and draws some. Writes to ``runs/<exp>/data_check``: ``problems.jsonl`` with all
that was found, and a picture grid per dataset. If it is stopped it goes on where it was. Exit status 1 if something
would stop a training or spoil its scores.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from data_modules.formats.reader import Reader
from data_modules.inspection.experiment import Experiment
from data_modules.inspection.journal import Journal, identity_of, state_of
from data_modules.inspection.problems import Finding, Problem, SelfScore, examine
from data_modules.layout import MissingDataError
from data_modules.survey import evenly_spaced, survey
from dataseg.io.images import ImageArray
from dataseg.structures import Boxes, UserError
from dataseg.visualization.grid import CELL, grid, write
from dataseg.visualization.overlay import draw, resize_picture

EXAMPLES = 3


PICTURES = 12


_CHUNK = 16


@dataclass
class Report:
    """What was found of one dataset.

    Attributes:
        name: role and name, e.g. ``val coco``.
        images: how many were looked at.
        counted: what reading dropped, mended or did not find.
        problems: all of them.
        scores: the ground truth's, against itself, in percent.
        digests: uint64 per image that could be read: stands for its pixels.
        ids: of these images.
    """

    name: str
    title: str
    images: int = 0
    counted: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    ids: list[str] = field(default_factory=list)


def check_data_set(reader: Reader, root: Path, name: str, out: Path, limit: int, workers: int, bar: Progress) -> Report:
    """All but the comparison of datasets with each other.

    Args:
        out: folder for the picture grid and for what is needed to go on after an interruption.
        limit: look at this many images, evenly spaced; 0 = all.
        workers: processes.
    """
    report = Report(name, reader.title)
    try:
        reader.locate(root)
    except MissingDataError as error:
        report.problems.append(Problem("error", "missing", str(error)))
        return report
    stem = name.replace(" ", "_")
    try:
        _read(reader, report.problems, limit)
    except UserError as error:
        report.problems.append(Problem("error", "annotation file", str(error)))
        return report
    indices = evenly_spaced(len(reader), limit)
    with Journal(out / "progress" / f"{stem}.jsonl", identity_of(reader), partial(state_of, reader)) as journal:
        task = bar.add_task(name, total=len(indices), completed=sum(i in journal.done for i in indices))
        for finding in _examine_all(reader, [i for i in indices if i not in journal.done], workers):
            journal.add(finding)
            bar.advance(task)
        found = [journal.done[i] for i in indices]
    report.images, report.counted = len(found), reader.counted
    report.problems += [problem for finding in found for problem in finding.problems]
    readable = [finding for finding in found if finding.digest]
    report.digests = np.array([int(finding.digest, 16) for finding in readable], dtype=np.uint64)
    report.ids = [reader.image_id(finding.row) for finding in readable]
    if name.startswith("val"):
        _score(reader, report, [finding.row for finding in readable])
    write(out / f"{stem}.jpg", grid([drawn(reader, index) for index in evenly_spaced(len(reader), PICTURES)]))
    return report


def drawn(reader: Reader, index: int) -> ImageArray | None:
    """An image with its target drawn, uint8 ``[H, W, 3]``, RGB, the longer side `CELL` pixels.

    None if it cannot be read (the check lists it).
    """
    try:
        image, target = reader.load(index)
    except UserError:
        return None
    scale = CELL / max(image.shape[:2])
    if isinstance(target, Boxes):
        target = replace(target, xyxy=target.xyxy * scale)
    rows, columns = (max(1, round(scale * side)) for side in image.shape[:2])
    return draw(resize_picture(image, (rows, columns)), target, reader.vocabulary)


def _read(reader: Reader, problems: list[Problem], limit: int) -> None:
    """Read the index and look it over; what is wrong is added to ``problems``."""

    def hear(message: str, benign: bool = False, kinds: tuple[str, str] = _OF_RECORDS) -> None:
        problems.append(Problem("warning" if benign else "error", kinds[not benign], message))

    reader.read(hear)
    survey(reader, partial(hear, kinds=_OF_DATASET), limit)


_OF_RECORDS = "records that stop no training", "malformed records"
_OF_DATASET = "lost or suspicious", "nothing to learn from"
_reader: Reader  # of this worker process


def _start(reader: Reader) -> None:
    global _reader
    _reader = reader
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _examine_one(index: int) -> Finding:
    return examine(_reader, index)


def _examine_all(reader: Reader, indices: Sequence[int], workers: int) -> Iterator[Finding]:
    if workers < 2 or len(indices) < 2 * _CHUNK:
        yield from (examine(reader, index) for index in indices)
        return
    with multiprocessing.Pool(workers, _start, (reader,)) as pool:
        yield from pool.imap_unordered(_examine_one, indices, chunksize=_CHUNK)


def _score(reader: Reader, report: Report, indices: Iterable[int]) -> None:
    score = SelfScore(reader, report.name)
    try:
        for index in indices:
            score.update(reader.load(index)[1], reader.image_id(index))
        report.scores = score.compute()
    except UserError as error:
        report.problems.append(Problem("error", "cannot be scored", str(error)))
    for name, value in report.scores.items():
        if value < 100 - 1e-6:
            why = "; segments that make 100 impossible are listed as warnings" if name.startswith("pq") else ""
            message = f"{report.name}: the ground truth scores {name} {value:.4f} against itself, not 100{why}"
            report.problems.append(Problem("warning", "not 100 against itself", message))


def compare(reports: Sequence[Report]) -> None:
    """Add to each report the images that stand twice in it, and the training images that evaluation sets hold."""
    for report in reports:
        values, counts = np.unique(report.digests, return_counts=True)
        for value in values[counts > 1]:
            same = [report.ids[k] for k in np.flatnonzero(report.digests == value)]
            message = f"{report.name}: images {', '.join(same)} are the same"
            report.problems.append(Problem("warning", "duplicates", message))
    trained = [report for report in reports if report.name.startswith("train")]
    for report, other in itertools.product([r for r in reports if r.name.startswith("val")], trained):
        shared, mine, theirs = np.intersect1d(report.digests, other.digests, return_indices=True)
        for k in range(len(shared)):
            message = f"{report.name}: image {report.ids[mine[k]]} is image {other.ids[theirs[k]]} of {other.name}"
            report.problems.append(Problem("error", "trained on", message))


def print_summary(reports: Sequence[Report], console: Console) -> None:
    """Counts by dataset, then the first examples of every kind of problem."""
    table = Table("dataset", "", "images", "errors", "warnings", "against itself")
    for report in reports:
        by = Counter(problem.severity for problem in report.problems)
        scores = ", ".join(f"{name} {value:.2f}" for name, value in report.scores.items())
        table.add_row(report.name, report.title, f"{report.images:,}", f"{by['error']:,}", f"{by['warning']:,}", scores)
    console.print(table)
    for report in reports:
        if report.counted:
            console.print(f"{report.name}: {', '.join(report.counted)}", highlight=False, soft_wrap=True)
        kinds = sorted({(p.severity, p.kind) for p in report.problems})
        for severity, kind in kinds:
            same = [p for p in report.problems if (p.severity, p.kind) == (severity, kind)]
            color = "red" if severity == "error" else "yellow"
            console.print(f"[{color}]{severity}[/] {report.name}: {kind}, {len(same):,}")
            for problem in same[:EXAMPLES]:
                console.print(f"    {problem.message}", markup=False, highlight=False, soft_wrap=True)


def write_problems(reports: Sequence[Report], path: Path) -> None:
    """All problems, one JSON object a line."""
    lines = [json.dumps({"data_set": r.name, **p._asdict()}, ensure_ascii=False) for r in reports for p in r.problems]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def check(experiment: Experiment, console: Console | None = None) -> int:
    """The whole check; returns the exit status."""
    console = console or Console()
    data, out = experiment.data, experiment.folder / "data_check"
    data.make_mini()
    workers = experiment.option("workers") or data.num_workers
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    reports = []
    with Progress(*columns, console=console) as bar:
        for (role, name), reader in experiment.readers().items():
            limit = experiment.option("images")
            reports.append(check_data_set(reader, data.root, f"{role} {name}", out, limit, workers, bar))
    compare(reports)
    print_summary(reports, console)
    write_problems(reports, out / "problems.jsonl")
    shutil.rmtree(out / "progress", ignore_errors=True)  # the next check looks at all files anew: they may be mended
    console.print(f"pictures and the full list: {out}")
    return int(any(problem.severity == "error" for report in reports for problem in report.problems))


def main(args: list[str] | None = None) -> int:
    options = {
        "images": (int, 0, "look at so many images of each dataset, evenly spaced; 0 = all"),
        "workers": (int, 0, "processes; 0 = as in training"),
    }
    return check(Experiment(options, args))

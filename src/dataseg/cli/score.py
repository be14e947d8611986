r"""Score prediction files of any model against ground-truth files, in the official formats.

    dataseg score --task panoptic --gt panoptic_val2017.json --pred results.json
    dataseg score --task instance --gt instances_val2017.json --pred results.json
    dataseg score --task semantic --gt annotations/validation --pred results \
        --vocabulary data_modules/vocabularies/ade20k_150.json --gt-ignore 0

Prints the scores in percent and writes them, with the convention behind them, beside the predictions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from dataseg.io.shipped import find
from dataseg.metrics.by_task import metric_for
from dataseg.metrics.mean_iou import Convention
from dataseg.metrics.panoptic_quality import AreaMode
from dataseg.prediction_files import write_json
from dataseg.prediction_files.files_of_task import FILES_OF_TASK, Inputs
from dataseg.structures import Task, UserError, Vocabulary
from dataseg.visualization.class_tables import confusion_markdown, per_class_markdown, scores_of_class


@dataclass
class Scores:
    """Scores as fractions, their convention, and those of each class; see the metric's own documentation.

    Attributes:
        unused: predicted images that the ground truth lacks.
        unanswered: images of the ground truth without a prediction.
    """

    values: dict[str, float]
    convention: dict[str, str]
    per_class: dict[str, Tensor]
    vocabulary: Vocabulary
    images: int
    confusion: Tensor | None = None
    unused: int = 0
    unanswered: int = 0

    def to_json(self) -> dict[str, Any]:
        """Scores in percent (null where undefined), counts as they are."""
        content: dict[str, Any] = {name: _percent(value) for name, value in self.values.items()}
        content |= {"unit": "percent", "images": self.images, "convention": self.convention}
        content["per_class"] = scores_of_class(self.per_class, self.vocabulary.names)
        if self.confusion is not None:
            content["confusion"] = self.confusion.tolist()
        return content


def _percent(value: float) -> float | None:
    return None if value != value else 100 * value


def score(task: Task, inputs: Inputs, progress: bool = False) -> Scores:
    """Score files.

    Raises:
        UserError: a missing, broken or inconsistent file or record; names it.
    """
    vocabulary, image_ids, load, predicted = FILES_OF_TASK[task].prepare(inputs)
    if not image_ids:
        raise UserError(f"{inputs.gt}: holds no image")
    metric = metric_for(task, vocabulary, str(inputs.gt), areas=inputs.areas, convention=inputs.convention)
    console = Console(stderr=True)
    for image_id in track(image_ids, "scoring", console=console, disable=not progress, transient=True):
        prediction, target = load(image_id)
        metric.update(prediction, target, image_id)
    return Scores(
        {name: float(value) for name, value in metric.compute().items()},
        metric.convention,
        metric.per_class(),
        vocabulary,
        len(image_ids),
        confusion=metric.confusion_matrix(),
        unused=len(set(predicted) - set(image_ids)),
        unanswered=len(set(image_ids) - set(predicted)),
    )


def report(scores: Scores, console: Console, per_class: bool) -> None:
    """Print the scores, the convention and, if wanted, the classes."""
    table = Table(title=f"{scores.convention['metric']}: {scores.images} images")
    table.add_column("score")
    table.add_column("percent", justify="right")
    for name, value in scores.values.items():
        table.add_row(name, "-" if value != value else f"{100 * value:.3f}")
    console.print(table)
    for name, text in scores.convention.items():
        console.print(f"  {name}: {text}", highlight=False)
    if scores.unused:
        console.print(f"  note: {scores.unused} predicted image(s) are not in the ground truth and were left out")
    if scores.unanswered:
        console.print(f"  note: {scores.unanswered} of {scores.images} images have no prediction in the file")
    if per_class:
        console.print(per_class_markdown(scores.per_class, scores.vocabulary.names), highlight=False, markup=False)
        if scores.confusion is not None:
            console.print(confusion_markdown(scores.confusion, scores.vocabulary.names), highlight=False, markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataseg score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=[t.value for t in Task])
    parser.add_argument("--gt", required=True, type=Path, help="ground truth: JSON file, or folder of label maps")
    parser.add_argument("--pred", required=True, type=Path, help="predictions: JSON file, or folder of label maps")
    parser.add_argument("--vocabulary", type=Path, help="classes; default: the categories of the ground truth")
    parser.add_argument("--gt-folder", type=Path, help="panoptic PNGs; default: named like the JSON file")
    parser.add_argument("--pred-folder", type=Path, help="panoptic PNGs; default: named like the JSON file")
    for side in ("gt", "pred"):
        parser.add_argument(f"--{side}-shift", type=int, default=0, help="added to class ids before they are looked up")
        parser.add_argument(
            f"--{side}-ignore", type=int, nargs="*", default=[], help="values of label maps without a label"
        )
    parser.add_argument("--areas", choices=get_args(AreaMode), default="stored", help="panoptic only")
    parser.add_argument("--convention", choices=get_args(Convention), default="detectron2", help="semantic only")
    parser.add_argument("--per-class", action="store_true", help="print the scores of each class")
    parser.add_argument("--out", type=Path, help="JSON file for the scores; default: <pred>.<task>_scores.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0."""
    options = vars(_parser().parse_args(arguments))
    task, out, per_class = Task(options.pop("task")), options.pop("out"), options.pop("per_class")
    if options["vocabulary"] is not None:
        options["vocabulary"] = Vocabulary.load(find(options["vocabulary"]))
    options |= {name: tuple(options[name]) for name in ("gt_ignore", "pred_ignore")}
    scores = score(task, Inputs(**options), progress=sys.stderr.isatty())
    console = Console()
    report(scores, console, per_class)
    pred: Path = options["pred"]
    out = out or pred.with_name(f"{pred.stem}.{task}_scores.json")
    files = {"gt": str(options["gt"]), "pred": str(pred)}
    write_json(out, {**scores.to_json(), "task": str(task), "files": files}, indent=2)
    console.print(f"written: {out}", highlight=False, soft_wrap=True)
    return 0

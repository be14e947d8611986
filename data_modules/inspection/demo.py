"""Try a model on a page, or compare two: any image, any class names, any task.

    dataseg demo runs/mini_all/version_0/checkpoints/best.ckpt
    dataseg demo separate.ckpt together.ckpt

Models are checkpoints of runs or what `dataseg.load` takes. Images are one's own, or those that the first run among the
models was validated on: with ground truth, and with the scores of that one image. The page is made with gradio
(``pip install 'dataseg[demo]'``), is served to this machine alone unless ``--host`` says otherwise, and asks nothing
of any other server.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from data_modules import formats
from data_modules.formats.reader import Reader
from data_modules.layout import find_missing, tell_skipped
from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint.load import is_run
from dataseg.cli.predict import ENCODER, describe, device_of, load_model
from dataseg.config.build import Registry
from dataseg.config.renamed import with_current_names
from dataseg.deployment.from_run import config_of
from dataseg.deployment.predictor import Predictor, vocabulary_of_names
from dataseg.deployment.registry import PACKAGES
from dataseg.io.images import write_png
from dataseg.io.json_files import write_json
from dataseg.metrics.by_task import metric_for, primary_score
from dataseg.prediction_files.writers import LabelWriter
from dataseg.structures import VOID, SegmentMap, Segments, Target, Task, UserError, Vocabulary
from dataseg.visualization.overlay import MIN_SCORE, confident, draw

OWN_NAMES = "my own class names"
"""Choice in place of a dataset."""

_MOST_SCORES = 3


@dataclass(frozen=True)
class Example:
    """A validation image.

    Attributes:
        dataset: its name.
        image: uint8 ``[H, W, 3]``, RGB.
        target: ground truth.
        tasks: those that the ground truth can score.
    """

    dataset: str
    image: NDArray[np.uint8]
    target: Target
    vocabulary: Vocabulary
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    Attributes:
        segments: without instances of a lower score than was asked for.
        vocabulary: of their labels.
        scores: of this image alone against its ground truth, percent, the primary score first; may be empty.
    """

    segments: Segments
    vocabulary: Vocabulary
    scores: dict[str, float] = field(default_factory=dict)


class Demo:
    """All that the page asks for.

    Args:
        models: by the name that they are shown under; one or more.
        readers: validation sets by name, set up when they are first asked for.
        root: folder that holds their files.
    """

    def __init__(self, models: Mapping[str, Predictor], readers: Mapping[str, Reader], root: Path = Path()) -> None:
        self.models = dict(models)
        self.readers = dict(readers)
        self._root = root
        self._ready: set[str] = set()

    @property
    def datasets(self) -> list[str]:
        """Those whose vocabulary every model has."""
        first, *others = self.models.values()
        return [name for name in first.vocabularies if all(name in other.vocabularies for other in others)]

    def least_score(self, task: Task) -> float:
        """The smallest score that is shown unless something else is asked for."""
        if task is Task.PANOPTIC:
            return next(iter(self.models.values())).postprocess.panoptic.score_threshold
        return MIN_SCORE

    def example(self, dataset: str, index: int) -> Example:
        """A validation image; numbers beyond the last one start anew.

        Raises:
            UserError: the dataset's files cannot be read.
        """
        reader = self.readers[dataset]
        if dataset not in self._ready:
            reader.setup(self._root)
            self._ready.add(dataset)
        image, target = reader.load(index % len(reader))
        tasks = {*reader.tasks, *((Task.SEMANTIC,) if isinstance(target, SegmentMap) else ())}
        return Example(dataset, image, target, reader.vocabulary, tuple(task for task in Task if task in tasks))

    def answer(
        self,
        model: str,
        image: NDArray[np.uint8],
        names: str | Sequence[str],
        task: Task,
        min_score: float,
        truth: Example | None = None,
    ) -> Answer:
        """Segment an image with one of the models.

        Args:
            model: its name.
            image: uint8 ``[H, W, 3]``, RGB.
            names: a dataset, or class names.
            task: what is predicted.
            min_score: segments of a lower score take no part, in [0, 1]; semantic segments have none.
            truth: what the image's scores are measured against, where it has the same vocabulary.

        Raises:
            UserError: no class names, or some that the model has no text vectors of.
        """
        predictor = self.models[model]
        vocabulary = predictor.vocabulary(names) if isinstance(names, str) else vocabulary_of_names(names)
        options = predictor.postprocess
        asked = copy.copy(predictor)  # shares the network
        asked.postprocess = replace(options, panoptic=replace(options.panoptic, score_threshold=min_score))
        segments = asked(image, vocabulary, task).to("cpu")
        scores = {}
        if truth is not None and task in truth.tasks and vocabulary.digest == truth.vocabulary.digest:
            scores = _scores(segments, truth, task)
        return Answer(confident(segments, min_score), vocabulary, scores)


def _scores(segments: Segments, truth: Example, task: Task) -> dict[str, float]:
    metric = metric_for(task, truth.vocabulary, truth.dataset)
    metric.update(segments, truth.target, "image")
    found = {name: 100 * float(value) for name, value in metric.compute().items() if value.isfinite()}
    first = primary_score(task, metric)
    return dict(sorted(found.items(), key=lambda entry: entry[0] != first)[:_MOST_SCORES])


# --------------------------------------------------------------------------------------------------- what is handed out


def rows_of(answer: Answer) -> list[list[Any]]:
    """Of each segment the class, its score if it has one, and its share of the image in percent."""
    pixels = int(np.prod(answer.segments.size))
    return [
        [
            record["category"],
            round(record["score"], 3) if "score" in record else None,
            round(100 * record["area"] / pixels, 2),
        ]
        for record in describe(answer.segments, answer.vocabulary)
    ]


def write_files(folder: Path, image: NDArray[np.uint8], answer: Answer) -> tuple[Path, Path, Path]:
    """Write the overlay, the segments as a COCO annotation file, and the official id of every pixel's class as PNG."""
    picture, annotations = folder / "overlay.png", folder / "segments.json"
    write_png(picture, draw(image, answer.segments, answer.vocabulary, is_prediction=True))
    height, width = answer.segments.size
    records = describe(answer.segments, answer.vocabulary)
    write_json(
        annotations,
        {
            "images": [{"id": 1, "file_name": picture.name, "height": height, "width": width}],
            "annotations": [{"id": k, "image_id": 1, "iscrowd": 0} | r for k, r in enumerate(records, start=1)],
            "categories": [{"id": spec.id, "name": spec.name} for spec in answer.vocabulary.classes],
        },
    )
    LabelWriter(folder, answer.vocabulary).add(_as_map(answer.segments), "classes")
    return picture, annotations, folder / "classes.png"


def _as_map(segments: Segments) -> SegmentMap:
    """Of masks that overlap, each pixel belongs to the one of the highest score."""
    if isinstance(segments, SegmentMap):
        return segments
    ids = np.full(segments.size, VOID, np.int64)
    scores = torch.ones(len(segments)) if segments.scores is None else segments.scores
    for k in torch.argsort(scores).tolist():
        ids[coco_mask.decode(segments.rles[k]).astype(bool)] = k
    return SegmentMap(torch.from_numpy(ids), segments.labels)


# --------------------------------------------------------------------------------------------------- command line


def validation_sets(
    checkpoint: Path, root: Path | None = None, packages: tuple[str, ...] = ()
) -> tuple[dict[str, Reader], Path, str]:
    """The validation sets that a run's configuration names and whose files are there.

    Args:
        checkpoint: of the run.
        root: folder that holds the datasets; None = as the configuration says.
        packages: whose readers the configuration may name, beside this project's.

    Returns:
        Readers by name, the folder, and a message about what is missing, if anything is.

    Raises:
        UserError: the configuration describes readers that cannot be built.
    """
    path = config_of(checkpoint)
    data = with_current_names(yaml.safe_load(path.read_text(encoding="utf-8")))["data"]["init_args"]
    known = {f"data_modules.formats.{name}": getattr(formats, name) for name in formats.__all__}
    build = Registry(known, packages).build
    readers = {name: build(Reader, section, f"{path}: data.val.{name}") for name, section in data["val"].items()}
    folder = root or Path(data["root"])
    if data.get("mini") and root is None:
        ensure(folder, build(MiniSpec, data["mini"], f"{path}: data.mini"))
    missing = find_missing(readers.items(), folder)
    for name, _ in missing:
        del readers[name]
    return readers, folder, tell_skipped(missing, len(readers) + len(missing), folder) if missing else ""


def _shown_names(sources: Sequence[str]) -> list[str]:
    """Of each model the part of its path that differs from the others' and tells it from them."""
    parts = [Path(source).parts for source in sources]
    common = next((k for k, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1), 0)
    return ["/".join(part for part in words[common:] if part != "checkpoints") for words in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is stopped."""
    parser = argparse.ArgumentParser(
        prog="dataseg demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="one or two: *.ckpt of a run, *.safetensors, or hf://owner/name")
    parser.add_argument(
        "--data", type=Path, help="folder that holds the datasets; default: as the run's config.yaml says"
    )
    parser.add_argument("--encoder", help=ENCODER)
    parser.add_argument("--packages", nargs="*", default=[], help=PACKAGES)
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        raise UserError("the page is made with gradio: pip install 'dataseg[demo]', or make demo CKPT=...")
    if len(options.models) > 2 or len(set(options.models)) < len(options.models):
        raise UserError(f"one model, or two different ones, can be looked at; got {' '.join(options.models)}")
    packages, device = tuple(options.packages), device_of(options.device)
    models = [load_model(source, options.encoder, packages).to(device) for source in options.models]
    readers, root, problem = {}, Path(), "none of the models is a run: its config.yaml would name validation sets"
    run = next((Path(source) for source in options.models if is_run(Path(source))), None)
    if run is not None:
        readers, root, problem = validation_sets(run, options.data, packages)
    if problem:
        print(problem)
    demo = Demo(dict(zip(_shown_names(options.models), models, strict=True)), readers, root)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from data_modules.inspection.demo_page import serve

    serve(demo, options.host, options.port)
    return 0

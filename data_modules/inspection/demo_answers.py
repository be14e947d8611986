"""What the demo's page asks for: images with ground truth, a model's segments with their scores, files to download."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from data_modules.formats.reader import Reader
from dataseg.cli.predict import describe
from dataseg.deployment.predictor import Predictor, vocabulary_of_names
from dataseg.io.images import write_png
from dataseg.io.json_files import write_json
from dataseg.metrics.by_task import metric_for, primary_score
from dataseg.network import SegmentationNetwork
from dataseg.prediction_files.writers import LabelWriter
from dataseg.structures import VOID, ClassEmbeddings, Proposals, SegmentMap, Segments, Target, Task, Vocabulary
from dataseg.visualization.overlay import MIN_SCORE, confident, draw

OWN_NAMES = "my own class names"
"""Choice in place of a dataset."""

_MOST_SCORES = 3

_MOST_KEPT = 8
"""Answers of a network that are kept; one is tens of megabytes at usual sizes."""


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


class _Remembering:
    """A network that is asked the same only once: tasks and smallest scores change what is made of its answer."""

    def __init__(self, network: SegmentationNetwork) -> None:
        self._network = network
        self._kept: dict[Hashable, list[Proposals]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, images: Tensor, classes: ClassEmbeddings, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        pixels, vectors = (tensor.cpu().numpy().tobytes() for tensor in (images, classes.vectors))
        key = pixels, images.shape, tuple(sizes), vectors, classes.vocabulary
        if key not in self._kept:
            if len(self._kept) == _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self._network(images, classes, sizes)[-1:]
        return self._kept[key]


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
        self._networks = {name: _Remembering(model.network) for name, model in models.items()}

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
        asked = copy.copy(predictor)
        asked.network = cast(SegmentationNetwork, self._networks[model])
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

"""The step at which a run stopped because a loss or gradient was not finite, written down for ``dataseg replay``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataseg.io.atomic import replacing
from dataseg.structures import Batch, Boxes, ClassEmbeddings, InstanceMasks, SegmentMap, Target, Task, Vocabulary
from dataseg.training.module import CoTrainedSegmenter
from dataseg.training.sharding import whole_weights

_TARGETS = {kind.__name__: kind for kind in (SegmentMap, Boxes, InstanceMasks)}


def write_replay(
    file: Path,
    module: CoTrainedSegmenter,
    batches: Sequence[Sequence[Batch]],
    seeds: Sequence[int],
    facts: dict[str, Any],
) -> None:
    """Write one rank's part of a step, and beside it, on the first rank, ``weights.pt`` for all of them.

    All ranks must call it: the weights may be sharded.

    Args:
        file: of this rank; its folder is made.
        module: with the weights of before the step.
        batches: of the step, by accumulated batch and dataset.
        seeds: of torch's generator, by accumulated batch.
        facts: what else to tell, plain values; "precision" and "device" are used.
    """
    weights = whole_weights(module)
    if weights:
        _save(weights, weights_file(file))
    datasets = {part.dataset: module.datasets[part.dataset].vocabulary.to_json() for step in batches for part in step}
    classes = {name: {**_to_plain(module.classes(name)), "vocabulary": own} for name, own in datasets.items()}
    content = {"batches": [[_to_plain(b) for b in step] for step in batches], "seeds": list(seeds), "facts": facts}
    _save({**content, "classes": classes}, file)


def weights_file(file: Path) -> Path:
    """Where the weights lie that belong to a replay file."""
    return file.with_name(f"{file.name.rpartition('-rank-')[0]}-weights.pt")


def _save(content: Any, path: Path) -> None:
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _to_plain(record: Any) -> Any:
    """Records as dictionaries of tensors and plain values, which load with ``weights_only=True``."""
    if isinstance(record, Batch | ClassEmbeddings | SegmentMap | Boxes | InstanceMasks):
        content = {f.name: _to_plain(getattr(record, f.name)) for f in fields(record)}
        return {**content, "kind": type(record).__name__}
    if isinstance(record, list):
        return [_to_plain(item) for item in record]
    if isinstance(record, Tensor):
        return record.detach().cpu()
    return str(record) if isinstance(record, Task) else record


def batch_from_plain(content: dict[str, Any]) -> Batch:
    values = {name: value for name, value in content.items() if name != "kind"}
    for name in ("targets", "step_targets"):  # 0.1 had no step_targets
        values[name] = None if values.get(name) is None else [_target_from_plain(target) for target in values[name]]
    return Batch(**{**values, "task": Task(content["task"])})


def _target_from_plain(content: dict[str, Any]) -> Target:
    return _TARGETS[content["kind"]](**{name: value for name, value in content.items() if name != "kind"})


def classes_from_plain(content: dict[str, Any]) -> tuple[Vocabulary, ClassEmbeddings]:
    """A dataset's vocabulary, and what the classifier is given of it."""
    own = Vocabulary.from_json(content["vocabulary"])
    return own, ClassEmbeddings(content["vectors"], content["class_index"], len(own), own.name)

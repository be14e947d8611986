"""Reads what a training run left behind: its checkpoint, one file or a folder of shards, without running anything."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataseg.checkpoint import consolidate
from dataseg.checkpoint.fit_report import FitReport
from dataseg.network import PerVocabularyClassifier, SegmentationNetwork
from dataseg.structures import UserError


@dataclass
class TrainingCheckpoint:
    """A checkpoint of `dataseg.training.module.CoTrainedSegmenter` without its optimiser.

    Attributes:
        state_dict: of the LightningModule, whole tensors on the CPU.
        vocabularies: JSON by dataset.
        step: optimisation steps done.
    """

    state_dict: dict[str, Tensor]
    vocabularies: dict[str, Any]
    step: int


def read_checkpoint(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint; of a file, only what is needed comes into memory.

    Args:
        path: file, or a folder of shards.

    Raises:
        UserError: missing, damaged, holding more than plain values, or of something else; names the path.
    """
    content = consolidate.consolidate(path) if path.is_dir() else _read_file(path)
    for key, what in (("state_dict", "weights"), ("vocabularies", "vocabularies")):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise UserError(f"{path}: holds no {what} ({key}), so it is no checkpoint of this project's training")
    state, step = content["state_dict"], content.get("global_step", 0)
    if not isinstance(step, int) or not all(isinstance(n, str) and is_whole(t) for n, t in state.items()):
        raise UserError(f"{path}: its state_dict or global_step is no state dict and step, so it is no checkpoint")
    return TrainingCheckpoint(state, content["vocabularies"], step)


def require_checkpoint(path: Path) -> None:
    """Refuse what is no checkpoint, before anything else is done.

    Raises:
        UserError: as `read_checkpoint`; of a folder of shards, only that it is one is looked at.
    """
    if path.is_dir():
        consolidate.require_shards(path)
    else:
        read_checkpoint(path)


def is_run(path: Path) -> bool:
    """Whether a path has the name of a run's checkpoint, a file or a folder of shards."""
    return path.suffix == ".ckpt"


def load_run(network: SegmentationNetwork, path: Path) -> list[str]:
    """Start from the weights of a run, without its optimiser and step. All or nothing is changed.

    Args:
        network: of the same architecture; vocabularies may differ where the classifier learns vectors of them, and
            learnt class vectors may take the place of the run's text vectors.

    Returns:
        Names of the vocabularies that the run has learnt nothing of: their vectors stay as they are in ``network``.

    Raises:
        UserError: as `read_checkpoint`; or it is of another network, with the first differences.
    """
    state = {
        name.removeprefix("network."): tensor
        for name, tensor in read_checkpoint(path).state_dict.items()
        if name.startswith("network.")
    }
    head = network.classifier
    lacking = head.align(state, "classifier.", to_train=True) if isinstance(head, PerVocabularyClassifier) else []
    FitReport.of(state, network.state_dict()).require(path)
    network.load_state_dict(state)
    return lacking


def is_whole(tensor: Any) -> bool:
    """Whether this is a tensor with a place for every element: a view could have a size without having the memory."""
    return isinstance(tensor, Tensor) and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    if not zipfile.is_zipfile(path):  # what torch.save writes
        raise UserError(f"{path}: damaged or no checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is damaged, or holds more than tensors and plain values, which is not read: it could run code"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: damaged or no checkpoint ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]

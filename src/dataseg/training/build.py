"""What a run starts from: weights, and the classifier that goes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from dataseg.checkpoint.load import is_run, load_run
from dataseg.checkpoint.mask2former import load_published
from dataseg.network import LinearClassifier, PerVocabularyClassifier, SegmentationNetwork, TextClassifier
from dataseg.structures import ClassEmbeddings, DatasetSpec, UserError, Vocabulary

ClassifierKind: TypeAlias = Literal["text", "centered", "learnt", "linear"]
BackgroundKind: TypeAlias = Literal["shared", "separate"]


class Embeddings(Protocol):
    """What gives a vocabulary's class embeddings, and says what they were made with."""

    @property
    def provenance(self) -> str: ...

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings: ...


@dataclass(frozen=True)
class NoEmbeddings:
    """For a classifier that needs a vocabulary's name and number of classes alone: no text encoder is downloaded.

    Attributes:
        provenance: what takes the text vectors' place.
    """

    provenance: str

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        return ClassEmbeddings.blank(vocabulary)


def prepare(
    network: SegmentationNetwork,
    text: Embeddings,
    datasets: Mapping[str, DatasetSpec],
    weights: Path | None,
    classifier: ClassifierKind,
    background: BackgroundKind,
) -> Embeddings:
    """Give a network its classifier and the weights to start from, in place.

    Args:
        network: changed; on the CPU.
        text: for the text classifier.
        datasets: by name.
        weights: see `dataseg.training.module.CoTrainedSegmenter`, as the two below.
        classifier: kind of class vectors.
        background: kind of background vector.

    Returns:
        What gives the class embeddings of the classifier: ``text``, or `NoEmbeddings`.

    Raises:
        UserError: weights and options do not go together, or do not fit the network or the datasets.
    """
    own_run = weights if weights is not None and is_run(weights) else None
    if classifier == "linear" and (weights is None or own_run is not None):
        found = "give model.weights too" if weights is None else f"{weights} has none"
        raise UserError(f"model.classifier=linear keeps the class head of published weights: {found}")
    if weights is not None and own_run is None:
        rank_zero_info(str(load_published(network, weights, "linear" if classifier == "linear" else "drop")))
    vocabularies = list(dict.fromkeys(spec.vocabulary for spec in datasets.values()))
    if classifier == "centered":
        trained = dict.fromkeys(spec.vocabulary for spec in datasets.values() if spec.is_trained)
        _text_classifier(network).center_on(torch.cat([text(vocabulary).vectors for vocabulary in trained]))
    if classifier == "learnt" or background == "separate":
        counts = {name: len(v) for name, v in _by_name(vocabularies).items()}
        network.classifier = PerVocabularyClassifier(
            _text_classifier(network),
            classes=counts if classifier == "learnt" else {},
            backgrounds=list(counts) if background == "separate" else [],
        )
    if own_run is not None:
        lacking = load_run(network, own_run)
        anew = f"; vectors of the vocabularies that it did not train with start anew: {', '.join(lacking)}"
        rank_zero_info(f"{own_run}: weights loaded" + anew * bool(lacking))
    if classifier == "linear":
        _check_class_counts(network, weights, datasets)
        return NoEmbeddings(f"class head of {weights}, none of text")
    return NoEmbeddings("learnt vectors, none of text") if classifier == "learnt" else text


def _text_classifier(network: SegmentationNetwork) -> TextClassifier:
    if not isinstance(network.classifier, TextClassifier):
        raise UserError(
            "model.classifier=learnt or centered and model.background=separate need a TextClassifier as the network's"
            f" classifier, not {type(network.classifier).__name__}"
        )
    return network.classifier


def _by_name(vocabularies: Sequence[Vocabulary]) -> dict[str, Vocabulary]:
    """For what is learnt of each vocabulary, and kept in checkpoints by its name."""
    names = [vocabulary.name for vocabulary in vocabularies]
    twice = sorted({name for name in names if names.count(name) > 1})
    odd = sorted(name for name in names if "." in name or hasattr(nn.ModuleDict, name))
    if twice or odd:
        reason = f"the names {twice} stand for different classes" if twice else f"{odd} cannot be names of parameters"
        raise UserError(f"vectors are learnt by the names of vocabularies, but {reason}: rename them")
    return dict(zip(names, vocabularies, strict=True))


def _check_class_counts(
    network: SegmentationNetwork, weights: Path | None, datasets: Mapping[str, DatasetSpec]
) -> None:
    known = cast(LinearClassifier, network.classifier).num_classes
    others = {name: len(spec.vocabulary) for name, spec in datasets.items() if len(spec.vocabulary) != known}
    if others:
        raise UserError(
            f"the class head of {weights} knows {known} classes, but the datasets have {others}: it serves only the"
            " one that it was trained on. Take that one alone, as with EXP=r50_coco and"
            " ARGS=\"--data.val='{coco: conf/data/coco_val.yaml}'\""
        )

"""The network of an exported model or a checkpoint, built from its configuration and its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dataseg.checkpoint.fit_report import FitReport
from dataseg.config.instantiate import class_paths, instantiate, without_downloads
from dataseg.deployment.model_file import NETWORK
from dataseg.network import LinearClassifier, SegmentationNetwork, TextClassifier, classifier_for
from dataseg.structures import UserError


def build_network(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str, packages: tuple[str, ...] = ()
) -> SegmentationNetwork:
    """The network of a configuration with these weights, in evaluation mode; nothing is downloaded.

    Args:
        config: of a run; its ``model.network`` is used.
        weights: the whole state dict. A linear classifier in it takes the place of the configured one; vectors that a
            text classifier learnt of vocabularies are taken over.
        source: the file, for messages.
        packages: whose classes the configuration may name, beside this one.

    Raises:
        UserError: the configuration names other classes, cannot be understood, or does not fit the weights.
    """
    try:
        section = config["model"]["network"]
    except (KeyError, TypeError):
        raise UserError(f"{source}: the configuration has no model.network") from None
    for name in class_paths(section):
        if name.split(".")[0] not in ("dataseg", *packages):
            raise UserError(
                f"{source}: its network is of the class {name}, which is not of this project. If you trust it, say so:"
                f" dataseg.load(path, packages=({name.split('.')[0]!r},))"
            )
    network: SegmentationNetwork = instantiate(
        SegmentationNetwork, without_downloads(section), f"{source}: model.network"
    )
    head = weights.get("classifier.linear.weight")
    if head is not None and not isinstance(network.classifier, LinearClassifier):
        network.classifier = LinearClassifier(head.shape[1], head.shape[0] - 1)
    if isinstance(network.classifier, TextClassifier):
        own = "classifier."
        state = {k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)}
        network.classifier = classifier_for(network.classifier, state)
    FitReport.of(weights, network.state_dict()).require(source)
    network.load_state_dict(dict(weights))
    return network.eval()


def network_weights(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The network's part of a LightningModule's state dict; wrappers that torch.compile leaves in names are undone.

    Raises:
        UserError: there is no such part.
    """
    found = {
        re.sub(r"(^|\.)_orig_mod\.", r"\1", name.removeprefix(NETWORK)): value
        for name, value in state_dict.items()
        if name.startswith(NETWORK)
    }
    if not found:
        raise UserError(
            f"{source}: holds no weights named network.*, so it is no checkpoint of this project's training"
        )
    return found

"""The network of an exported model or a checkpoint, built from its configuration and its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dataseg.checkpoint.fit_report import FitReport
from dataseg.deployment.model_file import NETWORK
from dataseg.deployment.registry import registry
from dataseg.network import LinearClassifier, SegmentationNetwork, TextClassifier, classifier_for
from dataseg.network.backbones.timm_factory import restricted
from dataseg.structures import UserError


def build_network(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str, packages: tuple[str, ...] = ()
) -> SegmentationNetwork:
    """The network of a configuration with these weights, in evaluation mode.

    The configuration may be anybody's: it names listed classes only, nothing is downloaded, and no memory is taken
    before it is known that the network has the tensors of ``weights``.

    Args:
        config: of a run; its ``model.network`` is used.
        weights: the whole state dict. A linear classifier in it takes the place of the configured one; vectors that a
            text classifier learnt of vocabularies are taken over.
        source: the file, for messages.
        packages: whose classes the configuration may name, beside this one; "timm" admits all options of timm's.
            Their authors are trusted: sizes are believed.

    Raises:
        UserError: the configuration names other classes, cannot be understood, or does not fit the weights.
    """
    try:
        section = config["model"]["network"]
    except (KeyError, TypeError):
        raise UserError(f"{source}: the configuration has no model.network") from None

    def build() -> SegmentationNetwork:
        where = f"{source}: model.network"
        network = registry(packages).build(SegmentationNetwork, section, where)
        head = weights.get("classifier.linear.weight")
        if head is not None and head.ndim == 2 and not isinstance(network.classifier, LinearClassifier):
            network.classifier = LinearClassifier(head.shape[1], head.shape[0] - 1)
        if isinstance(network.classifier, TextClassifier):
            own = "classifier."
            state = {k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)}
            try:
                network.classifier = classifier_for(network.classifier, state)
            except (IndexError, KeyError, TypeError) as error:  # names that no classifier gives its parameters
                raise UserError(f"{source}: the names of its classifier's weights cannot be read ({error})") from error
        return network

    with nullcontext() if "timm" in packages else restricted():
        if not packages:
            with torch.device("meta"), _at_most(len(weights)):
                network = build()
            FitReport.of(weights, network.state_dict()).require(source)
        network = build()
    FitReport.of(weights, network.state_dict()).require(source)
    network.load_state_dict(dict(weights))
    return network.eval()


@contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Refuse, while it is built, a network that has far more parameters than a file has tensors.

    Backbones are built up to three times to find out their strides.
    """
    limit, count = 4 * tensors + 1000, 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise UserError(f"the configured network has more than {limit:,} parameters, the file {tensors} tensors")

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


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

"""A model in one file: weights, text vectors, vocabularies and configuration, as safetensors. Nothing in it is run.

Tensors: ``network.<name>`` as in the network's state dict, and ``text.vectors``, ``[N, D]``. The rest is JSON in the
metadata: ``config`` (the run's resolved configuration), ``vocabularies`` (by data set), ``text`` (the names of the
vectors' rows, and what they were made with) and ``provenance``.

Shape legend: N = names, D = width of the text space.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dataseg.network import LinearClassifier, MaskClassificationNetwork, TextClassifier
from dataseg.structures import UserError, Vocabulary
from dataseg.text_cache import TextCache

FORMAT = "dataseg model 1"
_NETWORK, _VECTORS = "network.", "text.vectors"


@dataclass
class ModelFile:
    """What stands in the file.

    Attributes:
        weights: the network's state dict.
        config: of the run, resolved; ``model.network`` is what the network is built from.
        vocabularies: by data set.
        text: vectors of all names of the vocabularies; "encoder" and "templates" in its metadata say whose they are.
        provenance: where the weights come from, for people.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    vocabularies: dict[str, Vocabulary]
    text: TextCache
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, vocabulary in self.vocabularies.items():
            missing = [p for c in vocabulary.classes for p in c.prompts if p not in self.text.rows]
            if missing:
                raise ValueError(f"vocabulary of {name!r}: no text vector for {missing[:5]}")


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model in one piece: readers see the old file or the new one."""
    tensors = {f"{_NETWORK}{name}": value.detach().cpu().clone() for name, value in model.weights.items()}
    tensors[_VECTORS] = model.text.vectors.float()
    names = sorted(model.text.rows, key=lambda name: model.text.rows[name])
    records = {
        "config": model.config,
        "vocabularies": {name: vocabulary.to_json() for name, vocabulary in model.vocabularies.items()},
        "text": {"names": names, **model.text.metadata},
        "provenance": model.provenance,
    }
    metadata = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in records.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata | {"format": FORMAT})
        os.chmod(temporary, 0o644)  # mkstemp makes files that nobody else could read
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_model(path: Path) -> ModelFile:
    """Read what `write_model` wrote.

    Raises:
        UserError: the file is missing, damaged, or no such model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            weights = {name: file.get_tensor(name) for name in file.keys()}
        records = {key: json.loads(metadata[key]) for key in ("config", "vocabularies", "text", "provenance")}
        vectors, text = weights.pop(_VECTORS), records["text"]
        names = text.pop("names")
        return ModelFile(
            weights={name.removeprefix(_NETWORK): value for name, value in weights.items()},
            config=records["config"],
            vocabularies={name: Vocabulary.from_json(content) for name, content in records["vocabularies"].items()},
            text=TextCache(vectors, {name: row for row, name in enumerate(names)}, text),
            provenance=records["provenance"],
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a whole exported model ({error}); write it with make export") from error


# ----------------------------------------------------------------------------------------------------- network


def build_network(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], source: str, packages: tuple[str, ...] = ()
) -> MaskClassificationNetwork:
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
    network: MaskClassificationNetwork = instantiate(
        MaskClassificationNetwork, _without_downloads(section), f"{source}: model.network"
    )
    head = weights.get("classifier.linear.weight")
    if head is not None and not isinstance(network.classifier, LinearClassifier):
        network.classifier = LinearClassifier(head.shape[1], head.shape[0] - 1)
    if isinstance(network.classifier, TextClassifier):
        own = "classifier."
        network.classifier.adopt({k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)})
    _load(network, weights, source)
    return network.eval()


def instantiate(base: type, section: Mapping[str, Any], where: str) -> Any:
    """What a section of a configuration describes: ``class_path`` and ``init_args``, or the arguments of ``base``.

    Raises:
        UserError: no such class or argument; starts with ``where``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--section", type=base)
    try:
        return parser.instantiate(parser.parse_object({"section": dict(section)})).section
    except ArgumentError as error:
        reason = " ".join(str(error).split())[:600]
        raise UserError(f"{where} cannot be built: {reason}. Was it written by another version?") from error


def class_paths(section: Any) -> Iterator[str]:
    """Every ``class_path`` in a section of a configuration."""
    if isinstance(section, Mapping):
        if isinstance(section.get("class_path"), str):
            yield section["class_path"]
        for value in section.values():
            yield from class_paths(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from class_paths(value)


def packages_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages whose classes a configuration's network is made of."""
    return tuple(sorted({name.split(".")[0] for name in class_paths(config["model"]["network"])}))


def _without_downloads(section: Any) -> Any:
    """The same, with ``pretrained`` false wherever it is: all weights are in the file."""
    if isinstance(section, Mapping):
        return {k: False if k == "pretrained" else _without_downloads(v) for k, v in section.items()}
    return section


def _load(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} tensors {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("are missing", missing), ("are left over", extra), ("have another shape", shapes))
        if names
    ]
    if problems:
        raise UserError(f"{source}: the weights do not fit the configured network: {'; '.join(problems)}")
    network.load_state_dict(dict(weights))


def network_weights(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The network's part of a LightningModule's state dict; wrappers that torch.compile leaves in names are undone.

    Raises:
        UserError: there is no such part.
    """
    found = {
        re.sub(r"(^|\.)_orig_mod\.", r"\1", name.removeprefix(_NETWORK)): value
        for name, value in state_dict.items()
        if name.startswith(_NETWORK)
    }
    if not found:
        raise UserError(
            f"{source}: holds no weights named network.*, so it is no checkpoint of this project's training"
        )
    return found

"""A model in one file: weights, text vectors, vocabularies and configuration, as safetensors. Nothing in it is run.

Tensors: ``network.<name>`` as in the network's state dict, and ``text.vectors``, ``[N, D]``. The rest is JSON in the
metadata: ``config`` (the run's resolved configuration), ``vocabularies`` (by dataset), ``text`` (the names of the
vectors' rows, and what they were made with) and ``provenance``.

Shape legend: N = names, D = width of the text space.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dataseg.io.atomic import write_tensors
from dataseg.structures import UserError, Vocabulary
from dataseg.text.cache import TextCache

FORMAT = "dataseg model 1"


_MALFORMED = (
    *(OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError),
    *(OverflowError, RecursionError),  # numbers and nesting that JSON allows
)


NETWORK, _VECTORS = "network.", "text.vectors"


@dataclass
class ModelFile:
    """What stands in the file.

    Attributes:
        weights: the network's state dict.
        config: of the run, resolved; ``model.network`` is what the network is built from.
        vocabularies: by dataset.
        text: vectors of all names of the vocabularies; "encoder" and "templates" in its metadata say whose they are.
        provenance: where the weights come from, for people.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    vocabularies: dict[str, Vocabulary]
    text: TextCache
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.config, dict) or not isinstance(self.config.get("model"), dict):
            raise ValueError("its configuration has no model")
        if not isinstance(self.provenance, dict) or not isinstance(self.provenance.get("figures", {}), dict):
            raise ValueError("its provenance is no mapping")
        if "template_set" not in self.text.metadata:
            raise ValueError("it does not say its template_set")
        for name, vocabulary in self.vocabularies.items():
            missing = [p for c in vocabulary.classes for p in c.prompts if p not in self.text.rows]
            if missing:
                raise ValueError(f"vocabulary of {name!r}: no text vector for {missing[:5]}")


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model in one piece: readers see the old file or the new one."""
    tensors = {f"{NETWORK}{name}": value.detach().cpu().clone() for name, value in model.weights.items()}
    tensors[_VECTORS] = model.text.vectors.float()
    names = sorted(model.text.rows, key=lambda name: model.text.rows[name])
    records = {
        "config": model.config,
        "vocabularies": {name: vocabulary.to_json() for name, vocabulary in model.vocabularies.items()},
        "text": {"names": names, **model.text.metadata},
        "provenance": model.provenance,
    }
    metadata = {key: json.dumps(value, ensure_ascii=False, default=str) for key, value in records.items()}
    write_tensors(path, tensors, metadata | {"format": FORMAT})


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
        text = TextCache.of(weights.pop(_VECTORS), records["text"].pop("names"), records["text"])
        return ModelFile(
            weights={name.removeprefix(NETWORK): value for name, value in weights.items()},
            config=records["config"],
            vocabularies={name: Vocabulary.from_json(content) for name, content in records["vocabularies"].items()},
            text=text,
            provenance=records["provenance"],
        )
    except _MALFORMED as error:
        raise UserError(f"{path}: not a whole exported model ({error}); write it with make export") from error

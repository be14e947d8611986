"""The file that text embeddings are kept in: safetensors, with their provenance in its metadata.

Shape legend: N = names, D = width of the text space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dataseg.io.atomic import write_tensors
from dataseg.structures import UserError

_FORMAT = "dataseg text embeddings 1"


@dataclass
class TextCache:
    """Content of a cache file.

    Attributes:
        vectors: float32 ``[N, D]``, L2-normalised, one row per name.
        rows: name -> row.
        metadata: all other entries, text to text.
    """

    vectors: Tensor
    rows: dict[str, int]
    metadata: dict[str, str]


def write_cache(path: Path, vectors: Tensor, names: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write a cache file in one piece: readers see the old file or the new one.

    Args:
        vectors: float32 ``[N, D]``, L2-normalised.
        names: length N.
        metadata: "encoder" and "templates" as `TextEmbeddings` compares them (JSON), and any provenance.

    Raises:
        ValueError: lengths disagree, or a name occurs twice.
    """
    if len(vectors) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{path}: {len(vectors)} vectors for {len(names)} names, {len(set(names))} of them different")
    content = dict(metadata) | {"format": _FORMAT, "names": json.dumps(list(names), ensure_ascii=False)}
    write_tensors(path, {"vectors": vectors.float()}, content)


def read_cache(path: Path) -> TextCache:
    """Read a cache file.

    Raises:
        UserError: the file is no such cache.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            vectors = file.get_tensor("vectors")
        if metadata.pop("format", None) != _FORMAT:
            raise ValueError("another format")
        names = json.loads(metadata.pop("names"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: no cache of text embeddings ({error}): delete it, or name another text.cache"
        ) from error
    return TextCache(vectors, {name: row for row, name in enumerate(names)}, metadata)

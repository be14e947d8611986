"""The file that text embeddings are kept in: safetensors, with their provenance in its metadata.

Shape legend: N = names, D = width of the text space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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

    @classmethod
    def of(cls, vectors: Tensor, names: object, metadata: Mapping[str, Any]) -> Self:
        """Of the content of a file, checked.

        Raises:
            ValueError: names are no list of different texts, there are more or fewer vectors, they are not finite, or
                metadata are no texts.
        """
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError("the names are no list of texts")
        if len(set(names)) != len(names) or vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(
                f"vectors {list(vectors.shape)} for {len(names)} names, {len(set(names))} of them different"
            )
        if not vectors.is_floating_point() or not bool(vectors.isfinite().all()):
            raise ValueError("vectors are not finite")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("the metadata are no texts")
        return cls(vectors, {name: row for row, name in enumerate(names)}, dict(metadata))


def write_cache(path: Path, vectors: Tensor, names: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Write a cache file in one piece: readers see the old file or the new one.

    Args:
        vectors: float32 ``[N, D]``, L2-normalised.
        names: length N.
        metadata: "encoder" and "templates" as `TextEmbeddings` compares them (JSON), and any provenance.

    Raises:
        ValueError: see `TextCache.of`.
    """
    TextCache.of(vectors, names, metadata)
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
        return TextCache.of(vectors, json.loads(metadata.pop("names")), metadata)
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: no cache of text embeddings ({error}): delete it, or name another text.cache"
        ) from error

"""The classes of one dataset, and the text vectors of their names. See `dataseg.structures` for the shape legend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from dataseg.structures.errors import UserError


@dataclass(frozen=True)
class ClassSpec:
    """One class of a dataset.

    Attributes:
        id: the official id, as it stands in the annotation files.
        name: the official name, for display.
        is_thing: countable (one mask per instance in panoptic and instance tasks) or stuff.
        prompts: names given to the text encoder; synonyms of one class are combined by max.
        color: RGB, 0-255.
        other_ids: further ids of annotation files that are this class.
        aliases: further names of it in annotation files.
    """

    id: int
    name: str
    is_thing: bool
    prompts: tuple[str, ...]
    color: tuple[int, int, int]
    other_ids: tuple[int, ...] = ()
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompts or not all(p.strip() for p in self.prompts):
            raise ValueError(f"class {self.id} ({self.name!r}) needs at least one non-empty prompt")
        if len(self.color) != 3 or not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"class {self.id} ({self.name!r}): color must be three values 0-255, got {self.color}")

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids of annotation files that are this class, the official one first."""
        return (self.id, *self.other_ids)

    @property
    def file_names(self) -> tuple[str, ...]:
        """All its names in annotation files, the official one first."""
        return (self.name, *self.aliases)

    @property
    def _further(self) -> dict[str, list[int] | list[str]]:
        """What only few classes have."""
        further: dict[str, list[int] | list[str]] = {"other_ids": list(self.other_ids), "aliases": list(self.aliases)}
        return {key: value for key, value in further.items() if value}


@dataclass(frozen=True)
class Vocabulary:
    """The classes of one dataset: a value from which class counts, thing/stuff sets and colours derive.

    Vocabularies of different datasets are never merged.
    """

    name: str
    classes: tuple[ClassSpec, ...]

    def __post_init__(self) -> None:
        ids = [number for c in self.classes for number in c.ids]
        if not ids:
            raise ValueError(f"vocabulary {self.name!r} has no class")
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"vocabulary {self.name!r} lists the ids {twice} twice")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def is_thing(self) -> Tensor:
        """Bool ``[C]``."""
        return torch.tensor([c.is_thing for c in self.classes])

    @property
    def colors(self) -> Tensor:
        """Uint8 ``[C, 3]``, RGB."""
        return torch.tensor([c.color for c in self.classes], dtype=torch.uint8)

    @property
    def index_of(self) -> dict[int, int]:
        """Id in annotation files -> label."""
        return {number: i for i, c in enumerate(self.classes) for number in c.ids}

    @property
    def label_of_name(self) -> dict[str, int]:
        """Name in annotation files -> label."""
        return {name: i for i, c in enumerate(self.classes) for name in c.file_names}

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of all but name and colours: stands beside every metric."""
        content = [
            [c.id, c.name, c.is_thing, list(c.prompts), *([c._further] if c._further else [])] for c in self.classes
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": [
                {
                    "id": c.id,
                    "name": c.name,
                    "is_thing": c.is_thing,
                    "prompts": list(c.prompts),
                    "color": list(c.color),
                    **c._further,
                }
                for c in self.classes
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        classes = []
        for position, record in enumerate(content["classes"]):
            try:
                classes.append(
                    ClassSpec(
                        id=int(record["id"]),
                        name=str(record["name"]),
                        is_thing=bool(record["is_thing"]),
                        prompts=_texts(record.get("prompts") or [record["name"]]),
                        color=tuple(record["color"]),
                        other_ids=tuple(map(int, record.get("other_ids", ()))),
                        aliases=_texts(record.get("aliases", [])),
                    )
                )
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ValueError(f"vocabulary {content.get('name')!r}, class {position}: {error}") from error
        return cls(name=str(content["name"]), classes=tuple(classes))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a vocabulary file.

        Raises:
            UserError: the file is missing or malformed; names the file.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: not a vocabulary file ({error})") from error


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"prompts must be a list of texts, got {values!r}")
    return tuple(values)


@dataclass
class ClassEmbeddings:
    """Text embeddings of one vocabulary's class names: all that is specific to a dataset in the network's head.

    Attributes:
        vectors: float ``[S, D]``, L2-normalised, one row per name.
        class_index: int64 ``[S]``, values ``0..C-1`` non-decreasing: the class a name belongs to.
        num_classes: C; derived when left out, and carried along by `to` so that no GPU is waited for.
        vocabulary: its name, for classifiers that learn something of each vocabulary.
    """

    vectors: Tensor
    class_index: Tensor
    num_classes: int = 0
    vocabulary: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.class_index.shape != self.vectors.shape[:1]:
            raise ValueError(
                f"need vectors [S, D] and class_index [S], got {list(self.vectors.shape)}"
                f" and {list(self.class_index.shape)}"
            )
        if not self.num_classes:
            self.num_classes = int(self.class_index[-1]) + 1

    @classmethod
    def blank(cls, vocabulary: Vocabulary) -> Self:
        """For a classifier that looks at a vocabulary's name and number of classes alone: zeros, ``[C, 1]``."""
        count = len(vocabulary)
        return cls(torch.zeros(count, 1), torch.arange(count), count, vocabulary.name)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        return replace(self, vectors=self.vectors.to(*args, **kwargs), class_index=self.class_index.to(*args, **kwargs))

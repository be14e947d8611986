"""Class names, ids, prompts and colours of each dataset: data, not code.

Each ``*.json`` is a `Vocabulary` with its ``provenance`` and ``notes``. Names shown to people are the official ones;
``prompts`` go to the text encoder. Where the official wording differs from the prompts, a class also carries
``official_prompts``.
"""

from __future__ import annotations

import colorsys
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from dataseg.structures import ClassSpec, UserError, Vocabulary

Names = Literal["corrected", "official"]


@dataclass(frozen=True)
class OwnClass:
    """A class of your own data, written in a YAML file.

    Attributes:
        name: for display, and for the text encoder if there are no prompts.
        id: the number that annotation files use, or several: all of them are this class.
        kind: countable things, or stuff.
        prompts: names given to the text encoder; the best of them counts.
        color: RGB, 0-255; None = one is chosen.
        aliases: further names that annotation files use for it.
    """

    name: str
    id: int | list[int]
    kind: Literal["thing", "stuff"] = "thing"
    prompts: list[str] | None = None
    color: tuple[int, int, int] | None = None
    aliases: list[str] | None = None

    @property
    def ids(self) -> list[int]:
        """All its numbers.

        Raises:
            ValueError: there is none.
        """
        if self.id == []:
            raise ValueError(f"class {self.name!r} has no id")
        return self.id if isinstance(self.id, list) else [self.id]


Classes: TypeAlias = str | list[OwnClass]
"""A vocabulary by name or file, or its classes themselves."""

FOLDER = Path(__file__).parent


def resolve(classes: str | Sequence[OwnClass], names: Names = "corrected") -> Vocabulary:
    """`load`, or the vocabulary that classes of your own make; it is named after its digest.

    Raises:
        UserError: no such vocabulary, or classes that make none.
    """
    if isinstance(classes, str):
        return load(classes, names)
    try:
        specs = tuple(
            ClassSpec(
                c.ids[0],
                c.name,
                c.kind == "thing",
                tuple(c.prompts or [c.name]),
                c.color or _color(position),
                tuple(c.ids[1:]),
                tuple(c.aliases or ()),
            )
            for position, c in enumerate(classes)
        )
        twice = {name for name, count in Counter(name for c in specs for name in c.file_names).items() if count > 1}
        if twice:
            raise ValueError(f"the names {sorted(twice)} stand twice: write one class, with all ids: id: [1, 2]")
        vocabulary = Vocabulary("own", specs)
    except ValueError as error:
        raise UserError(f"vocabulary: {error}") from error
    return replace(vocabulary, name=f"own-{vocabulary.digest}")


def is_shipped(vocabulary: Vocabulary) -> bool:
    """Whether it is one of an official dataset or of the mini suite."""
    return (FOLDER / f"{vocabulary.name}.json").is_file()


def _color(position: int) -> tuple[int, int, int]:
    """Hues by the golden angle, so that neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(position * 0.618034 % 1, 0.55 + 0.4 * (position % 3) / 2, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=64)
def load(name_or_path: str, names: Names = "corrected") -> Vocabulary:
    """A vocabulary shipped with the project, by name, or one of your own, by path (``*.json``).

    Args:
        names: which names the text encoder sees: "corrected" (spelling mended, synonyms) or "official" (the words of
            the release, as published baselines used them). Display names are official in both.

    Raises:
        UserError: no such vocabulary; names the ones there are.
    """
    is_path = name_or_path.endswith(".json")
    path = Path(name_or_path) if is_path else FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        known = ", ".join(sorted(f.stem for f in FOLDER.glob("*.json")))
        raise UserError(f"no vocabulary {name_or_path!r}: give the path of a .json file or one of {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if names == "official":
            for record in content["classes"]:
                record["prompts"] = record.get("official_prompts") or [str(record["name"]).strip()]
        return Vocabulary.from_json(content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a vocabulary file ({error!r})") from error

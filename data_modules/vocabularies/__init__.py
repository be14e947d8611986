"""Class names, ids, prompts and colours of each data set: data, not code.

Each ``*.json`` is a `Vocabulary` with its ``provenance`` and ``notes``. Names shown to people are the official ones;
``prompts`` go to the text encoder. Where the official wording differs from the prompts, a class also carries
``official_prompts``.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from dataseg.structures import UserError, Vocabulary

Names = Literal["corrected", "official"]

FOLDER = Path(__file__).parent


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

"""The classes that a COCO-style JSON states, and where a vocabulary contradicts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_modules.annotation_index.problems import OnProblem
from data_modules.annotation_index.records import NoRecordsError, stream_records
from data_modules.vocabularies import OwnClass
from dataseg.structures import UserError, Vocabulary


def stated_categories(path: Path) -> list[OwnClass]:
    """``categories`` of the file; a thing unless ``isthing`` is 0.

    Raises:
        UserError: malformed, or there are none.
    """
    found = []
    for first, batch in stream_records(path, "categories"):
        for position, record in enumerate(batch, first):
            try:
                is_thing = bool(int(record.get("isthing", 1)))
                found.append(OwnClass(str(record["name"]), int(record["id"]), "thing" if is_thing else "stuff"))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise UserError(
                    f"{path}: category {position} is {str(record)[:80]}: it needs 'id', a whole number, and 'name'"
                ) from error
    return found


def compare_categories(path: Path, vocabulary: Vocabulary, with_kinds: bool, on_problem: OnProblem) -> dict[str, int]:
    """Tell where the file's classes are not the vocabulary's; nothing is said of files that state none.

    An id that has another class's name in the file is a problem; so is, with kinds, a thing that is stuff in the file.
    Other names, and classes that only one of them has, are benign.

    Args:
        with_kinds: compare ``isthing`` too.

    Returns:
        how many classes each has alone, or under another name.
    """
    try:
        stated = stated_categories(path)
    except NoRecordsError as error:
        on_problem(f"{error}; the vocabulary cannot be compared with it", benign=True)
        return {"categories_not_stated": 1}
    by_id = {number: spec for spec in vocabulary.classes for number in spec.ids}
    id_of = {_plain(name): spec.id for spec in vocabulary.classes for name in spec.file_names}
    certain: list[str] = []
    counts = {"categories_of_another_name": 0, "categories_not_in_the_vocabulary": 0}
    for category in stated:
        number = category.ids[0]
        spec = by_id.get(number)
        if spec is None:
            counts["categories_not_in_the_vocabulary"] += 1
            on_problem(f"{path}: category {number} ({category.name!r}) is not in the vocabulary", benign=True)
            continue
        if _plain(category.name) not in map(_plain, (*spec.file_names, *spec.prompts)):
            what = f"category {number} is {category.name!r} in the file, {spec.name!r} in the vocabulary"
            if _plain(category.name) in id_of:
                certain.append(f"{what}, where {category.name!r} has the id {id_of[_plain(category.name)]}")
            elif not spec.other_ids:  # several categories in one can have no common name
                counts["categories_of_another_name"] += 1
                on_problem(f"{path}: {what}", benign=True)
        elif with_kinds and (category.kind == "thing") != spec.is_thing:
            certain.append(
                f"category {number} ({spec.name!r}) is {category.kind} in the file, not so in the vocabulary"
            )
    if certain:
        on_problem(
            f"{path}: {'; '.join(certain)}. Mend the vocabulary, or set it to null:"
            " the file's own categories then count"
        )
    found = {category.ids[0] for category in stated}
    alone = [spec.name for spec in vocabulary.classes if not found.intersection(spec.ids)]
    if alone:
        on_problem(f"{path}: has no category for {', '.join(alone)} of the vocabulary", benign=True)
    return counts | {"classes_without_a_category": len(alone)}


def _plain(name: Any) -> str:
    """Names that differ by letter case, hyphens and underscores only are the same."""
    return " ".join(str(name).casefold().replace("_", " ").replace("-", " ").split())

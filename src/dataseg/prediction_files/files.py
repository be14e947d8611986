"""What the readers of prediction files share."""

from __future__ import annotations

from pathlib import Path

from dataseg.io.json_files import field_of, integer_of, read_json, records_of
from dataseg.structures import ClassSpec, UserError, Vocabulary


def vocabulary_of(path: Path) -> Vocabulary:
    """The vocabulary that an annotation file states in its ``categories``; classes are things unless it says not.

    Raises:
        UserError: there are none.
    """
    classes = []
    for position, record in enumerate(records_of(read_json(path), "categories", path)):
        where = f"{path}, category {position}"
        name = str(field_of(record, "name", where))
        number, is_thing = integer_of(record, "id", where), bool(record.get("isthing", 1))
        classes.append(ClassSpec(number, name, is_thing, (name.strip() or str(number),), (0, 0, 0)))
    if not classes:
        raise UserError(f"{path} lists no category: say the classes with --vocabulary")
    try:
        return Vocabulary(path.stem, tuple(classes))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def shift_hint(shift: int) -> str:
    return "" if shift else " (ids that start elsewhere: --gt-shift, --pred-shift)"

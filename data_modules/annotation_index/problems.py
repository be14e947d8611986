"""What becomes of a record that cannot be used."""

from __future__ import annotations

from typing import Any, Protocol

from dataseg.structures import UserError


class OnProblem(Protocol):
    """Told what is wrong with a record of an annotation file; if it returns, the record is left out, unless benign."""

    def __call__(self, message: str, benign: bool = False) -> None:
        """``benign``: no training is stopped by it, such as by a box outside its image, which is dropped."""


def raise_problem(message: str, benign: bool = False) -> None:
    """The `OnProblem` of training: the first thing that is wrong, unless benign, ends the reading."""
    if not benign:
        raise UserError(message)


MISTAKES = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)
"""What Python raises at records of other types than are wanted; a `UserError` is one of them."""


def reason_of(error: Exception, record: Any) -> str:
    """What is wrong with a record, in words; what Python says of other types is no help to anyone."""
    if isinstance(error, KeyError):
        return f"field {error} is missing"
    if isinstance(error, UserError):
        return str(error)
    return "malformed record" if record is None else f"malformed record {record!r:.200}"

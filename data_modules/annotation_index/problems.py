"""What becomes of a record that cannot be used."""

from __future__ import annotations

from typing import Protocol

from dataseg.structures import UserError


class Complain(Protocol):
    """Told what is wrong with a record of an annotation file; if it returns, the record is left out."""

    def __call__(self, message: str, usual: bool = False) -> None:
        """``usual``: a record that is dropped in every training, such as a box outside its image."""


def refuse(message: str, usual: bool = False) -> None:
    """The `Complain` of training: the first thing that is wrong, unless usual, ends the reading."""
    if not usual:
        raise UserError(message)

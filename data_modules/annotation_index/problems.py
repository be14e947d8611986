"""What becomes of a record that cannot be used."""

from __future__ import annotations

from typing import Protocol

from dataseg.structures import UserError


class OnProblem(Protocol):
    """Told what is wrong with a record of an annotation file; if it returns, the record is left out."""

    def __call__(self, message: str, benign: bool = False) -> None:
        """``benign``: a record that is dropped in every training, such as a box outside its image."""


def raise_problem(message: str, benign: bool = False) -> None:
    """The `OnProblem` of training: the first thing that is wrong, unless benign, ends the reading."""
    if not benign:
        raise UserError(message)

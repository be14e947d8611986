"""What becomes of a record that cannot be used."""

from __future__ import annotations

from typing import Protocol

from dataseg.structures import UserError


class OnProblem(Protocol):
    """Told what is wrong with a record of an annotation file; if it returns, the record is left out, unless benign."""

    def __call__(self, message: str, benign: bool = False) -> None:
        """``benign``: no training is stopped by it, such as by a box outside its image, which is dropped."""


def raise_problem(message: str, benign: bool = False) -> None:
    """The `OnProblem` of training: the first thing that is wrong, unless benign, ends the reading."""
    if not benign:
        raise UserError(message)

"""The error that the user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from traceback import walk_tb


class UserError(ValueError):
    """A mistake in data or configuration that the user can mend. The message names file, record and remedy.

    The command line shows it without a traceback.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those it goes back to."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def loading_process_died(error: BaseException) -> bool:
    """Whether this error tells that a loading process ended by itself: PyTorch noticed, or what it sent broke off."""
    return any(
        (isinstance(e, RuntimeError) and str(e).startswith("DataLoader worker (pid"))
        or (isinstance(e, (OSError, EOFError)) and _receives_tensors(e))
        for e in causes(error)
    )


def _receives_tensors(error: BaseException) -> bool:
    frames = walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.endswith("resource_sharer.py") for frame, _ in frames)

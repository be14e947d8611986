"""The error that the user can mend."""

from __future__ import annotations

from collections.abc import Iterator


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
    """Whether PyTorch told, by this error, that a loading process ended by itself."""
    return any(isinstance(e, RuntimeError) and str(e).startswith("DataLoader worker (pid") for e in causes(error))

"""What the user is told when a command cannot go on."""

from __future__ import annotations

from dataseg.structures import UserError


def mistake(error: BaseException) -> str | None:
    """What the user is told of an error that goes back to a `UserError`, as jsonargparse's do; None if it does not."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    # from a loading process it comes with that process's traceback before it
    return None if cause is None else str(cause).rpartition("UserError: ")[2].strip()

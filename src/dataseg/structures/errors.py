"""The error that the user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in data or configuration that the user can mend. The message names file, record and remedy.

    The command line shows it without a traceback.
    """

"""Which data sets are not on disk, and saying so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from data_modules.formats.base import MissingDataError, Reader
from dataseg.structures import UserError

Missing = Literal["stop", "skip"]
"""What becomes of an evaluation set that is not there."""

NamedError = tuple[str, MissingDataError]


def find_missing(readers: Iterable[tuple[str, Reader]], root: Path) -> list[NamedError]:
    """Let all readers locate their files below ``root``; those that cannot, by name."""
    missing = []
    for name, reader in readers:
        try:
            reader.locate(root)
        except MissingDataError as error:
            missing.append((name, error))
    return missing


def split(readers: Mapping[str, Reader], root: Path) -> tuple[dict[str, Reader], list[NamedError]]:
    """The readers that find their files below ``root``, and the others' errors.

    Raises:
        UserError: there are readers, and all are missing.
    """
    missing = find_missing(readers.items(), root)
    if readers and len(missing) == len(readers):
        raise UserError(explain(missing, len(readers), root))
    absent = dict(missing)
    return {name: reader for name, reader in readers.items() if name not in absent}, missing


def explain(missing: list[NamedError], total: int, root: Path) -> str:
    """One message with all that is missing, the files looked for and where to get them."""
    lines = "\n".join(f"- {name}: {error}" for name, error in missing)
    return (
        f"{len(missing)} of {total} data sets are missing below {root.absolute()} (set data.root to look elsewhere)\n"
        f"{lines}"
    )


def tell_skipped(missing: list[NamedError], total: int, root: Path) -> str:
    """One message with all that is left out, a line each."""
    lines = "\n".join(f"- {name}: {e.dataset}: no {', '.join(str(p[0]) for p in e.missing)}" for name, e in missing)
    return f"{len(missing)} of {total} evaluation sets are not below {root.absolute()} and are left out:\n{lines}"

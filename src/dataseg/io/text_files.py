"""Text of annotation files: UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""

from __future__ import annotations

import json
from pathlib import Path

from dataseg.io.paths import read_bytes
from dataseg.structures import UserError


def encoding_of(start: bytes) -> str:
    """The encoding, by a file's first four bytes or more."""
    return json.detect_encoding(start)


def not_text(path: Path, error: UnicodeDecodeError) -> UserError:
    """What to say of bytes that are no text."""
    found = error.object[error.start]
    return UserError(
        f"{path}: is not UTF-8 text (byte 0x{found:02x}), perhaps Latin-1 or Windows-1252: save it as UTF-8"
    )


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        OSError, UserError: unreadable, or no text.
    """
    content = read_bytes(path)
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        raise not_text(path, error) from error

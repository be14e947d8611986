"""Files in folders or zip archives, and names that must not lead out of them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import IO

from dataseg.io.zip_archive import split
from dataseg.structures import UserError


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, in an archive or not."""
    place = split(path)
    if place is None:
        return path.exists()
    archive, name = place
    return archive.has_file(name) or archive.has_folder(name)


def list_files(folder: Path, suffix: str) -> list[str]:
    """Names of the files in a folder itself that end in ``suffix``, sorted."""
    place = split(folder)
    if place is None:
        return sorted(path.name for path in folder.glob(f"*{suffix}"))
    archive, name = place
    return [n for n in archive.names(name) if n.endswith(suffix) and "/" not in n]


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        OSError, UserError: unreadable.
    """
    place = split(path)
    return path.read_bytes() if place is None else place[0].read(place[1])


def open_stream(path: Path) -> IO[bytes]:
    """A file to be read from front to back.

    Raises:
        OSError, UserError: unreadable.
    """
    place = split(path)
    return path.open("rb") if place is None else place[0].stream(place[1])


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, refusing names that lead out of the folder.

    Raises:
        UserError: an absolute name, or one with "..".
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise UserError(f"file name {name!r} leads out of {folder}: mend the annotation file")
    return folder / pure

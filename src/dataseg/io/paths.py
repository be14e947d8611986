"""Files in folders or zip archives, and names that must not lead out of them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote

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
    """Names of the files in a folder itself that end in ``suffix``, sorted; without what `is_clutter`."""
    place = split(folder)
    if place is None:
        return sorted(path.name for path in folder.glob(f"*{suffix}") if not is_clutter(path.name))
    archive, name = place
    return [n for n in archive.names(name) if n.endswith(suffix) and "/" not in n and not is_clutter(n)]


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's, before the name of an uploaded file


def is_clutter(name: str) -> bool:
    """Whether a file is one that operating systems leave behind: ``._a.jpg``, ``__MACOSX/``, ``Thumbs.db``."""
    *folders, last = name.split("/")
    return last.startswith(".") or last.lower() in ("thumbs.db", "desktop.ini") or "__MACOSX" in folders


def walk(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, sorted; without what `is_clutter`."""
    place = split(folder)
    if place is not None:
        names = list(place[0].names(place[1]))
    else:
        names = [
            (Path(parent) / name).relative_to(folder).as_posix()
            for parent, _, files in os.walk(folder, followlinks=True)
            for name in files
        ]
    return sorted(name for name in names if not is_clutter(name))


def list_images(folder: Path, suffix: str | None = None) -> list[str]:
    """Names of the images in a folder itself, sorted; without what `is_clutter`.

    Args:
        suffix: ending, in any case; None = any of `IMAGE_SUFFIXES`.
    """
    endings = IMAGE_SUFFIXES if suffix is None else (suffix.lower(),)
    return [name for name in list_files(folder, "") if name.lower().endswith(endings)]


def by_stem(names: list[str], folder: Path, suffix: str | None = None) -> dict[str, str]:
    """Names of files by their stems, in composed Unicode form (NFC).

    Args:
        suffix: what they end in, if that is more than what follows the last dot, such as ``_mask.png``.

    Raises:
        UserError: two have the same.
    """
    found: dict[str, str] = {}
    for name in names:
        stem = unicodedata.normalize("NFC", name[: -len(suffix)] if suffix else name.rpartition(".")[0])
        if found.setdefault(stem, name) != name:
            raise UserError(f"{folder}: {found[stem]} and {name} have the same stem: say which by the suffix to read")
    return found


class FileNames:
    """The files of a folder, to be found by the names that annotation files state.

    A stated name may have Windows separators, percent codes, another Unicode form or letter case, no suffix, or lead to
    the file from another machine's folder or from a URL: then its last part, or its last parts, name a file here.

    Attributes:
        folder: that was listed, with the folders in it.
        names: of all files, relative to it.
        others: how many stated names were found in another form than they have on disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = walk(folder)
        self.others = 0
        self._exact = frozenset(self.names)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            folders, _, last = _key(name).rpartition("/")
            keys = {_key(name), *((f"*/{last}",) if folders else ())}  # a bare name may lie in any folder
            for key in keys | {key.rpartition(".")[0] for key in keys if key.endswith(IMAGE_SUFFIXES)}:
                self._by_key[key].append(name)

    def find(self, stated: str) -> str | None:
        """The file that ``stated`` names; None if there is none.

        Raises:
            UserError: several files would do.
        """
        if stated in self._exact:
            return stated
        for key in _keys(stated):
            found = self._by_key.get(key, [])
            if len(found) > 1:  # as some file systems allow, a.jpg and a.JPG
                ends = tuple(f"/{form}" for form in _forms(stated))
                found = [
                    n for n in found if any(end.endswith(f"/{unicodedata.normalize('NFC', n)}") for end in ends)
                ] or found
            if len(found) > 1:
                raise UserError(f"the file name {stated!r} may be any of {', '.join(found[:4])} in {self.folder}")
            if found:
                self.others += 1
                return found[0]
        return None

    def find_all(self, stated: list[str]) -> dict[str, str | None]:
        """`find` for every name.

        Raises:
            UserError: also where two different names would be one file.
        """
        found = {name: self.find(name) for name in stated}
        first: dict[str, str] = {}
        for name, file in found.items():
            if file is not None and first.setdefault(file, name) != name:
                raise UserError(f"the file names {first[file]!r} and {name!r} would both be {self.folder / file}")
        return found


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/").casefold()


def _forms(stated: str) -> list[str]:
    """``stated`` as a path with forward slashes: as it is, then with its percent codes decoded."""
    plain = unicodedata.normalize("NFC", stated.strip().replace("\\", "/"))
    plain = plain.replace("?d=", "/")  # Label Studio's local files
    return list(dict.fromkeys([plain, unquote(plain), unquote(plain.partition("?")[0])]))


def _keys(stated: str) -> list[str]:
    """Keys to look for, the longest part of the path first."""
    keys = []
    for form in _forms(stated):
        parts = [part for part in form.split("/") if part not in ("", ".", "..")]
        keys += [_key("/".join(parts[k:])) for k in range(len(parts))]
        if len(parts) == 1:
            keys.append(f"*/{_key(parts[0])}")
        if parts and _UPLOAD_PREFIX.match(parts[-1]):
            keys.append(_key(parts[-1][9:]))
    return keys


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

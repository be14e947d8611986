"""Finding a data set's files, and saying all that is missing at once. Nothing is opened here but zip directories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data_modules.formats.base import MissingDataError, Reader
from data_modules.formats.files import exists

Names = tuple[str, ...]
"""Files and folders that go together, relative to the data set's folder."""


def folder(name: str) -> list[Names]:
    """A folder, or the zip archive of its name in its place, with or without the folder's own level inside."""
    if ".zip" in name.lower():
        return [(name,)]
    return [(name,), (f"{name}.zip/{PurePosixPath(name).name}",), (f"{name}.zip",)]


def with_folders(names: Sequence[str]) -> list[Names]:
    """Each of ``names`` (annotation files), with the folder or zip archive of PNGs beside it that has its name."""
    options: list[Names] = []
    for name in names:
        stem = name.removesuffix(".json")
        last = PurePosixPath(stem).name
        options += [(name, stem), (name, f"{stem}.zip/{last}"), (name, f"{stem}.zip")]
    return options


def locate(reader: Reader, root: Path, home: str, *wanted: Sequence[Names]) -> list[tuple[Path, ...]]:
    """Paths of all that ``wanted`` names, from the first candidate folder that has everything.

    Args:
        root: folder that holds the data sets.
        home: the data set's folder, below ``root`` or one folder down, or in a zip archive of its name; absolute
            paths stand.
        wanted: for each thing the options that would do, best first; all names of an option must be there.

    Returns:
        for each thing the paths of the option that is there. The data set's folder itself comes first.

    Raises:
        MissingDataError: something is missing everywhere; names all that is missing in the likeliest place.
    """
    best: list[list[Path]] | None = None
    for base in candidates(root, home):
        choices = [_choose(base, options) for options in wanted]
        missing = [paths for choice in choices for paths in choice.missing]
        if not missing:
            return [(base,), *(choice.paths for choice in choices)]
        if best is None or len(missing) < len(best):
            best = missing
    if best is None:
        best = [paths for options in wanted for paths in _choose(root / home, options).missing]
        if not Path(home).is_absolute():
            best.append([root / "*" / home])
    raise MissingDataError(reader.title, best, reader.source)


class _Choice(NamedTuple):
    paths: tuple[Path, ...]
    missing: list[list[Path]]  # of each missing thing all paths that would have done


def _choose(base: Path, options: Sequence[Names]) -> _Choice:
    """The option with the fewest missing names, the first of equals."""
    lacking = [[not exists(base / name) for name in names] for names in options]
    chosen = min(range(len(options)), key=lambda k: sum(lacking[k]))
    missing = []
    for position, lacks in enumerate(lacking[chosen]):
        if lacks:
            others = [names[position] for names in options if names[position] != options[chosen][position]]
            missing.append([base / name for name in dict.fromkeys([options[chosen][position], *others])])
    return _Choice(tuple(base / name for name in options[chosen]), missing)


def candidates(root: Path, home: str) -> Iterator[Path]:
    """Folders that exist: ``root/home``, then ``root/*/home``, then the same in ``home``'s zip archive."""
    absolute = Path(home).is_absolute()
    children = [] if absolute or not root.is_dir() else sorted(c for c in root.iterdir() if c.is_dir())
    names = [home] if ".zip" in home.lower() else [home, f"{home}.zip/{PurePosixPath(home).name}"]
    for name in names:
        for parent in (root, *children):
            if exists(parent / name):
                yield parent / name

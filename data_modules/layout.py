"""Finding a dataset's files, and saying all that is missing at once. Nothing is opened here but zip directories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol, TypeVar

from dataseg.io.paths import exists
from dataseg.structures import UserError


class Locatable(Protocol):
    """What has files to be found: see `data_modules.formats.reader.Reader`."""

    @property
    def title(self) -> str: ...

    @property
    def source(self) -> str: ...

    def locate(self, root: Path) -> None: ...


Found = TypeVar("Found", bound=Locatable)


class MissingDataError(Exception):
    """Files or folders of a dataset are not where they were looked for.

    Attributes:
        dataset: what it is called in public.
        missing: for each missing thing all paths that would have done.
        source: where to get it.
    """

    def __init__(self, dataset: str, missing: Sequence[Sequence[Path]], source: str) -> None:
        self.dataset = dataset
        self.missing = [list(paths) for paths in missing]
        self.source = source
        places = "\n".join(f"    {self._line(paths)}" for paths in self.missing)
        super().__init__(f"{dataset}: looked for\n{places}\n  get it from {source}")

    @staticmethod
    def _line(paths: Sequence[Path]) -> str:
        outside_archives = [str(path) for path in paths if ".zip/" not in str(path)]
        return "  or  ".join(outside_archives or [str(path) for path in paths])


Names = tuple[str, ...]
"""Files and folders that go together, relative to the dataset's folder."""


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


def locate(reader: Locatable, root: Path, home: str, *wanted: Sequence[Names]) -> list[tuple[Path, ...]]:
    """Paths of all that ``wanted`` names, from the first candidate folder that has everything.

    Args:
        root: folder that holds the datasets.
        home: the dataset's folder, below ``root`` or one folder down, or in a zip archive of its name; absolute
            paths stand.
        wanted: for each thing the options that would do, best first; all names of an option must be there.

    Returns:
        for each thing the paths of the option that is there. The dataset's folder itself comes first.

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


Missing = Literal["stop", "skip"]
"""What becomes of an evaluation set that is not there."""

NamedError = tuple[str, MissingDataError]


def find_missing(readers: Iterable[tuple[str, Locatable]], root: Path) -> list[NamedError]:
    """Let all readers locate their files below ``root``; those that cannot, by name."""
    missing = []
    for name, reader in readers:
        try:
            reader.locate(root)
        except MissingDataError as error:
            missing.append((name, error))
    return missing


def split_missing(readers: Mapping[str, Found], root: Path) -> tuple[dict[str, Found], list[NamedError]]:
    """The readers that find their files below ``root``, and the others' errors.

    Raises:
        UserError: there are readers, and all are missing.
    """
    missing = find_missing(readers.items(), root)
    if readers and len(missing) == len(readers):
        raise UserError(explain_missing(missing, len(readers), root))
    absent = dict(missing)
    return {name: reader for name, reader in readers.items() if name not in absent}, missing


def explain_missing(missing: list[NamedError], total: int, root: Path) -> str:
    """One message with all that is missing, the files looked for and where to get them."""
    lines = "\n".join(f"- {name}: {error}" for name, error in missing)
    return (
        f"{len(missing)} of {total} datasets are missing below {root.absolute()} (set data.root to look elsewhere)\n"
        f"{lines}"
    )


def tell_skipped(missing: list[NamedError], total: int, root: Path) -> str:
    """One message with all that is left out, a line each."""
    lines = "\n".join(f"- {name}: {e.dataset}: no {', '.join(str(p[0]) for p in e.missing)}" for name, e in missing)
    return f"{len(missing)} of {total} evaluation sets are not below {root.absolute()} and are left out:\n{lines}"

"""Makes the mini suite: small datasets on disk, the same bytes for the same parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

from data_modules.mini import layouts
from data_modules.mini.datasets import ADE, COCO, OBJECTS365, OPEN, MiniDataset
from data_modules.mini.scenes import Scene, compose
from data_modules.mini.settings import Difficulty
from dataseg.io.atomic import replacing
from dataseg.io.lock import alone
from dataseg.structures import UserError

GENERATOR_VERSION = 3
"""To be raised with every change that alters a file."""

DEFAULT_ROOT = Path("mini_suite")
"""Where experiments have it."""

_MANIFEST = "suite.json"
_ASPECTS = ((1.0, 1.0), (1.0, 1.125), (1.0, 1.25), (1.125, 1.0), (1.25, 1.0))  # (rows, columns) over the shorter side


@dataclass(frozen=True)
class MiniSpec:
    """What determines every byte of the suite, together with `GENERATOR_VERSION`.

    Attributes:
        seed: any integer >= 0.
        size: shorter side of every picture, pixels.
        ade, coco, objects365: numbers of training and validation pictures.
        open: number of validation pictures.
        difficulty: see `Difficulty`.
    """

    seed: int = 0
    size: int = 128
    ade: tuple[int, int] = (60, 40)
    coco: tuple[int, int] = (250, 50)
    objects365: tuple[int, int] = (500, 60)
    open: int = 50
    difficulty: Difficulty = field(default_factory=Difficulty)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.size < 32:
            raise UserError(f"mini suite: need seed >= 0 and size >= 32, got seed {self.seed} and size {self.size}")

    @property
    def manifest(self) -> dict[str, Any]:
        """What the suite's own file says of it (less the number of files), as JSON gives it back."""
        content = {"generator_version": GENERATOR_VERSION, "spec": asdict(self)}
        return dict(json.loads(json.dumps(content)))


@dataclass(frozen=True)
class _Split:
    dataset: MiniDataset
    name: str
    count: int
    write: Callable[[Path, str, layouts.NumberedScenes], None]


def _splits(spec: MiniSpec) -> tuple[_Split, ...]:
    return (
        _Split(ADE, "training", spec.ade[0], layouts.write_ade),
        _Split(ADE, "validation", spec.ade[1], layouts.write_ade),
        _Split(COCO, "train2017", spec.coco[0], layouts.write_coco),
        _Split(COCO, "val2017", spec.coco[1], layouts.write_coco),
        _Split(OBJECTS365, "train", spec.objects365[0], layouts.write_objects365),
        _Split(OBJECTS365, "val", spec.objects365[1], layouts.write_objects365),
        _Split(OPEN, "val", spec.open, layouts.write_open),  # new ones at the end: the number decides the pictures
    )


def make_scene(dataset: MiniDataset, spec: MiniSpec, key: tuple[int, int]) -> tuple[np.random.Generator, Scene]:
    """Picture of a split; a pure function of its arguments.

    Args:
        key: number of the split, number of the picture.

    Returns:
        the generator as it stands after the picture, for what its annotation adds, and the picture.
    """
    rng = np.random.default_rng([spec.seed, *key])
    rows, columns = _ASPECTS[rng.integers(len(_ASPECTS))]
    size = (round(rows * spec.size), round(columns * spec.size))
    kinds = frozenset(dataset.kinds.values())
    return rng, compose(rng, size, dataset.domain, kinds, dataset.crowds, spec.difficulty)


def generate(root: Path | str, spec: MiniSpec | None = None, progress: bool = True) -> Path:
    """Write the suite to ``root``: ``ADEChallengeData2016``, ``coco``, ``objects365``, ``open`` and ``suite.json``.

    It is written beside ``root`` and moved there when complete; an older suite in that place is replaced.

    Raises:
        UserError: ``root`` holds something that is not a mini suite, which would be lost.
    """
    root, spec = Path(root), spec or MiniSpec()
    with _lock(root):
        _write(root, spec, progress)
    return root


def ensure(root: Path | str, spec: MiniSpec | None = None, progress: bool = True) -> Path:
    """Make the suite unless it stands there complete with the same parameters; safe to call from many processes.

    Raises:
        UserError: as `generate`.
    """
    root, spec = Path(root), spec or MiniSpec()
    if is_complete(root, spec):  # without the lock, which a read-only folder refuses
        return root
    with _lock(root):
        if not is_complete(root, spec):
            _write(root, spec, progress)
    return root


def ensure_wanted(root: Path, spec: MiniSpec) -> None:
    """`ensure` for a folder named in a configuration, which may be mistyped.

    Raises:
        UserError: ``root`` is neither called as `DEFAULT_ROOT` is, nor an earlier suite, nor empty; or as `generate`.
    """
    if root.name != DEFAULT_ROOT.name and not root.exists():
        raise UserError(
            f"{root}: there is no such folder. The mini suite is made by itself only in a folder called {DEFAULT_ROOT}"
            f" and in one that is there and empty: mend data.root (DATA), or make it with dataseg mini --out {root}"
        )
    ensure(root, spec)


def is_complete(root: Path | str, spec: MiniSpec | None = None) -> bool:
    """Whether ``root`` holds the suite of these parameters and this generator, with no file missing."""
    try:
        found = json.loads((Path(root) / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    files = found.pop("files", None)
    return bool(found == (spec or MiniSpec()).manifest and files == _count_files(Path(root)))


def _lock(root: Path) -> AbstractContextManager[None]:
    root.parent.mkdir(parents=True, exist_ok=True)
    return alone(root.parent / f".{root.name}.lock", f"mini suite {root}")


def _count_files(root: Path) -> int:
    return sum(path.is_file() for path in root.rglob("*")) - 1  # less the manifest


def _write(root: Path, spec: MiniSpec, progress: bool) -> None:
    if root.exists() and not (root / _MANIFEST).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f"{root} exists and is no mini suite (it has no {_MANIFEST}): give another folder, or move it away"
        )
    with replacing(root) as suite:
        splits = _splits(spec)
        with Progress(disable=not progress) as bar:
            task = bar.add_task("mini suite", total=sum(s.count for s in splits))
            for number, split in enumerate(splits):
                split.write(suite, split.name, _scenes(number, split, spec, bar, task))
        manifest = spec.manifest | {"files": _count_files(suite) + 1}
        layouts.write_json(suite / _MANIFEST, manifest)


def _scenes(
    number: int, split: _Split, spec: MiniSpec, bar: Progress, task: TaskID
) -> Iterator[tuple[np.random.Generator, Scene]]:
    for index in range(split.count):
        yield make_scene(split.dataset, spec, (number, index))
        bar.advance(task)

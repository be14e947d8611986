"""Builds an index once: one process reads the annotation file while the others wait, then all map the same table."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from data_modules.annotation_index.problems import OnProblem, raise_problem
from data_modules.annotation_index.records import Advance
from data_modules.annotation_index.table import Index
from dataseg.io.atomic import replacing
from dataseg.io.cache import cache_folder, foreign
from dataseg.io.lock import alone
from dataseg.io.zip_archive import split
from dataseg.structures import UserError

log = logging.getLogger(__name__)

READER_VERSION = 5
"""To be raised with every change of what the readers put into an index."""
CACHED_FROM = 32 << 20
"""Annotation files smaller than this many bytes are read each time: quicker than looking after a copy."""

Counts = dict[str, int]
Batches = Callable[[Counts, Advance, OnProblem], Iterator[pa.RecordBatch]]
"""Reads an annotation file; adds what it drops to the counts, and reports bytes read."""


def build_index(
    source: Path, settings: Mapping[str, Any], batches: Batches, on_problem: OnProblem = raise_problem
) -> tuple[Index, Counts]:
    """The index of an annotation file, from the cache if it has been built before.

    Small files are read anew each time. A cached index belongs to the file's path, size and time of change, to
    ``settings`` and to `READER_VERSION`; it is complete or not there. One that others could have made (see
    `dataseg.io.cache.foreign`) is not used, nor one whose hash is another than was noted.

    Args:
        source: annotation file, which may lie in a zip archive.
        settings: all else that decides what the index holds.
        batches: reads the file.
        on_problem: anything but `raise_problem` leaves the cache alone.

    Returns:
        the index, and the counts that ``batches`` gave.
    """
    state, size = _state(source)
    counts: Counts = {}
    if on_problem is not raise_problem or size < CACHED_FROM:
        with _no_collection():
            return Index(list(batches(counts, lambda count: None, on_problem))), counts
    what = _digest({"source": str(source.absolute()), **settings})
    slug = re.sub(r"[^A-Za-z0-9]+", "-", source.stem)[:40].strip("-") or "index"
    folder = cache_folder("indexes") / f"{slug}-{what}-{_digest({'state': state, 'version': READER_VERSION})}"
    outermost = source if (place := split(source)) is None else place[0].outermost
    if folder.exists() and (why := foreign(folder, outermost)):
        log.warning("%s, so it is not used: others could have changed it", why)
        folder = folder.with_name(f"{folder.name}-u{os.getuid()}")
    if (opened := _open(folder)) is not None:  # without the lock, which a read-only cache refuses
        return opened
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_name(folder.name + ".lock"), f"index of {source}"):
            opened = _open(folder)
            if opened is None:
                _build(folder, source, size, batches)
                _remove_outdated(folder, what)
                opened = _open(folder)
    except OSError as error:
        raise UserError(
            f"{source}: cannot keep its index in {folder.parent} ({error}): set data.cache or DATASEG_CACHE"
        ) from error
    assert opened is not None
    return opened


def _state(source: Path) -> tuple[list[int], int]:
    """What tells one version of a file from another, and its size in bytes."""
    place = split(source)
    try:
        status = os.stat(source if place is None else place[0].outermost)
    except OSError as error:
        raise UserError(f"cannot read {source} ({error.strerror or error})") from error
    size = status.st_size if place is None else place[0].size(place[1])
    return [status.st_size, status.st_mtime_ns, size], size


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _open(folder: Path) -> tuple[Index, Counts] | None:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if about["blake2b"] != _hash(folder / "index.arrow"):
            raise ValueError("its hash is another than was noted")
        return Index.open(folder / "index.arrow"), dict(about["counts"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        log.warning("%s is damaged (%s): building it anew", folder, error)
        return None


def _build(folder: Path, source: Path, size: int, batches: Batches) -> None:
    start = time.perf_counter()
    with replacing(folder) as temporary:
        temporary.mkdir()
        counts: Counts = {}
        with (
            _no_collection(),
            _progress(source.name, size) as advance,
            pa.OSFile(str(temporary / "index.arrow"), "wb") as file,
        ):
            writer = None
            for batch in batches(counts, advance, raise_problem):
                writer = writer or pa.ipc.new_file(file, batch.schema)
                writer.write_batch(batch)
            assert writer is not None, "a reader gives at least one image"
            writer.close()
        about = {"source": str(source), "reader_version": READER_VERSION, "counts": counts}
        about["blake2b"] = _hash(temporary / "index.arrow")
        (temporary / "about.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
        for path in (temporary, *temporary.iterdir()):  # whatever the umask: see `foreign`
            path.chmod(0o755 if path.is_dir() else 0o644)
    log.info("%s: indexed in %.0f s, kept in %s", source, time.perf_counter() - start, folder)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Records of a JSON file hold no cycles; looking for them would take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _progress(name: str, size: int) -> Iterator[Advance]:
    """A bar of bytes read, on the terminal."""
    columns = TextColumn("indexing {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(name, total=size)
        yield lambda count: bar.advance(task, count)


def _remove_outdated(folder: Path, what: str) -> None:
    """Indexes of earlier versions of the same file with the same settings. Processes that use them keep them mapped."""
    for other in folder.parent.glob(f"*-{what}-*"):
        of_users = {re.sub(r"-u\d+$", "", name) for name in (folder.name, other.name)}  # of this version, by user
        if other.is_dir() and len(of_users) > 1 and not other.name.startswith("."):
            shutil.rmtree(other, ignore_errors=True)

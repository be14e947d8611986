"""Progress of a data check on disk, so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_modules.formats.reader import Reader
from data_modules.inspection.problems import Finding, Problem
from dataseg.structures import UserError

CHECK_VERSION = 2
"""To be raised when progress files of older checks should not be gone on with."""


def identity_of(reader: Reader) -> str:
    """Changes when a progress file of the dataset should not be gone on with."""
    files = [str(value) for name, value in sorted(vars(reader).items()) if isinstance(value, Path)]
    states = [(s.st_size, s.st_mtime_ns) for s in (os.stat(f) for f in files if os.path.isfile(f))]
    plain = (str, int, float, bool, tuple, type(None))
    settings = [(name, repr(value)) for name, value in sorted(vars(reader).items()) if isinstance(value, plain)]
    tables = [value.tolist() for _, value in sorted(vars(reader).items()) if isinstance(value, np.ndarray)]
    content = [CHECK_VERSION, type(reader).__name__, len(reader), reader.vocabulary.digest, files, states]
    content += [settings, tables]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def state_of(reader: Reader, index: int) -> list[Any]:
    """Changes when an image should be looked at again: its name, size and time of its file and of its labels'."""
    name = reader.image_id(index)
    try:
        files = reader.files(index)
    except UserError:  # a name that leads out of its folder
        files = []
    return [name, *(_state_of_file(path) for path in files)]


def _state_of_file(path: Path) -> list[Any]:
    """Name, size and time; in an archive the archive's, of a missing file its folder's."""
    for place in (path, *path.parents):
        try:
            state = os.stat(place)
        except OSError:
            continue
        return [path.name, state.st_size, state.st_mtime_ns]
    return [path.name]


class Journal:
    """Findings on disk, one line an image, so that a check can go on where it was stopped.

    Args:
        identity: findings under another one are forgotten.
        state: of an image, by its index; a finding whose image has another one since is forgotten.
    """

    def __init__(self, path: Path, identity: str, state: Callable[[int], list[Any]]) -> None:
        self.path, self.identity, self.state = path, identity, state
        self.done: dict[int, Finding] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        if lines and lines[0] == self.identity:
            for line in lines[1:]:
                try:
                    index, digest, problems, state = json.loads(line)
                except ValueError:
                    continue  # the line that was being written when the check was stopped
                if state == self.state(index):
                    self.done[index] = Finding(index, digest, [Problem(*p) for p in problems])
        self._file = self.path.open("w", encoding="utf-8")
        print(self.identity, file=self._file)
        for finding in self.done.values():
            self._write(finding)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, finding: Finding) -> None:
        self.done[finding.row] = finding
        self._write(finding)

    def _write(self, finding: Finding) -> None:
        assert self._file is not None
        print(json.dumps([*finding, self.state(finding.row)]), file=self._file, flush=True)

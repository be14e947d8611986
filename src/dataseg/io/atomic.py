"""Files and folders that appear under their name whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, for a file or a folder, which takes its place when the block ends well.

    If the block fails, what it wrote is removed and ``path`` stays as it was. Temporary names start with a dot and end
    in ``.tmp``; no reader takes them for finished files. The folder that holds ``path`` is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; see `replacing`.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        try:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # tells the system's errors by their number alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        temporary.chmod(0o644)  # safetensors makes files that nobody else can read


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file or folder to its name, replacing what has that name."""
    if path.is_dir() and not path.is_symlink():  # a folder cannot be replaced in one go
        old = path.with_name(f".{path.name}.old.tmp")
        remove(old)
        path.rename(old)
        temporary.rename(path)
        remove(old)
    else:
        os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

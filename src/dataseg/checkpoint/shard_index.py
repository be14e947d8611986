"""The index of a sharded checkpoint, read without running anything that stands in it.

torch's own readers unpickle ``.metadata`` and every plain value in the shards, so that a folder from somebody else
could run code. `read_index` goes before them wherever a folder is opened; what it admits is harmless to unpickle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from dataseg.structures import UserError

INDEX = ".metadata"

MOST_GROUPS = 1000
"""Of an optimiser's parameters: torch's reader makes lists as long as the largest number in a name."""

_METADATA = "torch.distributed.checkpoint.metadata"
_ADMITTED = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),  # of a layout's name
    ("torch", "Size"),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}


class _IndexUnpickler(pickle.Unpickler):
    """Admits the classes that an index is made of, by name, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("pathlib", "PosixPath"):  # where the folder lay when it was written: not used
            return lambda *parts: "/".join(parts)
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)  # type: ignore[no-any-return]


def read_index(folder: Path) -> Metadata:
    """Read the index and compare it with the files beside it.

    Raises:
        UserError: it holds more than an index does, names files outside the folder, more bytes than they have, plain
            values that are more than that, or tensors larger than the files.
    """
    try:
        index = _IndexUnpickler(io.BytesIO((folder / INDEX).read_bytes())).load()
        problem = _problem(folder, index)
    except Exception as error:  # whatever a damaged or hostile file makes of this
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise UserError(f"{folder}: its index {INDEX} cannot be used ({' '.join(problem.split())[:200]})")
    checked: Metadata = index
    return checked


def _problem(folder: Path, index: Any) -> str | None:
    infos = index.storage_data.items()
    names = {info.relative_path for _, info in infos}
    outside = [name for name in names if Path(name).name != name]
    if outside:
        return f"{outside[0]!r} is no file of the folder"
    files = {name: (folder / name).stat().st_size for name in names}
    for _, info in infos:
        if min(info.offset, info.length, files[info.relative_path] - info.offset - info.length) < 0:
            return f"{info.relative_path} is cut short"
    described = index.state_dict_metadata
    size = 0
    for name, what in described.items():
        if isinstance(what, TensorStorageMetadata):
            size += what.size.numel() * what.properties.dtype.itemsize
        elif not isinstance(what, BytesStorageMetadata):
            return f"{name} is a {type(what).__name__}"
    if size > sum(files.values()):
        return f"its tensors would have {size:,} bytes, the files have {sum(files.values()):,}"
    keys = {key for path in (index.planner_data or {}).values() for key in path}
    if not all(isinstance(key, str) or (isinstance(key, int) and 0 <= key < MOST_GROUPS) for key in keys):
        return "its names are no names"
    for entry, info in infos:
        if isinstance(described[entry.fqn], BytesStorageMetadata):
            with (folder / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                torch.load(io.BytesIO(file.read(info.length)), map_location="cpu", weights_only=True)
    return None

"""Reads tensors from files that others wrote, without running anything that stands in them."""

from __future__ import annotations

import io
import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dataseg.structures import UserError

PICKLES = (".pkl",)
TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt")
_LFS_POINTER = b"version https://git-lfs"


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        path: a ``.safetensors`` file; a Hugging Face folder with ``model.safetensors`` (or its shards and their index)
            or ``pytorch_model.bin``; a detectron2 ``.pkl`` of arrays; or a torch ``.pth``, ``.pt``, ``.bin``,
            ``.ckpt``. Pickles and torch files may hold the state dict itself or have it under ``model`` or
            ``state_dict``.

    Raises:
        UserError: there is no such file, it is truncated or of another format, or it wants more than arrays; names it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UserError(f"{path}: a Git LFS pointer, not the weights themselves; fetch them with git lfs pull")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: truncated, or not a safetensors file ({error}); fetch it again") from error
    if path.suffix in PICKLES:
        return _tensors_of(path, _unpickle(path))
    if path.suffix in TORCH_FILES:
        return _tensors_of(path, _torch_load(path))
    known = [".safetensors", *PICKLES, *TORCH_FILES]
    raise UserError(f"{path}: weights are read from {', '.join(known)} or a Hugging Face folder")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: not an index of safetensors shards ({error})") from error
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors |= read_tensors(folder / Path(shard).name)
        return tensors
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: holds neither model.safetensors (or its index) nor pytorch_model.bin")


def _torch_load(path: Path) -> Any:
    try:
        # numpy's arrays and numbers (learning rates of a training checkpoint) are as harmless as torch's
        with torch.serialization.safe_globals(_NUMPY_VALUES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise UserError(_more_than_arrays(path, wanted[1])) from error
        detail = str(error).split("\n")[0] if not isinstance(error, pickle.UnpicklingError) else "broken pickle"
        raise UserError(f"{path}: truncated, or not a torch file ({detail or type(error).__name__})") from error


def _more_than_arrays(path: Path, wanted: object) -> str:
    return (
        f"{path}: wants to call {wanted}. A file of weights needs arrays only; this one was not read further. Do not"
        " load it by other means unless you trust its author"
    )


def _tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state dict but a {type(content).__name__}")
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.array(value))
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is no tensor but a {type(value).__name__}")
        tensors[name] = value
    return tensors


# ------------------------------------------------------------------------------------- pickles of arrays only


def _latin1(text: str, encoding: str) -> bytes:
    """What numpy's arrays are spelt with in old pickles: ``_codecs.encode(text, "latin1")``."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """A torch storage from its own file format."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise _NotAnArray("torch.storage._load_from_bytes with something that is no tensor's storage") from error


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.empty(0, dtype=storage.dtype).set_(storage, offset, size, stride)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


# numpy itself says which functions rebuild its arrays and scalars
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.empty(1).__reduce_ex__(5)[0]
_NUMPY_VALUES: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "u1", "i4", "i8", "?")),
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
}
for _package in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_package}.multiarray", "_reconstruct"] = _RECONSTRUCT
    _ADMITTED[f"{_package}.multiarray", "scalar"] = _SCALAR
    _ADMITTED[f"{_package}.numeric", "_frombuffer"] = _FROM_BUFFER


class _NotAnArray(pickle.UnpicklingError):
    pass


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what arrays, tensors and dictionaries are made of, by name, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            admitted: Callable[..., Any] = _ADMITTED[module, name]
        except KeyError:
            raise _NotAnArray(f"{module}.{name}") from None
        return admitted


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except _NotAnArray as error:
        raise UserError(_more_than_arrays(path, error)) from error
    except Exception as error:  # a broken pickle can raise anything
        detail = str(error).split("\n")[0]
        raise UserError(f"{path}: truncated, or not a pickle of arrays ({type(error).__name__}: {detail})") from error

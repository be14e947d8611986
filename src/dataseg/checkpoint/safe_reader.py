"""Reads tensors from files that others wrote, without running anything that stands in them.

The unpickler is kept by hand: of detectron2's pickles of arrays, torch.load(weights_only=True) reads none.
"""

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
from numpy.typing import NDArray
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
        raise UserError(
            f"{path}: there is no such file of weights, nor a folder. A model on the Hugging Face hub is fetched first:"
            " hf download OWNER/NAME --local-dir FOLDER"
        )
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
            others = [shard for shard in shards if Path(shard).name != shard or Path(shard).suffix != ".safetensors"]
            if others:
                raise ValueError(f"it names {others[0]!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index}: not an index of safetensors shards ({error})") from error
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            tensors |= read_tensors(folder / shard)
        return tensors
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise UserError(f"{folder}: holds neither model.safetensors (or its index) nor pytorch_model.bin")


def _torch_load(path: Path) -> Any:
    try:
        # numpy's arrays and numbers occur too, as learning rates of a training checkpoint
        numpy_values: list[Any] = [(ours, ".".join(theirs)) for theirs, ours in _NUMPY.items()]
        with torch.serialization.safe_globals(numpy_values):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        wanted = re.search(r"(?:GLOBAL |(?=numpy\.dtype\())(\S+)", str(error))
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
        if isinstance(value, _Array) and value.value is not None:
            value = torch.from_numpy(value.value.astype(value.value.dtype.newbyteorder("=")))  # a copy
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


def _no_bytes() -> bytes:
    """How old pickles spell empty bytes: ``bytes()``."""
    return b""


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


class _Number:
    """A dtype as a pickle spells it: its code and byte order, and no more.

    numpy's own would take any flags from the file, and with the wrong ones it reads an array's bytes as pointers.
    """

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1|\?)", code):
            raise _NotAnArray(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array as a pickle spells it; numpy is handed bytes, a checked dtype and a shape."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content  # written by Python 2
        self.value = _from_bytes(content, number, shape, "F" if fortran else "C").value


def _from_bytes(content: bytes, number: _Number, shape: Any, order: Any, axes: Any = None) -> _Array:
    array = _Array()
    flat = np.frombuffer(content, dtype=number.dtype)
    array.value = flat.reshape(shape, order="C").transpose(axes) if axes else flat.reshape(shape, order=order)
    return array


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _scalar(number: _Number, content: bytes) -> _Array:
    return _from_bytes(content, number, (), "C")


_NUMPY: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Number}
for _package in ("numpy.core", "numpy._core"):
    _NUMPY[f"{_package}.multiarray", "_reconstruct"] = _empty_array
    _NUMPY[f"{_package}.multiarray", "scalar"] = _scalar
    _NUMPY[f"{_package}.numeric", "_frombuffer"] = _from_bytes

_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    **_NUMPY,
}


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

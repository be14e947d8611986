"""Paths that lead through zip archives, read in place: ``coco/train2017.zip/train2017/000000000009.jpg``.

An archive inside an archive works too, as in COCO's panoptic download:
``panoptic_annotations_trainval2017.zip/annotations/panoptic_val2017.zip/panoptic_val2017/000000000139.png``.
Kept by hand: zipfile seeks in one shared position and holds an object for each of 118,000 members.
Nothing is unpacked. Reads give their position with every call, so loading processes may share an open archive.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from dataseg.io.atomic import replacing
from dataseg.io.cache import cache_folder, foreign
from dataseg.io.lock import alone
from dataseg.structures import UserError

MAX_MEMBER = 1 << 30
"""Members of an archive that claim to be larger than this many bytes are refused, except where they are streamed."""

MAX_RATIO = 100
"""Archives in an archive that claim to be so many times larger unpacked are refused: those of images hardly shrink."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_RECORD = np.dtype(
    [("offset", "i8"), ("packed", "i8"), ("size", "i8"), ("crc", "u4"), ("method", "u2"), ("flags", "u2")]
)
_KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Window(io.RawIOBase):
    """A part of an open file, as a file of its own with its own position."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        self._handle, self._start, self._size, self._at = handle, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._handle, max(0, min(len(buffer), self._size - self._at)), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Archive:
    """A zip file's members by name, in a few arrays: 118,000 members take 10 MB.

    Args:
        path: what it is called in messages.
        handle: file descriptor of the outermost file.
        start, size: where the archive lies in it, bytes.

    Raises:
        UserError: not a readable zip file.
    """

    def __init__(self, path: Path, handle: int, start: int, size: int) -> None:
        self.path, self._handle, self._start, self._size = path, handle, start, size
        self.outermost = path  # the file on disk
        try:
            with zipfile.ZipFile(io.BufferedReader(_Window(handle, start, size))) as found:
                members = {i.filename: i for i in found.infolist()}  # of one written twice the last, as zipfile has it
            infos = sorted((i for i in members.values() if not i.is_dir()), key=lambda i: i.filename.encode())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise UserError(f"{path}: not a readable zip archive ({error})") from error
        self._names = np.array([i.filename.encode() for i in infos], dtype=np.bytes_)
        self._records = np.array(
            [(i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type, i.flag_bits) for i in infos],
            dtype=_RECORD,
        )

    def _row(self, name: str) -> int | None:
        key = name.encode()
        row = int(np.searchsorted(self._names, key))
        return row if row < len(self._names) and self._names[row] == key else None

    def has_file(self, name: str) -> bool:
        return self._row(name) is not None

    def has_folder(self, name: str) -> bool:
        return not name or next(self.names(name), None) is not None

    def names(self, folder: str) -> Iterator[str]:
        """All members below ``folder``, sorted, by their path relative to it."""
        prefix = f"{folder}/".encode() if folder else b""
        for row in range(int(np.searchsorted(self._names, prefix)), len(self._names)):
            name = bytes(self._names[row])
            if not name.startswith(prefix):
                return
            yield name[len(prefix) :].decode(errors="replace")

    def _locate(self, name: str) -> tuple[Any, int]:
        """The member's record and where its data start in the outermost file."""
        row = self._row(name)
        if row is None:
            raise UserError(f"{self.path} has no member {name!r}")
        record = self._records[row]
        if record["method"] not in _KNOWN or record["flags"] & 1:
            raise UserError(f"{self.path}: {name!r} is encrypted or compressed in an unusual way: pack it anew")
        header = os.pread(self._handle, _LOCAL_HEADER.size + 4, self._start + int(record["offset"]))
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise UserError(f"{self.path}: damaged at {name!r}: get it anew")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return record, self._start + int(record["offset"]) + 30 + name_length + extra_length

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises:
            UserError: no such member, damaged, or larger than `MAX_MEMBER`.
        """
        record, start = self._locate(name)
        size = int(record["size"])
        if size > MAX_MEMBER:
            raise UserError(f"{self.path}: {name!r} has {size:,} bytes, more than the limit of {MAX_MEMBER:,}")
        data = os.pread(self._handle, int(record["packed"]), start)
        try:
            if record["method"] == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise UserError(f"{self.path}: damaged at {name!r} ({error}): get it anew") from error
        if len(data) != size or zlib.crc32(data) != record["crc"]:
            raise UserError(f"{self.path}: damaged at {name!r}: get it anew")
        return data

    def size(self, name: str) -> int:
        """Bytes of a member, unpacked."""
        return int(self._locate(name)[0]["size"])

    def stream(self, name: str) -> IO[bytes]:
        """A member as a file to be read from front to back, whatever its size."""
        self._locate(name)
        whole = zipfile.ZipFile(io.BufferedReader(_Window(self._handle, self._start, self._size)))
        return whole.open(name)

    def inner(self, name: str) -> Archive:
        """An archive that is a member: in place if it is stored as it is, else inflated once, as one file."""
        record, start = self._locate(name)
        path = self.path / name
        if record["method"] == zipfile.ZIP_STORED:
            return Archive(path, self._handle, start, int(record["size"]))
        if record["size"] > MAX_RATIO * record["packed"]:
            raise UserError(
                f"{path}: would unpack to {int(record['size']):,} bytes, {MAX_RATIO} times its own and more"
            )
        key = hashlib.sha256(f"{path} {int(record['size'])} {int(record['crc'])}".encode()).hexdigest()[:16]
        file = cache_folder("archives") / f"{PurePosixPath(name).stem}-{key}.zip"
        try:
            if not file.exists():  # else a cache that cannot be written does
                self._unpack(name, file)
            elif why := foreign(file, self.outermost):
                raise UserError(f"{path}: {why}, so others could have changed it: set data.cache or DATASEG_CACHE")
            handle = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be unpacked to {file.parent} ({error}): set data.cache or DATASEG_CACHE"
            ) from error
        return Archive(path, handle, 0, os.fstat(handle).st_size)

    def _unpack(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file.with_suffix(".lock"), f"{self.path / name} is being unpacked"):
            if not file.exists():
                with replacing(file) as temporary, self.stream(name) as source, temporary.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    temporary.chmod(0o644)  # whatever the umask: see `foreign`


@lru_cache(maxsize=512)
def _outer(path: str, size: int, changed_ns: int) -> Archive:
    return Archive(Path(path), os.open(path, os.O_RDONLY), 0, size)


@lru_cache(maxsize=512)
def _inner(path: str, size: int, changed_ns: int, name: str) -> Archive:
    archive = _outer(path, size, changed_ns).inner(name)
    archive.outermost = Path(path)
    return archive


def split(path: Path) -> tuple[Archive, str] | None:
    """The archive that ``path`` leads into and the member's name there ("" = all of it); None for plain paths."""
    if ".zip" not in str(path).lower():
        return None
    for outer in reversed((path, *path.parents)):
        if outer.suffix.lower() != ".zip" or not outer.is_file():
            continue
        status = outer.stat()
        state = (str(outer), status.st_size, status.st_mtime_ns)
        parts = path.relative_to(outer).parts
        for count, part in enumerate(parts, 1):
            name = "/".join(parts[:count])
            if part.lower().endswith(".zip") and _outer(*state).has_file(name):
                return _inner(*state, name), "/".join(parts[count:])
        return _outer(*state), "/".join(parts)
    return None

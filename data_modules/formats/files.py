"""Finding and reading files: every failure is one ValueError that names the file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_modules.formats.base import ImageArray, MissingDataError, Reader
from dataseg.structures import UserError

MAX_PIXELS = 120_000_000
"""Larger images are refused unread: no data set here comes near (Cityscapes: 2 million)."""

_TAIL = 1024  # bytes searched for a JPEG's end marker: some cameras write a little after it


def candidates(root: Path, folder: str) -> Iterator[Path]:
    """``root/folder``, then ``root/*/folder``: data sets are often unpacked one level down. Absolute paths stand."""
    yield root / folder
    if not Path(folder).is_absolute() and root.is_dir():
        yield from (child / folder for child in sorted(root.iterdir()) if child.is_dir())


def find(reader: Reader, root: Path, folder: str, contents: Sequence[str]) -> Path:
    """The first candidate folder that holds all of ``contents`` (relative paths).

    Raises:
        MissingDataError: there is none.
    """
    for path in candidates(root, folder):
        if path.is_dir() and all((path / name).exists() for name in contents):
            return path
    places = [root / folder / name for name in contents]
    if not Path(folder).is_absolute():
        places.append(root / "*" / folder)
    raise MissingDataError(reader.title, places, reader.source)


def first_existing(reader: Reader, base: Path, override: str | None, usual: Sequence[str]) -> Path:
    """``override`` below ``base`` if given (absolute paths stand), else the first of ``usual`` that exists.

    Raises:
        MissingDataError: neither is there.
    """
    paths = [base / name for name in ([override] if override else usual)]
    for path in paths:
        if path.exists():
            return path
    raise MissingDataError(reader.title, paths, reader.source)


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, refusing names that lead out of the folder.

    Raises:
        UserError: an absolute name, or one with "..".
    """
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise UserError(f"file name {name!r} leads out of {folder}: mend the annotation file")
    return folder / pure


def read_json(path: Path) -> dict[str, Any]:
    """An annotation file.

    Raises:
        UserError: unreadable, not JSON, or not an object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def records(content: dict[str, Any], key: str, path: Path) -> list[Any]:
    """A non-empty list of an annotation file.

    Raises:
        UserError: it is missing, empty, or no list.
    """
    value = content.get(key)
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: {key!r} must be a list with at least one record")
    return value


def stated_size(image: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of an image record.

    Raises:
        UserError: not positive, or beyond `MAX_PIXELS`.
    """
    rows, columns = int(image["height"]), int(image["width"])
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise UserError(f"height {rows} and width {columns} must be positive, {MAX_PIXELS:,} pixels at most")
    return rows, columns


def read_image(path: Path, dataset: str, size: tuple[int, int] | None = None) -> ImageArray:
    """An image file as uint8 ``[H, W, 3]``, RGB. Rotation flags (EXIF) are ignored, as COCO's annotations expect.

    Args:
        size: (H, W) the annotation file states; None = do not compare.

    Raises:
        UserError: missing, truncated, too large, or of another size; names file and data set.
    """
    image = _decode(path, dataset, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if size is not None and image.shape[:2] != tuple(size):
        raise UserError(
            f"{dataset}: {path} is {image.shape[0]} x {image.shape[1]} (rows x columns), "
            f"the annotation file says {size[0]} x {size[1]}"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)  # type: ignore[return-value]


def read_labels(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """A one-channel label file (PNG or TIFF, 8 or 16 bits), unsigned ``[H, W]``.

    Raises:
        UserError: as `read_image`, or more than one channel.
    """
    labels = _decode(path, dataset, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2:
        raise UserError(f"{dataset}: {path} has {labels.shape[2]} channels, a label map has one")
    return _same_size(labels, path, dataset, size)


def read_rgb_ids(path: Path, dataset: str, size: tuple[int, int]) -> NDArray[np.uint32]:
    """A panoptic PNG: R + 256 G + 65536 B, uint32 ``[H, W]``.

    Raises:
        UserError: as `read_image`, or not three channels.
    """
    colors = _decode(path, dataset, cv2.IMREAD_UNCHANGED)
    if colors.ndim != 3 or colors.dtype != np.uint8:
        raise UserError(f"{dataset}: {path} is not an 8-bit RGB file, as panoptic maps are")
    _same_size(colors, path, dataset, size)
    rgba = cv2.cvtColor(colors[..., :3], cv2.COLOR_BGR2RGBA)
    ids: NDArray[np.uint32] = rgba.view("<u4")[..., 0]  # little-endian: R is the lowest byte, alpha the highest
    return ids & np.uint32(0xFFFFFF)


def _same_size(array: NDArray[Any], path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[Any]:
    if size is not None and array.shape[:2] != tuple(size):
        raise UserError(
            f"{dataset}: {path} is {array.shape[0]} x {array.shape[1]} (rows x columns), "
            f"its image {size[0]} x {size[1]}"
        )
    return array


def _decode(path: Path, dataset: str, flags: int) -> NDArray[Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{dataset}: cannot read {path} ({error.strerror or error})") from error
    try:
        with Image.open(io.BytesIO(content)) as header:
            columns, rows = header.size
            if rows * columns > MAX_PIXELS:
                raise UserError(f"{rows} x {columns} pixels, more than the limit of {MAX_PIXELS:,}")
            if not _ends_well(content, header.format):
                header.load()  # Pillow raises on truncation, where OpenCV fills up with grey
            if flags == cv2.IMREAD_UNCHANGED and header.mode == "P":
                return np.asarray(header)  # the indices; OpenCV would give the palette's colours
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{dataset}: {path} is not a readable image ({error})") from error
    array = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    if array is None:
        raise UserError(f"{dataset}: {path} is not a readable image (decoding failed)")
    return array


def _ends_well(content: bytes, kind: str | None) -> bool:
    if kind == "JPEG":
        return content.rfind(b"\xff\xd9", len(content) - _TAIL) >= 0 if len(content) > _TAIL else b"\xff\xd9" in content
    return kind == "PNG" and content[-8:-4] == b"IEND"

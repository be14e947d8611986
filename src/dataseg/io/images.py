"""Decoding images and label maps: every failure is one UserError that names the file.

Headers are read by hand: size and completeness of a PNG or JPEG are known without opening it a second time.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dataseg.io.atomic import replacing
from dataseg.io.bands import TIFF_STARTS, Bands, is_tiff, read_tiff, tiff_size
from dataseg.io.paths import read_bytes
from dataseg.structures import UserError

MAX_PIXELS = 120_000_000
"""Larger images are refused unread: no dataset here comes near (Cityscapes: 2 million)."""

MAX_LABELS = 1 << 16
"""Label maps hold values below this."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_TAIL = 1024  # bytes searched for a JPEG's end marker: some cameras write a little after it
_REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
# their names notwithstanding: with IMREAD_COLOR_RGB beside them, they are smaller and in colour
_EXIF = 1 << 16  # bytes at the start of a file that may hold its EXIF data
_SIDEWAYS = 5  # EXIF's orientations from here on exchange rows and columns
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF's orientation -> what makes an image upright."""

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_PNG_MODES = {0: "mono", 2: "rgb", 6: "rgba"}  # PNG's colour types, as kornia-rs names what it makes of them


_CHOOSE = "say which bands and values are to be seen, bands: {select: [1, 2, 3], value_range: [0, 255]}"


class Header(NamedTuple):
    """What the first bytes of an image file say, and whether the last are there."""

    kind: str  # JPEG, PNG, or Pillow's name of another format
    size: tuple[int, int]  # (H, W)
    is_palette: bool
    is_complete: bool
    grey_step: int = 1  # what OpenCV multiplies grey values of fewer than 8 bits by
    png_mode: str = ""  # mono, rgb or rgba: of a whole PNG with 8 bits and no palette


def stated_size(height: Any, width: Any) -> tuple[int, int]:
    """(H, W) that an annotation file states.

    Raises:
        UserError: not positive, or beyond `MAX_PIXELS`.
        TypeError, ValueError, OverflowError: no whole numbers.
    """
    rows, columns = int(height), int(width)
    if rows < 1 or columns < 1 or rows * columns > MAX_PIXELS:
        raise UserError(f"height {rows} and width {columns} must be positive, {MAX_PIXELS:,} pixels at most")
    return rows, columns


def size_of_record(image: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of an image record of a COCO-style file.

    Raises:
        UserError: not stated, not positive, or beyond `MAX_PIXELS`.
    """
    try:
        return stated_size(image["height"], image["width"])
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError):
        stated = [repr(image[key]) if key in image else "none" for key in ("height", "width")]
        raise UserError(
            f"image {image.get('file_name')!r} states height {stated[0]} and width {stated[1]}: write the image's own,"
            " in pixels"
        ) from None


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory, checked but not decoded: its size is known before it is chosen how to decode it.

    Attributes:
        content: the file.
        name: dataset and file, for messages.
        header: what the file's first bytes say.
        orientation: EXIF's, 1..8, by which it is turned; 1 = as it is stored.
        bands: what is seen of it; None = what the file says.
    """

    content: bytes
    name: str
    header: Header
    orientation: int = 1
    bands: Bands | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W), pixels, once turned."""
        rows, columns = self.header.size
        return (columns, rows) if self.orientation >= _SIDEWAYS else (rows, columns)

    @property
    def exif_orientation(self) -> int:
        """What its EXIF data say, 1..8, whether it is turned so or not; 1 = upright as it is stored."""
        return _orientation(self.content, self.name, self.header.kind)

    @property
    def is_deep(self) -> bool:
        """Whether its pixels have more than 8 bits. A TIFF is decoded to know."""
        if self.header.kind == "TIFF":
            return _decode(self.content, self.name, cv2.IMREAD_UNCHANGED).dtype != np.uint8
        return self.header.kind == "PNG" and self.content[24] == 16

    def decode(self, reduced: tuple[int, int] | None = None) -> ImageArray:
        """Uint8 ``[H, W, 3]``, RGB. Of 16 bits, the file's own lowest to highest value become 0 to 255.

        Without ``bands`` an image has 1, 3 or 4 bands of 8 or 16 bits.

        Args:
            reduced: (H', W'), pixels: a JPEG more than twice as large, without ``bands``, is decoded at 1/2, 1/4 or
                1/8 and comes in this size, by the area average. All else comes in full.

        Raises:
            UserError: it cannot be decoded, or has other bands; names file and dataset.
        """
        return np.ascontiguousarray(_TURNS.get(self.orientation, np.asarray)(self._as_stored(reduced)))

    def _as_stored(self, reduced: tuple[int, int] | None) -> NDArray[Any]:
        """What `decode` gives, not turned yet."""
        if self.bands is not None:
            return self.bands.rgb(_all_bands(self.content, self.name), self.name)
        image: NDArray[Any]
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if reduced is None or self.header.kind != "JPEG":
            divisor, out = 1, self.header.size
        else:
            out = reduced[::-1] if self.orientation >= _SIDEWAYS else reduced
            # one pixel more than wanted: images of the wanted size are copied by cv2.resize, whatever the scale
            largest = min(have // (want + 1) for have, want in zip(self.header.size, out, strict=True))
            divisor = next((d for d in _REDUCED if d <= largest), 1)
        if self.header.png_mode == "rgb":  # twice as fast as OpenCV
            image = _decode_png(self.content, self.name, self.header)
        elif self.is_deep:
            image = _eight_bits(_decode(self.content, self.name, cv2.IMREAD_UNCHANGED), self.name)
        else:
            image = _decode(self.content, self.name, flags | _REDUCED.get(divisor, 0))
        if divisor > 1:
            # Sides were rounded up: the last row and column may reach over the edge of the picture. At the exact scale
            # they do so in the result too, and are cut off there.
            fy, fx = (divisor * want / have for have, want in zip(self.header.size, out, strict=True))
            image = cv2.resize(image, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)[: out[0], : out[1]]
        return image


def _eight_bits(values: NDArray[Any], what: str) -> ImageArray:
    """What `cv2.imdecode` gives unchanged, as uint8 RGB ``[H, W, 3]``."""
    bands = 1 if values.ndim == 2 else values.shape[2]
    if values.dtype not in (np.uint8, np.uint16) or bands not in (1, 3, 4):
        raise UserError(
            f"{what} has {bands} bands of {values.dtype} {values.min():g}..{values.max():g}; wanted are 1, 3 or 4"
            f" bands of 8 or 16 bits: {_CHOOSE}"
        )
    if values.dtype == np.uint16:
        low, high = int(values.min()), int(values.max())
        values = np.rint((values.astype(np.float32) - low) * (255 / max(high - low, 1))).astype(np.uint8)
    code = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}[bands]
    return np.asarray(cv2.cvtColor(values, code), dtype=np.uint8)


def open_image(
    path: Path | str,
    dataset: str = "",
    size: tuple[int, int] | None = None,
    upright: bool = False,
    bands: Bands | None = None,
) -> EncodedImage:
    """Read an image file and check its header and its end.

    Args:
        path: the file.
        dataset: for messages.
        size: (H, W) the annotation file states; None = do not compare.
        upright: turned as its EXIF orientation says, as viewers and labelling tools show it; else as it is stored,
            which is what COCO's annotations are drawn on.
        bands: what is seen of it, if the file does not say so by itself.

    Raises:
        UserError: missing, truncated, too large, or of another size; names file and dataset.
    """
    path = Path(path)
    return encoded_image(_content(path, dataset), _name(path, dataset), size, upright, bands)


def encoded_image(
    content: bytes,
    what: str,
    size: tuple[int, int] | None = None,
    upright: bool = False,
    bands: Bands | None = None,
) -> EncodedImage:
    """`open_image` of a file's bytes; ``what`` names it in messages."""
    header = _checked(content, what, bands is not None)
    image = EncodedImage(content, what, header, _orientation(content, what, header.kind) if upright else 1, bands)
    if size is not None and image.size != tuple(size):
        raise UserError(
            f"{what} is {image.size[0]} x {image.size[1]} (rows x columns), "
            f"the annotation file says {size[0]} x {size[1]}{_orientation_hint(image, tuple(size))}"
        )
    return image


def _orientation(content: bytes, what: str, kind: str) -> int:
    """EXIF's orientation, 1..8; 1 = stored upright, or turned by the decoder, as TIFF files are."""
    mark = {"JPEG": b"Exif", "PNG": b"eXIf"}.get(kind, b"")  # of other formats, Pillow is asked
    if kind == "TIFF" or mark not in content[:_EXIF]:
        return 1
    found = _with_pillow(content, what, lambda image: image.getexif().get(0x0112, 1))
    return found if found in _TURNS else 1


def _orientation_hint(image: EncodedImage, stated: tuple[int, ...]) -> str:
    """Of sides that are exchanged: why, and what to do."""
    if stated != image.size[::-1]:
        return ""
    code = image.exif_orientation
    if code < _SIDEWAYS:
        return ": its height and width are exchanged there"
    other = "stored" if image.orientation > 1 else "upright"
    return f": its EXIF orientation ({code}) explains that: set orientation: {other}"


def read_labels(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """A label file (PNG or TIFF), unsigned ``[H, W]``: one channel of whole numbers below 65,536.

    Equal channels count as one, and a red one whose neighbours are 0. Transparency is left out.

    Raises:
        UserError: as `open_image`; or classes stored as colours, fractions, negative numbers, or a JPEG.
    """
    return decode_labels(_content(path, dataset), _name(path, dataset), size)


def decode_labels(content: bytes, what: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """`read_labels` of a file's bytes."""
    if content.startswith(_JPEG):
        raise UserError(f"{what} is not a label map: a JPEG changes values; write PNG files from the original labels")
    labels = _decode_map(content, what, size)
    if labels.ndim == 3:
        if (labels != labels[..., :1]).any() and labels[..., 1:].any():
            raise UserError(
                f"{what} is not a label map: it has channels that differ, so classes are stored as colours; write one"
                " number a pixel, the class's id, or give each class its color and set encoding: colors"
            )
        labels = labels[..., 0]
    if labels.dtype.kind == "f" and (labels % 1 == 0).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "ui" or (labels.size and not 0 <= labels.min() <= labels.max() < MAX_LABELS):
        raise UserError(
            f"{what} is not a label map: it holds {labels.dtype} values {labels.min()}..{labels.max()}, wanted are"
            f" whole numbers 0..{MAX_LABELS - 1}"
        )
    return labels if labels.dtype.kind == "u" else labels.astype(np.uint16)


def read_colors(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A label map of colours, RGB ``[H, W, 3]``; of grey files and files with a palette too, without transparency.

    Raises:
        UserError: as `open_image`; or more than 8 bits, or a JPEG.
    """
    content, what = _content(path, dataset), _name(path, dataset)
    if content.startswith(_JPEG):
        raise UserError(f"{what} is not a label map: a JPEG changes colours; write PNG files from the original labels")
    colors = _decode_channels(content, what, size, indices=False)
    if colors.dtype != np.uint8:
        raise UserError(f"{what} is not a label map of colours: it holds {colors.dtype} values, not 8 bits")
    return np.stack([colors] * 3, axis=-1) if colors.ndim == 2 else np.ascontiguousarray(colors[..., :3])


def color_codes(colors: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """RGB ``[H, W, 3]`` -> R + 256 G + 65536 B, uint32 ``[H, W]``; the highest byte means nothing."""
    rgba = cv2.cvtColor(colors, cv2.COLOR_RGB2RGBA)
    codes: NDArray[np.uint32] = rgba.view("<u4")[..., 0]  # little-endian: R is the lowest byte, alpha the highest
    return codes


def read_mask(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    """A mask file, bool ``[H, W]``: True above half of its largest value.

    Transparency that is not the same everywhere is the mask; else the brightest channel, of a palette's colours too.

    Raises:
        UserError: as `open_image`.
    """
    values = mask_values(path, dataset, size)
    return values > (values.max() / 2 if values.size else 0)


def mask_values(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """What `read_mask` cuts, ``[H, W]``, of the file's type."""
    values = _decode_channels(_content(path, dataset), _name(path, dataset), size, indices=False)
    if values.ndim == 2:
        return values
    if values.shape[2] == 4 and values[..., 3].min() < values[..., 3].max():
        return values[..., 3]
    brightest: NDArray[Any] = values[..., :3].max(axis=2)
    return brightest


def read_rgb_ids(path: Path, dataset: str, size: tuple[int, int] | None) -> NDArray[np.uint32]:
    """A panoptic PNG: R + 256 G + 65536 B, uint32 ``[H, W]``; the highest byte means nothing.

    Raises:
        UserError: as `open_image`, or not three channels.
    """
    return decode_rgb_ids(_content(path, dataset), _name(path, dataset), size)


def decode_rgb_ids(content: bytes, what: str, size: tuple[int, int] | None) -> NDArray[np.uint32]:
    """`read_rgb_ids` of a file's bytes."""
    colors = _decode_map(content, what, size)
    if colors.ndim != 3 or colors.dtype != np.uint8:
        raise UserError(f"{what} is not an 8-bit RGB file, as panoptic maps are")
    return color_codes(colors)


def _content(path: Path, dataset: str) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        raise UserError(f"{_name(path, dataset)}: cannot be read ({error.strerror or error})") from error


def _name(path: Path, dataset: str) -> str:
    return f"{dataset}: {path}" if dataset else str(path)


def _decode_map(content: bytes, what: str, size: tuple[int, int] | None) -> NDArray[Any]:
    """``[H, W]``, or RGB ``[H, W, 3]`` without transparency."""
    values = _decode_channels(content, what, size)
    return values if values.ndim == 2 else np.ascontiguousarray(values[..., :3])


def _decode_channels(content: bytes, what: str, size: tuple[int, int] | None, indices: bool = True) -> NDArray[Any]:
    """``[H, W]``, or RGB or RGBA ``[H, W, 3 or 4]``.

    Args:
        indices: of a file with a palette, the indices, not the colours.
    """
    header = _checked(content, what)
    if size is not None and header.size != tuple(size):
        raise UserError(
            f"{what} is {header.size[0]} x {header.size[1]} (rows x columns), its image {size[0]} x {size[1]}"
        )
    if header.is_palette:  # OpenCV would always give the palette's colours
        found: NDArray[Any] = _with_pillow(
            content, what, lambda i: np.asarray(i) if indices else np.asarray(i.convert("RGBA"))
        )
        return found
    if header.png_mode:  # three times as fast as OpenCV, whose zlib takes most of its time
        values = _decode_png(content, what, header)
        return values[..., 0] if header.png_mode == "mono" else values
    values = _decode_unchanged(content, what)
    return values // header.grey_step if values.ndim == 2 and header.grey_step > 1 else values


def _checked(content: bytes, what: str, any_bands: bool = False) -> Header:
    """The header, after the file's end and size were looked at."""
    header = read_header(content)
    if header is None and any_bands and is_tiff(content):
        header = Header("TIFF", tiff_size(content, what), is_palette=False, is_complete=True)
    if header is None:
        header = _with_pillow(content, what, _pillow_header)
    rows, columns = header.size
    if rows * columns > MAX_PIXELS:
        raise UserError(
            f"{what} is not a readable image ({rows} x {columns} pixels, more than the limit of {MAX_PIXELS:,})"
        )
    if header.kind == "PNG" and content.startswith(_PNG):
        _require_no_surplus(content, what, inflate=False)
    if not header.is_complete:
        _with_pillow(content, what, lambda i: i.load())  # it raises where OpenCV fills up with grey
    return header


def _all_bands(content: bytes, what: str) -> NDArray[Any]:
    """``[H, W, N]`` in the file's order and type."""
    if is_tiff(content):
        return read_tiff(content, what)
    values = _decode_unchanged(content, what)
    return values if values.ndim == 3 else values[..., None]


def _decode_unchanged(content: bytes, what: str) -> NDArray[Any]:
    """``[H, W]``, or RGB or RGBA ``[H, W, 3 or 4]``, of the file's type."""
    values = _decode(content, what, cv2.IMREAD_UNCHANGED)
    return values[..., [2, 1, 0, 3][: values.shape[2]]] if values.ndim == 3 else values


def _decode(content: bytes, what: str, flags: int) -> NDArray[Any]:
    if content.startswith(_PNG):
        _require_no_surplus(content, what, inflate=True)
    try:
        array = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"{what}: {error.err}") from error
        raise UserError(f"{what} is not a readable image ({error.err})") from error
    if array is None:
        raise UserError(f"{what} is not a readable image (decoding failed)")
    return array


def _require_no_surplus(content: bytes, what: str, inflate: bool) -> None:
    """Refuse a PNG whose data go on behind its last pixel.

    Args:
        inflate: look at the data as they are unpacked, for OpenCV, which would unpack them all (the other decoders stop
            at the last pixel); else only whether they are more than the pixels even as they are.
    """
    columns, rows = struct.unpack(">II", content[16:24])
    bits, color = content[24:26]
    room = rows * (
        columns * bits * _PNG_CHANNELS.get(color, 4) // 8 + 6
    )  # a byte a row for its filter, interlaced more
    room += room // 100 + 1024  # what cannot be compressed grows a little
    inflater, at = zlib.decompressobj(), 8
    try:
        while at + 8 <= len(content) and room >= 0:
            (length,) = struct.unpack(">I", content[at : at + 4])
            if content[at + 4 : at + 8] == b"IDAT":
                data = content[at + 8 : at + 8 + length]
                room -= len(inflater.decompress(data, room + 1) if inflate else data)
            at += 12 + length
    except zlib.error as error:
        raise UserError(f"{what} is not a readable image ({error})") from error
    if room < 0:
        raise UserError(f"{what} is not a readable image (it holds more data than its {rows} x {columns} pixels have)")


def _decode_png(content: bytes, what: str, header: Header) -> NDArray[np.uint8]:
    try:
        values: NDArray[np.uint8] = decode_image_png_u8(content, header.size, header.png_mode)
    except Exception as error:  # kornia-rs raises no other
        raise UserError(f"{what} is not a readable image ({error})") from error
    return values


def _with_pillow(content: bytes, what: str, use: Callable[[Image.Image], Any]) -> Any:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return use(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{what} is not a readable image ({_kind_of(content)})") from error
    except (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{what} is not a readable image ({error})") from error


def _kind_of(content: bytes) -> str:
    """What a file is that Pillow does not know."""
    starts = {
        b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
        b"<": "a web page or XML",
        **dict.fromkeys(TIFF_STARTS, f"a TIFF of many bands or of fractions: {_CHOOSE}"),
    }
    found = next((what for start, what in starts.items() if content.lstrip().startswith(start)), "of no known format")
    return found if content else "an empty file"


def _pillow_header(image: Image.Image) -> Header:
    step = 255 if image.mode == "1" else 1  # of 1 bit, whichever the format
    return Header(image.format or "", (image.height, image.width), image.mode == "P", is_complete=False, grey_step=step)


def read_header(content: bytes) -> Header | None:
    """Header of a PNG or JPEG, without decoding; None for other formats and whatever looks odd."""
    if content.startswith(_PNG) and content[12:16] == b"IHDR" and len(content) > 33:
        columns, rows = struct.unpack(">II", content[16:24])
        bits, color = content[24:26]
        step = 255 // (2**bits - 1) if color == 0 and bits in (1, 2, 4) else 1
        ends = content[-8:-4] == b"IEND"
        mode = _PNG_MODES.get(color, "") if bits == 8 and ends else ""
        return Header("PNG", (rows, columns), color == 3, ends, step, mode)
    if content.startswith(_JPEG):
        return _jpeg_header(content)
    return None


def _jpeg_header(content: bytes) -> Header | None:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            rows, columns = struct.unpack(">HH", content[at + 5 : at + 9])
            ends = content.rfind(b"\xff\xd9", max(at, len(content) - _TAIL)) >= 0
            return Header("JPEG", (rows, columns), is_palette=False, is_complete=ends) if rows and columns else None
        else:
            at += 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
    return None


ImageArray = NDArray[np.uint8]
"""Uint8 ``[H, W, 3]``, RGB."""


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Uint8 ``[H, W]`` or ``[H, W, 3]``, or uint16 ``[H, W]``; appears whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)

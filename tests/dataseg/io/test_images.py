"""Pixels as users keep them: orientation, masks with soft edges, label maps in their kinds of file."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dataseg.io.images import decode_labels, decode_rgb_ids, encoded_image, mask_values, open_image, read_mask
from dataseg.structures import UserError


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("code", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_upright_as_pillow_turns_them(tmp_path, code, kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = code
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(image, kind, exif=exif, quality=95))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    upright = open_image(path, upright=True, size=expected.shape[:2]).decode()
    assert np.abs(upright - expected).max() <= 3
    if kind == "TIFF":  # its decoder turns it
        return
    assert open_image(str(path)).decode().shape == (40, 64, 3)
    if code >= 5:
        with pytest.raises(UserError, match=r"EXIF orientation \(\d\) explains that: set orientation: upright"):
            open_image(path, size=(64, 40))
        with pytest.raises(UserError, match="set orientation: stored"):
            open_image(path, size=(40, 64), upright=True)


@pytest.mark.parametrize("top", [1, 100, 255])
def test_masks_are_cut_at_half_of_their_range(tmp_path, top):
    inside = np.zeros((32, 48), bool)
    inside[8:24, 10:30] = True
    path = tmp_path / "m.png"
    path.write_bytes(encoded(Image.fromarray((inside * top).astype(np.uint8))))
    assert (read_mask(path, "x", None) == inside).all()


def test_masks_kept_as_jpeg_do_not_grow(tmp_path):
    inside = np.zeros((32, 48), bool)
    inside[8:24, 10:30] = True
    path = tmp_path / "m.jpg"
    path.write_bytes(encoded(Image.fromarray((inside * 255).astype(np.uint8)), "JPEG", quality=80))
    assert (read_mask(path, "x", None) == inside).all()


VALUES = np.random.default_rng(0).integers(0, 4, (7, 13), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(np.stack([VALUES] * 3, -1)), "PNG"),
        (Image.fromarray(np.dstack([VALUES, VALUES, VALUES, np.full_like(VALUES, 255)])), "PNG"),
        (Image.fromarray(np.dstack([VALUES, np.full_like(VALUES, 255)])), "PNG"),
        (Image.fromarray(np.dstack([VALUES, VALUES * 0, VALUES * 0])), "PNG"),
        (Image.fromarray(VALUES.astype(np.int32)), "TIFF"),
        (Image.fromarray(VALUES.astype(np.float32)), "TIFF"),
    ],
    ids=["RGB", "RGBA", "LA", "red", "int32", "float32"],
)
def test_label_maps_of_any_lossless_kind(image, kind):
    assert (decode_labels(encoded(image, kind), "x", (7, 13)) == VALUES).all()


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (Image.fromarray(np.dstack([VALUES, VALUES, VALUES * 0])), "PNG", "classes are stored as colours"),
        (Image.fromarray(VALUES), "JPEG", "a JPEG changes values"),
        (Image.fromarray(VALUES / np.float32(2)), "TIFF", "float32 values .*wanted are whole numbers"),
        (Image.fromarray(VALUES.astype(np.int32) - 1), "TIFF", r"values -1\.\.2, wanted are whole numbers"),
    ],
)
def test_other_label_maps_are_refused_in_words(image, kind, words):
    with pytest.raises(UserError, match=f"x is not a label map: .*{words}"):
        decode_labels(encoded(image, kind), "x", None)


def test_a_decoded_image_is_contiguous():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(np.zeros((4, 6, 3), np.uint8)), "JPEG", exif=exif)
    assert encoded_image(content, "x", upright=True).decode().flags["C_CONTIGUOUS"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, columns, color, bits=8, surplus=0):
    """Black pixels, and behind the last so many bytes more, with PNG's type of colours."""
    row = bytes(1 + columns * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color] * bits // 8)
    packer = zlib.compressobj(9)
    data = packer.compress(row * rows) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(surplus >> 20))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, color, 0, 0, 0))
    head += chunk(b"PLTE", bytes(768)) if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data + packer.flush()) + chunk(b"IEND", b"")


READS = {
    "image": lambda path: open_image(path).decode(),
    "labels": lambda path: decode_labels(path.read_bytes(), str(path), None),
    "ids": lambda path: decode_rgb_ids(path.read_bytes(), str(path), None),
    "mask": lambda path: mask_values(path, "", None),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(("color", "bits"), [(0, 8), (0, 1), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (6, 8)])
def test_data_behind_the_last_pixel_are_cut_off(tmp_path, color, bits, read):
    """OpenCV unpacks them all: a GiB takes it 3 seconds."""
    path = tmp_path / "a.png"
    path.write_bytes(png(8, 8, color, bits, surplus=64 << 20))
    begun = time.process_time()
    with pytest.raises(UserError, match=r"a\.png is not a readable image \(it holds more data than its 8 x 8 pixels"):
        read(path)
    assert time.process_time() - begun < 0.1
    path.write_bytes(png(8, 8, color, bits))
    assert open_image(path).decode().shape == (8, 8, 3)


def test_data_that_are_no_more_than_the_pixels_until_they_are_unpacked(tmp_path):
    (tmp_path / "a.png").write_bytes(png(200, 300, 4, surplus=64 << 20))
    with pytest.raises(UserError, match="it holds more data than its 200 x 300 pixels have"):
        READS["labels"](tmp_path / "a.png")


@pytest.mark.parametrize("options", [{}, {"transparency": (1, 2, 3)}, {"interlace": True}])
def test_png_images_are_decoded_as_pillow_does(options):
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    for mode, pixels in {"RGB": noise[..., :3], "L": noise[..., 0], "RGBA": noise}.items():
        content = encoded(Image.fromarray(pixels), **(options if mode == "RGB" else {}))
        found = encoded_image(content, "x").decode()
        assert found.flags.c_contiguous
        assert (found == (pixels[..., :3] if pixels.ndim == 3 else pixels[..., None])).all(), mode


@pytest.mark.parametrize("color", [0, 255])
def test_a_mask_in_the_transparency(tmp_path, color):
    shape = np.zeros((8, 9), dtype=np.uint8)
    shape[2:5, 3:7] = 255
    colors = np.full((8, 9, 3), color, dtype=np.uint8)
    Image.fromarray(np.dstack([colors, shape])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([colors[..., 0], shape])).save(tmp_path / "la.png")
    for name in ("rgba.png", "la.png"):
        assert (read_mask(tmp_path / name, "", None) == (shape > 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_photographs_of_16_bits_are_spread_over_their_own_range(kind):
    values = np.linspace(100, 4000, 48).astype(np.uint16).reshape(6, 8)
    image = encoded_image(encoded(Image.fromarray(values), kind), "x")
    assert image.is_deep
    wanted = np.rint((values - 100.0) / 3900 * 255)
    assert np.abs(image.decode() - wanted[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"II*\0" + bytes(40), "a TIFF of many bands or of fractions"),
        (b"hello", "of no known format"),
    ],
)
def test_what_is_no_image_is_named(content, words):
    with pytest.raises(UserError, match=f"x is not a readable image .{words}"):
        encoded_image(content, "x")

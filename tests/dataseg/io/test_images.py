"""Pixels as users keep them: orientation, masks with soft edges, label maps in their kinds of file."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from dataseg.io.images import decode_labels, encoded_image, open_image, read_mask
from dataseg.structures import UserError


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("code", range(1, 9))
def test_images_are_turned_upright_as_pillow_turns_them(tmp_path, code):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = code
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, "JPEG", exif=exif, quality=95))
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored)).astype(int)
    upright = open_image(path, upright=True, size=expected.shape[:2]).decode()
    assert np.abs(upright - expected).max() <= 3
    assert open_image(path).decode().shape == (40, 64, 3)
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
        (Image.fromarray(VALUES.astype(np.int32)), "TIFF"),
    ],
    ids=["RGB", "RGBA", "LA", "int32"],
)
def test_label_maps_of_any_lossless_kind(image, kind):
    assert (decode_labels(encoded(image, kind), "x", (7, 13)) == VALUES).all()


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (Image.fromarray(np.dstack([VALUES, VALUES * 0, VALUES * 0])), "PNG", "classes are stored as colours"),
        (Image.fromarray(VALUES), "JPEG", "a JPEG changes values"),
        (Image.fromarray(VALUES.astype(np.float32)), "TIFF", "float32 values .*wanted are whole numbers"),
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

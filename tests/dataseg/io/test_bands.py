import io

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataseg.io.bands import Bands
from dataseg.io.images import encoded_image
from dataseg.structures import UserError


def tiff(values, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", **options)
    return file.getvalue()


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]),
    st.integers(1, 9),
    st.sampled_from(["contig", "separate", "pages"]),
    st.booleans(),
    st.data(),
)
def test_the_bands_and_the_range_that_are_chosen(dtype, bands, layout, compressed, data):
    values = (np.random.default_rng(0).random((7, 11, bands)) * 200).astype(dtype)
    planes = values if layout == "contig" else values.transpose(2, 0, 1)
    options = {} if layout == "pages" or bands == 1 else {"planarconfig": layout}
    content = tiff(values[..., 0] if bands == 1 else planes, compression="zlib" if compressed else None, **options)
    select = data.draw(
        st.lists(st.integers(1, bands), min_size=3, max_size=3) | st.integers(1, bands).map(lambda b: [b])
    )
    image = encoded_image(content, "x", (7, 11), bands=Bands(select, (20.0, 120.0)))
    wanted = np.clip((values[..., [b - 1 for b in select]].astype(np.float64) - 20) * 2.55, 0, 255)
    found = image.decode()
    assert found.shape == (7, 11, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.51


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_other_formats_have_bands_too(kind):
    values = np.full((6, 8, 3), (200, 100, 50), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    found = encoded_image(file.getvalue(), "x", bands=Bands([3, 1, 2], (0, 200))).decode()
    assert np.abs(found.astype(int) - (64, 255, 128)).max() <= 3


def test_no_data_is_black():
    values = np.array([[[np.nan], [1.0]]], dtype=np.float32)
    assert encoded_image(tiff(values[..., 0]), "x", bands=Bands([1], (0, 1))).decode().tolist() == [
        [[0] * 3, [255] * 3]
    ]


def test_what_cannot_be_seen_is_told():
    content = tiff(np.zeros((4, 5, 6), np.float32), planarconfig="contig")
    with pytest.raises(UserError, match=r"a TIFF of many bands or of fractions: say which .*bands: {select"):
        encoded_image(content, "x")
    with pytest.raises(UserError, match=r"x has 6 bands; bands.select is \[7\]"):
        encoded_image(content, "x", bands=Bands([7], (0, 1))).decode()
    with pytest.raises(UserError, match="x has the axes"):
        encoded_image(tiff(np.zeros((2, 3, 4, 5), np.uint8)), "x", bands=Bands([1], (0, 1))).decode()
    for damaged in (content[:60], content[:8] + b"\xff" * 40):
        with pytest.raises(UserError, match="x is not a readable image"):
            encoded_image(damaged, "x", bands=Bands([1], (0, 1))).decode()
    with pytest.raises(UserError, match="one or three bands, counted from 1"):
        Bands([1, 2], (0, 1))
    with pytest.raises(UserError, match="the darkest and the brightest value"):
        Bands([1], (1, 1))

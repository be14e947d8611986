"""COCO masks of every form, against pycocotools."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from dataseg.io.rle import check_run_lengths, encode_mask, mask_of, rle_of, rle_to_json
from dataseg.structures import UserError

SIZE = (48, 96)
FLAT = [8.0, 6.0, 18.0, 6.0, 18.0, 30.0, 8.0, 30.5]
SECOND = [30.0, 20.0, 52.0, 20.0, 41.0, 34.0]
PAIRS = [[8.0, 6.0], [18.0, 6.0], [18.0, 30.0], [8.0, 30.5]]


def drawn(*polygons):
    return coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], *SIZE))


def some_mask(seed=0, size=SIZE):
    return np.random.default_rng(seed).random(size) < 0.3


def plain_counts(mask):
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return ([0] if flat[0] else []) + np.diff([0, *changes, len(flat)]).tolist()


@pytest.mark.parametrize(
    ("segmentation", "polygons"),
    [
        ([FLAT], [FLAT]),
        ([FLAT, SECOND], [FLAT, SECOND]),
        (FLAT, [FLAT]),
        (PAIRS, [FLAT]),
        ([PAIRS], [FLAT]),
        ([[PAIRS]], [FLAT]),
        ([[[*PAIRS[0]], [13.0, 6.0], *PAIRS[1:]]], [[8, 6, 13, 6, 18, 6, 18, 30, 8, 30.5]]),
        ([[{"x": x, "y": y} for x, y in PAIRS]], [FLAT]),
        ([{"x": x, "y": y} for x, y in PAIRS], [FLAT]),
        ({"all_points_x": FLAT[::2], "all_points_y": FLAT[1::2]}, [FLAT]),
        (json.dumps([FLAT, SECOND]), [FLAT, SECOND]),
        ([FLAT, [48.0, 24.0]], [FLAT]),
        ([FLAT, [1.0, 1.0, 90.0, 45.0]], [FLAT]),
        ([[-30.0, 5.0, 120.0, 5.0, 120.0, 60.0]], [[-30.0, 5.0, 120.0, 5.0, 120.0, 60.0]]),
    ],
)
def test_polygons_are_read_as_what_they_plainly_are(segmentation, polygons):
    assert rle_of(segmentation, *SIZE) == drawn(*polygons)


def test_what_is_left_out_of_a_mask_is_counted():
    counts = {}
    for segmentation in ([FLAT, [48.0, 24.0], [1.0, 1.0, 90.0, 45.0]], [FLAT], [FLAT, [3.0, 4.0]]):
        rle_of(segmentation, *SIZE, counts)
    assert counts == {"points_and_lines_beside_polygons": 3}


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_in_their_forms(seed):
    mask = some_mask(seed)
    expected = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    size, counts = list(SIZE), plain_counts(mask)
    assert encode_mask(mask) == expected
    as_json = rle_to_json(expected)
    for form in (as_json, expected, [as_json], json.dumps(as_json), {"size": [48.0, 96.0], "counts": counts}):
        assert rle_of(form, *SIZE) == expected
    assert rle_of({"size": size, "counts": [float(c) for c in counts]}, *SIZE) == expected


@pytest.mark.parametrize(
    "nothing", [None, [], {}, "", {"size": [48, 96], "counts": ""}, {"size": [48, 96], "counts": []}]
)
def test_no_mask_is_stated(nothing):
    assert rle_of(nothing, *SIZE) is None


@pytest.mark.parametrize("counts", [[48 * 96], encode_mask(np.zeros(SIZE, bool))["counts"].decode()])
def test_ground_truth_without_a_pixel_is_no_mask(counts):
    assert mask_of({"size": list(SIZE), "counts": counts}, *SIZE) is None
    assert coco_mask.area(rle_of({"size": list(SIZE), "counts": counts}, *SIZE)) == 0


RIGHT = encode_mask(some_mask())["counts"]


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ("mask", r"segmentation 'mask'; wanted: polygons"),
        (7, "segmentation 7; wanted"),
        ([None], "wanted: polygons"),
        ([["a", "b"]], "wanted: polygons"),
        ([[[[[[[[1, 2]]]]]]]], "wanted: polygons"),
        ([[1, 2, 3, 4]], "no polygon has three points"),
        ([[10, 20], [30, 40]], "no polygon has three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers, which is odd"),
        ([[1, 2, 3, float("nan"), 5, 6]], "not finite"),
        ([[1, 2, 1e400, 3, 5, 6]], "not finite"),
        ([[1, 2, 3, 1e6, 5, 6]], r"reaches to 1e\+06, far outside its image of 48 x 96"),
        ([[1, 2, -1e9, 3, 5, 6]], r"reaches to -1e\+09"),
        ([[0.1, 0.2, 0.4, 0.2, 0.4, 0.7]], r"shares of the image.*multiply x by the width 96 and y by the height 48"),
        ({"size": [48, 96], "counts": "01"}, "add up to 1 pixels, not 4608|cannot be decoded"),
        ({"size": [48, 96], "counts": "zzzz"}, "cannot be decoded"),
        ({"size": [48, 96], "counts": str(RIGHT)}, r"text of a Python bytes object.*counts\.decode\(\)"),
        ({"size": [48, 96], "counts": base64.b64encode(RIGHT).decode()}, r"base64 of compressed counts"),
        ({"size": [48, 96], "counts": list(RIGHT)}, r"byte values of compressed counts"),
        ({"size": [48, 96], "counts": [4600]}, "add up to 4600 pixels, not 4608"),
        ({"size": [48, 96], "counts": [4609, -1]}, "add up to 4608 pixels, not 4608|run lengths"),
        ({"size": [48, 96], "counts": [4607.5, 0.5]}, "not all whole numbers"),
        ({"size": [48, 96], "counts": [[4608]]}, "not all whole numbers"),
        ({"size": [48, 96], "counts": [10**30]}, "not all whole numbers|add up to"),
        ({"size": [48, 96], "counts": 5}, "counts 5; wanted"),
        ({"size": [96, 48], "counts": [4608]}, r"size \[96, 48\] in an image of 48 x 96 .*rows come first"),
        ({"counts": [4608]}, "run lengths without a size in an image of 48 x 96 .*write 'size'"),
    ],
)
def test_anything_else_is_refused_with_what_is_wanted(segmentation, words):
    with pytest.raises(UserError, match=words):
        rle_of(segmentation, *SIZE)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_compressed_run_lengths_are_checked(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 200, 2))
    counts = encode_mask(rng.random(shape) < rng.random() ** 3)["counts"]
    pixels = int(np.prod(shape))
    check_run_lengths(counts, pixels)
    for wrong in (counts[:-1], counts + b"1", b"\xff" + counts, counts + b"P", b"P" * 9 + counts):
        with pytest.raises(UserError, match="run lengths"):
            check_run_lengths(wrong, pixels)
    with pytest.raises(UserError, match="run lengths"):
        check_run_lengths(counts, pixels + 1)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["x", "y", "size", "counts", "all_points_x", "all_points_y"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_is_a_mask_or_a_named_error(segmentation):
    try:
        rle = rle_of(segmentation, 6, 8)
    except UserError:
        return
    assert rle is None or coco_mask.decode(rle).shape == (6, 8)

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fake_data import SIZE, color_of, write_ade, write_coco, write_objects365
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from pycocotools import mask as coco_mask
from scipy.io import savemat

from data_modules.annotation_index.coco_json import clean_boxes
from data_modules.formats import (
    AdePanoptic,
    AdeSemantic,
    CityscapesPanoptic,
    CocoBoxes,
    CocoInstances,
    CocoPanoptic,
    CocoSemantic133,
    LabelMaps,
    MissingDataError,
    Objects365Boxes,
    Objects365Instances,
    PascalContext59,
    PascalContext459,
)
from data_modules.vocabularies import OwnClass
from dataseg.io.id_map import rows_of_colors
from dataseg.io.images import decode_labels, decode_rgb_ids, encoded_image, open_image, read_labels
from dataseg.io.paths import inside
from dataseg.structures import VOID, UserError


def ready(reader, root):
    reader.setup(root)
    return reader


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------------- ADE


def test_ade_semantic(fake_root):
    reader = ready(AdeSemantic(), fake_root)
    assert len(reader) == 5
    image, target = reader.load(2)
    assert image.shape == (*SIZE, 3)
    assert image.dtype == np.uint8
    path = fake_root / "ADEChallengeData2016/annotations/training" / f"{reader.image_id(2)}.png"
    expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(int) - 1  # 0 = other -> VOID
    assert target.class_map().tolist() == expected.tolist()
    assert target.ids.dtype == torch.int16
    assert len(set(target.labels.tolist())) == len(target) == 4


def test_images_are_rgb(tmp_path):
    write_ade(tmp_path, 1)
    red = np.zeros((*SIZE, 3), np.uint8)
    red[..., 2] = 250  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "ADEChallengeData2016/images/training/ADE_train_00000001.jpg"), red)
    image, _ = ready(AdeSemantic(), tmp_path).load(0)
    assert image[..., 0].mean() > 200 > 50 > image[..., 2].mean()


def test_ade_one_folder_down_and_elsewhere(tmp_path):
    write_ade(tmp_path / "ade", 2)
    assert len(ready(AdeSemantic(), tmp_path)) == 2
    absolute = str(tmp_path / "ade" / "ADEChallengeData2016")
    assert len(ready(AdeSemantic(root=absolute), tmp_path / "nowhere")) == 2


def spoil(base, number, value):
    path = base / f"annotations/training/ADE_train_{number:08d}.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    labels[labels == 0] = value
    cv2.imwrite(str(path), labels)


@pytest.mark.parametrize(("value", "words"), [(255, "already-shifted"), (151, "151.*no class")])
def test_shifted_ade_labels_are_refused_before_training(tmp_path, value, words):
    base = write_ade(tmp_path, 3)
    for number in (1, 3):
        spoil(base, number, value)
    with pytest.raises(ValueError, match=words):
        AdeSemantic().setup(tmp_path)


def test_a_single_bad_label_map_is_refused_when_it_is_read(tmp_path):
    """So that ``data.on_error=skip`` may replace it."""
    base = write_ade(tmp_path, 3)
    spoil(base, 2, 151)
    reader = ready(AdeSemantic(), tmp_path)
    reader.load(0)
    with pytest.raises(ValueError, match=r"ADE_train_00000002\.png.*151.*no class"):
        reader.load(1)


def test_ade_panoptic_areas(fake_root):
    stored, recounted = ready(AdePanoptic(), fake_root), ready(AdePanoptic(areas="recounted"), fake_root)
    (_, a), (_, b) = stored.load(0), recounted.load(0)
    counted = [int((a.ids == k).sum()) for k in range(4)]
    assert a.areas.tolist() == [n + 7 for n in counted]
    assert b.areas.tolist() == counted
    semantic = ready(AdeSemantic(split="validation"), fake_root).load(0)[1]
    assert a.class_map().equal(semantic.class_map())
    assert b.class_map().equal(semantic.class_map())


def test_ade_panoptic_segments_without_a_pixel(tmp_path):
    base = write_ade(tmp_path, 1, split="validation")

    def bury(content):
        segments = content["annotations"][0]["segments_info"]
        segments.insert(0, {"id": 9, "category_id": 149, "area": 50, "iscrowd": 0})

    edit(base / "ade20k_panoptic_val.json", bury)
    a, b = (ready(AdePanoptic(areas=areas), tmp_path).load(0)[1] for areas in ("stored", "recounted"))
    assert len(a) == 5
    assert a.labels[0] == 149
    assert len(b) == 4
    assert a.class_map().equal(b.class_map())


# ------------------------------------------------------------------------------------------------------ COCO


def test_coco_panoptic(fake_root):
    reader = ready(CocoPanoptic(), fake_root)
    assert [reader.image_id(i) for i in range(2)] == ["100", "101"]
    _, empty = reader.load(0)
    assert len(empty) == 0
    assert (empty.ids == VOID).all()
    _, target = reader.load(1)
    assert target.is_crowd.tolist() == [False, True, False, False]
    assert [reader.vocabulary.classes[k].id for k in target.labels] == [1, 1, 200, 17]
    assert target.areas.tolist() == [int((target.ids == k).sum()) for k in range(4)]
    assert target.class_map()[target.ids == 1].eq(VOID).all()


def test_areas_that_are_not_stated_are_counted(tmp_path):
    base = write_coco(tmp_path, 2)
    _, stated = ready(CocoPanoptic(), tmp_path).load(1)
    edit(base / "annotations/panoptic_train2017.json", lambda c: c["annotations"][1]["segments_info"][2].pop("area"))
    _, target = ready(CocoPanoptic(), tmp_path).load(1)
    assert target.areas.tolist() == stated.areas.tolist() == [int((target.ids == k).sum()) for k in range(4)]


def test_coco_semantic_keeps_crowds(fake_root):
    _, panoptic = ready(CocoPanoptic(), fake_root).load(1)
    _, semantic = ready(CocoSemantic133(), fake_root).load(1)
    assert semantic.labels.tolist() == sorted(set(panoptic.labels.tolist()))
    panoptic.is_crowd = None
    assert semantic.class_map().equal(panoptic.class_map())


@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_rows_of_colors_against_a_dictionary(seed, count):
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**24 - 1, count, replace=False) + 1
    colors = rng.choice(np.append(ids, 0), (9, 7)).astype(np.uint32)
    row_of = {0: VOID, **{int(c): k for k, c in enumerate(ids)}}
    rows = rows_of_colors(colors, ids.astype(np.int64))
    assert rows.dtype == np.int16
    assert rows.shape == (9, 7)
    assert rows.tolist() == [[row_of[int(c)] for c in row] for row in colors]


def test_unknown_ids_in_the_png_name_the_file(tmp_path):
    base = write_coco(tmp_path, 2)
    path = base / "annotations/panoptic_train2017/000000000101.png"
    cv2.imwrite(str(path), color_of(np.full(SIZE, 999_999))[..., ::-1])
    with pytest.raises(ValueError, match=r"000000000101\.png.*999999.*image 101"):
        ready(CocoPanoptic(), tmp_path).load(1)


def _segment(content, **changes):
    content["annotations"][1]["segments_info"][0] |= changes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: _segment(c, category_id=12), "annotation 1: .*category_id 12"),
        (lambda c: _segment(c, category_id="x"), "annotation 1"),
        (lambda c: _segment(c, id=1), "annotation 1: segment id 1 is listed twice"),
        (lambda c: _segment(c, id=2**24), "no colour code"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 1: .*image_id"),
        (lambda c: c["images"].clear(), "'images' must be a list"),
        (lambda c: c["annotations"].clear(), "'annotations' must be a list"),
        (lambda c: c.pop("annotations"), "annotations"),
        (lambda c: c["annotations"].__setitem__(1, 5), "annotation 1"),
    ],
)
def test_malformed_panoptic_records_are_named(tmp_path, change, words):
    base = write_coco(tmp_path, 2)
    edit(base / "annotations/panoptic_train2017.json", change)
    with pytest.raises(ValueError, match=rf"(?s)panoptic_train2017\.json: .*{words}|panoptic_train2017\.json: {words}"):
        CocoPanoptic().setup(tmp_path)


# ------------------------------------------------------------------------------------------------- Objects365


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects365_boxes(fake_root, split):
    reader = ready(Objects365Boxes(split=split), fake_root)
    assert len(reader) == 7
    assert reader.counts == {
        "skipped_images": 0,
        "clipped_boxes": 6,
        "crowd_boxes": 6,
        "degenerate_boxes": 6,
        "duplicate_boxes": 6,
    }
    image, none = reader.load(0)
    assert none.xyxy.shape == (0, 4)
    image, target = reader.load(3)
    assert target.xyxy.shape == (4, 4)
    assert target.xyxy.dtype == torch.float32
    assert [reader.vocabulary.classes[k].id for k in target.labels] == [100, 200, 300, 5]
    assert target.xyxy[3].tolist() == [0, 30, 16, SIZE[0]]
    assert (target.xyxy[:, 2:] > target.xyxy[:, :2]).all()
    assert (target.xyxy <= torch.tensor([SIZE[1], SIZE[0]] * 2)).all()
    assert image.shape == (*SIZE, 3)


def test_objects365_images_to_skip(fake_root):
    reader = ready(Objects365Boxes(skip=["patch1/objects365_v1_00000003.jpg"]), fake_root)
    assert reader.counts["skipped_images"] == 1
    assert [reader.image_id(i) for i in range(6)] == ["0", "1", "2", "4", "5", "6"]
    assert reader.load(3)[1].xyxy.shape == (4, 4)


def test_objects365_missing_image_is_named(tmp_path):
    base = write_objects365(tmp_path, 2)
    shutil.rmtree(base / "train" / "patch1")
    with pytest.raises(ValueError, match=r"Objects365.*patch1/objects365_v1_00000001\.jpg"):
        ready(Objects365Boxes(), tmp_path).load(1)


def test_objects365_instances(fake_root):
    reader = ready(Objects365Instances(), fake_root)
    _, target = reader.load(2)
    ids = [reader.vocabulary.classes[k].id for k in target.labels]
    assert ids == [100, 200, 300, 300, 5, 6, 1]
    assert [rle is None for rle in target.rles] == [False, False, True, True, True, True, True]
    assert target.is_crowd.tolist() == [False] * 6 + [True]
    assert reader.counts["without_mask"] == 5 * 6
    polygon = coco_mask.decode(target.rles[0])
    x0, y0, x1, y1 = target.boxes[0].int().tolist()
    expected = np.zeros(SIZE, np.uint8)
    expected[y0:y1, x0:x1] = 1
    assert (polygon == expected).all()
    assert coco_mask.area(target.rles[1]) > 0
    assert target.boxes.shape == (7, 4)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_clean_boxes_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    sizes = np.array([(30, 40), (20, 25)], dtype=np.int32)
    n = int(rng.integers(0, 30))
    dtype = [("image", "i8"), ("label", "i4"), ("xyxy", "f4", (4,)), ("is_crowd", "?")]
    table = np.zeros(n, dtype=dtype)
    table["image"] = np.sort(rng.integers(0, 2, n))
    table["label"] = rng.integers(0, 2, n)
    corner = rng.integers(-10, 45, (n, 2))
    table["xyxy"] = np.hstack([corner, corner + rng.integers(0, 4, (n, 2))])
    table["is_crowd"] = rng.random(n) < 0.2
    expected, seen = [], set()
    for row in table:
        height, width = sizes[row["image"]].tolist()
        x0, x1 = np.clip(row["xyxy"][[0, 2]], 0, width)
        y0, y1 = np.clip(row["xyxy"][[1, 3]], 0, height)
        key = (int(row["image"]), int(row["label"]), x0, y0, x1, y1)
        if key not in seen and not row["is_crowd"] and min(x1 - x0, y1 - y0) >= 1:
            expected.append(key)
        if not row["is_crowd"]:
            seen.add(key)
    kept, counts = clean_boxes(table, sizes)
    assert [(int(r["image"]), int(r["label"]), *r["xyxy"]) for r in kept] == expected
    assert len(kept) + counts["crowd_boxes"] + counts["degenerate_boxes"] + counts["duplicate_boxes"] == n


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][4].update(category_id=366), "annotation 4.*366"),
        (lambda c: c["annotations"][4].update(image_id=99), "annotation 4.*99"),
        (lambda c: c["annotations"][4].update(bbox=[1, 2, 3]), "annotation 4"),
        (lambda c: c["annotations"][4].update(bbox=[1, 2, 3, float("nan")]), "annotation 4.*not finite"),
        (lambda c: c["annotations"][4].pop("bbox"), "annotation 4.*bbox"),
        (lambda c: c["annotations"].__setitem__(4, None), "annotation 4"),
        (lambda c: c["images"][0].update(id=1), "same id"),
        (lambda c: c["images"].clear(), "'images' must be a list"),
    ],
)
def test_malformed_detection_records_are_named(tmp_path, change, words):
    base = write_objects365(tmp_path, 3)
    edit(base / "train/zhiyuan_objv2_train.json", change)
    with pytest.raises(ValueError, match=rf"zhiyuan_objv2_train\.json: .*({words})"):
        Objects365Boxes().setup(tmp_path)


# ---------------------------------------------------------------------------------------- label maps, Cityscapes


@pytest.fixture
def context_root(tmp_path):
    """VOC 2010 with .mat files (and only them): 2 is aeroplane in both sets, 1 (accordion) only among the 459."""
    base = tmp_path / "VOCdevkit" / "VOC2010"
    (base / "JPEGImages").mkdir(parents=True)
    (base / "trainval").mkdir()
    (base / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    (base / "ImageSets" / "SegmentationContext" / "val.txt").write_text("a\nb\n")
    for name in "ab":
        cv2.imwrite(str(base / "JPEGImages" / f"{name}.jpg"), np.zeros((2, 3, 3), np.uint8))
        savemat(base / "trainval" / f"{name}.mat", {"LabelMap": np.array([[0, 1, 2], [459, 255, 2]], np.uint16)})
    return tmp_path


def test_pascal_context_from_mat_files(context_root):
    full = ready(PascalContext459(), context_root).load(1)[1]
    assert full.class_map().tolist() == [[VOID, 0, 1], [458, 254, 1]]
    reduced = ready(PascalContext59(), context_root).load(1)[1]
    assert reduced.class_map().tolist() == [[VOID, VOID, 0], [VOID, VOID, 0]]
    assert reduced.labels.tolist() == [0]


def test_pascal_context_59_from_pngs(context_root):
    folder = context_root / "VOCdevkit/VOC2010/SegmentationClassContext"
    folder.mkdir()
    for name in "ab":
        picture = Image.fromarray(np.array([[0, 1, 59], [2, 2, 0]], np.uint8))
        picture.putpalette([255 - value // 3 for value in range(768)])  # as VOC's own PNGs: colours over the values
        picture.save(folder / f"{name}.png")
        assert Image.open(folder / f"{name}.png").mode == "P"
    assert ready(PascalContext59(), context_root).load(0)[1].class_map().tolist() == [[VOID, 0, 58], [1, 1, VOID]]


def test_unreadable_mat_files_are_named(context_root):
    path = context_root / "VOCdevkit/VOC2010/trainval/b.mat"
    whole = path.read_bytes()
    for content in (b"", whole[:60], whole[:-9], b"x" * 400):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"PASCAL-Context 459: .*b\.mat"):
            every(PascalContext459(), context_root)


def every(reader, root):
    return [reader.load(index) for index in range(len(ready(reader, root)))]


def test_the_59_classes_are_among_the_459(real_data):
    collected = json.loads((real_data / "classes/pascal_context_59.json").read_text())["classes"]
    id_of = {c.name: c.id for c in PascalContext459().vocabulary.classes}
    assert len(id_of) == 459
    assert {c["name"]: c["id_459"] for c in collected} == {
        c.name: id_of[c.name] for c in PascalContext59().vocabulary.classes
    }


def test_label_maps_of_16_bits(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "mine/images/a.jpg"), np.zeros((1, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "mine/labels/a.tif"), np.array([[0, 255, 458, 65535]], np.uint16))
    options = {"vocabulary": "pascal_context_459", "ignore": 65535, "offset": 1, "labels_suffix": ".tif"}
    reader = ready(LabelMaps("mine", "images", "labels", **options), tmp_path)
    assert reader.load(0)[1].class_map().tolist() == [[0, 255, 458, VOID]]
    (tmp_path / "mine/labels/a.tif").unlink()
    with pytest.raises(ValueError, match=r"1 images have no label map in .*labels, e\.g\. a\.jpg"):
        reader.setup(tmp_path)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_label_maps_of_few_bits_keep_their_values(tmp_path, bits):
    values = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(2, -1), axis=1)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], 2, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(lines))]
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in [*parts, (b"IEND", b"")]
    ]
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert (read_labels(path, "x", (2, values.shape[1])) == values).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("ending", [b"", b"more"])
def test_png_maps_are_what_pillow_reads(mode, ending):
    depth = np.uint16 if mode == "I;16" else np.uint8
    shape = (7, 5) if len(mode) == 1 or depth == np.uint16 else (7, 5, len(mode))
    values = np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)
    image = Image.fromarray(values if mode != "P" else values % 16)
    if mode == "P":
        image.putpalette(list(range(48)))
    file = io.BytesIO()
    image.save(file, "PNG", **({"transparency": (1, 2, 3)} if mode == "RGB" else {}))
    content = file.getvalue() + ending  # bytes after the end are allowed
    assert Image.open(io.BytesIO(content)).mode == mode

    if len(shape) == 2:
        labels = decode_labels(content, "x", (7, 5))
        assert (labels == np.asarray(image)).all()
        assert labels.dtype == depth
    else:
        if mode == "LA":
            assert (decode_labels(content, "x", (7, 5)) == np.asarray(image)[..., 0]).all()
            return
        with pytest.raises(UserError, match=r"x is not a label map: .*colours"):
            decode_labels(content, "x", (7, 5))
    if mode in ("RGB", "RGBA"):
        red, green, blue = np.asarray(image)[..., :3].astype(int).transpose(2, 0, 1)
        ids = decode_rgb_ids(content, "x", (7, 5)) & 0xFFFFFF
        assert (ids == red + 256 * green + 65536 * blue).all()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PNG"])
def test_label_maps_of_1_bit(kind):
    values = np.random.default_rng(0).integers(0, 2, (7, 13), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values.astype(bool)).save(file, kind)
    assert (decode_labels(file.getvalue(), "x", (7, 13)) == values).all()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_damaged_avif_images_are_named():
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "AVIF")
    content = file.getvalue()
    with pytest.raises(UserError, match="x is not a readable image"):
        encoded_image(content[:-20] + bytes(255 ^ byte for byte in content[-20:]), "x").decode()


@pytest.mark.parametrize(("value", "crowd"), [("0", False), ("1", True), (None, False), (True, True), (0.0, False)])
def test_crowds_however_they_are_written(tmp_path, value, crowd):
    path = write_coco(tmp_path, 2) / "annotations/panoptic_train2017.json"
    edit(path, lambda c: c["annotations"][1]["segments_info"][0].update(iscrowd=value))
    assert ready(CocoPanoptic(), tmp_path).load(1)[1].is_crowd[0] == crowd
    path = write_objects365(tmp_path, 2) / "train/zhiyuan_objv2_train.json"
    edit(path, lambda c: [a.update(iscrowd=value) for a in c["annotations"]])
    reader = ready(Objects365Boxes(), tmp_path)
    assert (reader.counts["crowd_boxes"] > 0) == (len(reader.index.all("label")) == 0) == crowd
    edit(path, lambda c: c["annotations"][1].update(iscrowd="no"))
    with pytest.raises(UserError, match=r"zhiyuan_objv2_train\.json: annotation 1 .*'no'"):
        ready(Objects365Boxes(), tmp_path)


def test_own_label_maps_say_what_they_leave_out(tmp_path):
    """Images of any suffix and letter case are used, in any Unicode form; not what operating systems leave behind."""
    for folder in ("images", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    for name in ("1.jpg", "2.JPG", "3.png", "Bru\u0308cke.jpeg", "._1.jpg", "Thumbs.db"):
        picture = cv2.imencode(".png", np.zeros((1, 4, 3), np.uint8))[1].tobytes()
        (tmp_path / "mine/images" / name).write_bytes(picture)
    for stem in ("1", "2", "3", "Br\u00fccke", "5"):
        cv2.imwrite(str(tmp_path / f"mine/labels/{stem}.png"), np.ones((1, 4), np.uint8))
    classes = [OwnClass("a", 0), OwnClass("b", 1)]
    reader = ready(LabelMaps("mine", "images", "labels", classes), tmp_path)
    assert reader.counts == {"label_maps_without_an_image": 1}
    assert [reader.image_id(k) for k in range(len(reader))] == ["1", "2", "3", "Br\u00fccke"]
    assert all(reader.load(k)[1].labels.tolist() == [1] for k in range(4))
    with pytest.raises(UserError, match="offset 1 gives values below 0"):
        LabelMaps("mine", "images", "labels", classes, offset=1).setup(tmp_path)
    (tmp_path / "mine/images/1.png").write_bytes(picture)
    with pytest.raises(UserError, match=r"1\.jpg and 1\.png have the same stem"):
        LabelMaps("mine", "images", "labels", classes).setup(tmp_path)


@pytest.mark.parametrize(("end", "ids"), [("", (26, 7)), ("_trainId", (13, 0))])
def test_cityscapes_panoptic(tmp_path, end, ids):
    base, stem = tmp_path / "cityscapes", "aachen_000000_000019"
    (base / "leftImg8bit/val/aachen").mkdir(parents=True)
    (base / f"gtFine/cityscapes_panoptic_val{end}").mkdir(parents=True)
    cv2.imwrite(str(base / f"leftImg8bit/val/aachen/{stem}_leftImg8bit.png"), np.zeros((1, 4, 3), np.uint8))
    png = base / f"gtFine/cityscapes_panoptic_val{end}/{stem}_gtFine_panoptic.png"
    cv2.imwrite(str(png), color_of(np.array([[0, 26001, 7, 26]]))[..., ::-1])
    segments = [(26001, ids[0], 0), (7, ids[1], 0), (26, ids[0], 1)]
    content = {
        "images": [{"id": stem, "file_name": f"{stem}_gtFine_leftImg8bit.png", "height": 1, "width": 4}],
        "annotations": [
            {
                "image_id": stem,
                "file_name": png.name,
                "segments_info": [{"id": n, "category_id": c, "area": 1, "iscrowd": crowd} for n, c, crowd in segments],
            }
        ],
    }
    (base / f"gtFine/cityscapes_panoptic_val{end}.json").write_text(json.dumps(content))
    reader = ready(CityscapesPanoptic(), tmp_path)
    image, target = reader.load(0)
    assert image.shape == (1, 4, 3)
    assert [reader.vocabulary.names[k] for k in target.labels] == ["car", "road", "car"]
    assert target.ids.tolist() == [[VOID, 0, 1, 2]]
    assert target.is_crowd.tolist() == [False, False, True]
    assert reader.vocabulary.is_thing[target.labels].tolist() == [True, False, True]


# ------------------------------------------------------------------------------------------------------ files


def test_nothing_is_read_before_setup():
    for kind in (AdeSemantic, AdePanoptic, CocoPanoptic, CocoSemantic133, CocoBoxes, CocoInstances, Objects365Boxes):
        reader = kind(root="/nowhere")
        assert len(reader.vocabulary) > 0
        with pytest.raises(MissingDataError, match=r"(?s)nowhere.*http"):
            reader.setup(Path("datasets"))


def test_truncated_images_are_refused(tmp_path):
    write_coco(tmp_path, 2)
    for path in (
        tmp_path / "coco/train2017/000000000101.jpg",
        tmp_path / "coco/annotations/panoptic_train2017/000000000101.png",
    ):
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=rf"COCO panoptic: .*{path.name}"):
                ready(CocoPanoptic(), tmp_path).load(1)
        path.write_bytes(whole + b"\0\0" if path.suffix == ".jpg" else whole)
        ready(CocoPanoptic(), tmp_path).load(1)


def test_sizes_must_agree(tmp_path):
    base = write_coco(tmp_path, 2)
    cv2.imwrite(str(base / "annotations/panoptic_train2017/000000000101.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000000000101\.png is 9 x 9"):
        ready(CocoPanoptic(), tmp_path).load(1)
    cv2.imwrite(str(base / "train2017/000000000101.jpg"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000000000101\.jpg is 9 x 9"):
        ready(CocoPanoptic(), tmp_path).load(1)


def test_too_large_images_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((20, 20, 3), np.uint8))
    monkeypatch.setattr("dataseg.io.images.MAX_PIXELS", 399)
    with pytest.raises(ValueError, match=r"a\.png.*limit of 399"):
        open_image(path, "x").decode()


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b", "", "a\\..\\b", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out"):
        inside(tmp_path, name)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([]) | st.just({})


def _mutate(node, data):
    """Replace or remove one random entry of a JSON tree."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        child = node[key]
        if isinstance(child, dict | list) and child and data.draw(st.integers(0, 4)):
            node = child
        elif data.draw(st.booleans()):
            node[key] = data.draw(VALUES)
            return
        else:
            del node[key]
            return


def _outcome(reader, root):
    """ "fine" or the error's text; anything but the errors that were promised goes up."""
    try:
        reader.setup(root)
        for i in range(len(reader)):
            reader.load(i)
    except (UserError, MissingDataError) as error:
        return str(error)
    return "fine"


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    write_coco(root, 2)
    write_objects365(root, 2)
    write_objects365(root, 2, split="val", masks=True)
    write_ade(root, 2, split="validation")
    return root


CORRUPTIBLE = {
    "coco/annotations/panoptic_train2017.json": CocoPanoptic,
    "objects365/train/zhiyuan_objv2_train.json": Objects365Boxes,
    "objects365/o365_instance_seg_val.json": Objects365Instances,
    "ADEChallengeData2016/ade20k_panoptic_val.json": AdePanoptic,
}


def _corrupted(whole, data):
    """The bytes of a file with up to three entries changed or gone, or with bytes changed, put in or cut off."""
    if data.draw(st.booleans()):
        content = json.loads(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            _mutate(content, data)
            if not content:
                break
        return json.dumps(content).encode()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.sampled_from([start, start + 1, start + 20, len(whole)]))
    return whole[:start] + data.draw(st.binary(max_size=4)) + whole[end:]


def _corrupt(root, name, data):
    path = root / name
    whole = path.read_bytes()
    try:
        path.write_bytes(_corrupted(whole, data))
        outcome = _outcome(CORRUPTIBLE[name](), root)
    finally:
        path.write_bytes(whole)
    assert outcome == "fine" or str(root) in outcome, "an error names the file"


@pytest.mark.parametrize("name", CORRUPTIBLE)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_corrupted_annotation_files_are_fine_or_named(small_root, name, data):
    _corrupt(small_root, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIBLE)
@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_two_thousand_corrupted_annotation_files(small_root, name, data):
    _corrupt(small_root, name, data)


# ------------------------------------------------------------------------------------------------ real samples


def test_real_samples(real_data):
    """The official files open, and stated areas and boxes agree with the maps where the dataset keeps its word."""
    for split, number in (("training", 2), ("validation", 2)):
        assert len(ready(AdeSemantic(split=split), real_data)) == number
    coco = ready(CocoPanoptic(split="val2017"), real_data)
    segments = 0
    for i in range(len(coco)):
        _, target = coco.load(i)
        areas = [int((target.ids == k).sum()) for k in range(len(target))]
        assert target.areas.tolist() == areas
        segments += len(areas)
    assert segments == 54
    ade = ready(AdePanoptic(split="training"), real_data)
    _, stored = ade.load(0)
    assert int(coco.vocabulary.is_thing.sum()) == 80
    assert int(ade.vocabulary.is_thing[stored.labels].sum()) == 73
    _, recounted = ready(AdePanoptic(split="training", areas="recounted"), real_data).load(0)
    assert stored.areas.equal(recounted.areas)  # this sample's things were cut out of its own label map


def test_real_instances_agree_with_pycocotools(real_data):
    from pycocotools.coco import COCO

    reader = ready(CocoInstances(), real_data)
    api = COCO(str(real_data / "coco/annotations/instances_val2017.json"))
    _, target = reader.load(0)
    annotations = api.loadAnns(api.getAnnIds(imgIds=[int(reader.image_id(0))]))
    assert len(annotations) == len(target)
    for annotation, rle, label in zip(annotations, target.rles, target.labels, strict=True):
        assert (coco_mask.decode(rle) == api.annToMask(annotation)).all()
        assert reader.vocabulary.classes[int(label)].id == annotation["category_id"]


def test_real_cityscapes_and_pascal_context(real_data):
    city = ready(CityscapesPanoptic(), real_data)
    _, target = city.load(0)
    names = [city.vocabulary.names[k] for k in target.labels]
    assert names.count("person") == 4
    assert names.count("car") == 3
    source = real_data / "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png"
    instances = cv2.imread(str(source), cv2.IMREAD_UNCHANGED).astype(int)
    official = np.where(instances < 1000, instances, instances // 1000)
    label_of = city.vocabulary.index_of
    expected = [[label_of.get(number, VOID) for number in row] for row in official.tolist()]
    assert target.class_map().tolist() == expected
    for split, number in (("train", 2), ("val", 7)):
        context = ready(PascalContext59(split=split), real_data)
        assert len(context) == number
        assert all(len(context.load(i)[1]) > 1 for i in range(number))


def test_real_objects365(real_data):
    boxes = Objects365Boxes(split="val", annotations="annotations/HANDMADE_zhiyuan_objv2_val_fixture.json")
    masks = Objects365Instances(annotations="annotations/HANDMADE_o365_instance_seg_fixture.json")
    image, a = ready(boxes, real_data).load(0)
    _, b = ready(masks, real_data).load(0)
    assert image.shape == (512, 683, 3)
    assert a.xyxy.tolist() == b.boxes[~b.is_crowd].tolist()
    assert [rle is None for rle in b.rles] == b.is_crowd.tolist()

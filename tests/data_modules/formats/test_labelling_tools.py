"""Exports of labelling tools, written in each tool's own layout and read back."""

import json
import shutil
from pathlib import Path

import numpy as np
import own_exports
import pytest
from own_exports import SIZE, STEMS, box_of, labelme_mask, triangle_of
from pycocotools import mask as coco_mask

from data_modules import CoTraining
from data_modules.formats import CvatImages, HoldOut, Labelme, LabelStudio, PascalVocBoxes, Via, Yolo
from data_modules.vocabularies import OwnClass
from dataseg.structures import Boxes, InstanceMasks, UserError

TOOLS = {
    "yolo": (own_exports.write_yolo, Yolo, {}),
    "labelme": (own_exports.write_labelme, Labelme, {}),
    "voc": (own_exports.write_voc, PascalVocBoxes, {}),
    "cvat": (own_exports.write_cvat, CvatImages, {}),
    "label_studio": (own_exports.write_label_studio, LabelStudio, {"annotations": "project-4-at-2024-05-01.json"}),
    "via": (own_exports.write_via, Via, {"annotations": "via_project_1May2024.json"}),
    "via_csv": (own_exports.write_via_csv, Via, {"annotations": "via_export_csv.csv"}),
}
PAINTED = {"cvat", "label_studio"}  # whose second picture has a mask in place of the box
UNUSED = {
    "yolo": {"images_without_a_label_file": 1},
    "labelme": {"line_not_used": 2},
    "voc": {"difficult_objects": 1},
    "cvat": {"tag_not_used": 2, "points_not_used": 2},
    "label_studio": {"choices_not_used": 2, "names_found_in_another_form": 3},
    "via": {"point_not_used": 2},
    "via_csv": {"point_not_used": 2},
}


def reader_of(tool: str, root: Path, **options):
    write, kind, arguments = TOOLS[tool]
    write(root / tool)
    return kind(root=tool, **arguments, **options)


@pytest.mark.parametrize("tool", TOOLS)
def test_boxes(tool, tmp_path):
    reader = reader_of(tool, tmp_path, **({} if tool == "voc" else {"targets": "boxes"}))
    reader.setup(tmp_path)
    assert [Path(reader.image_id(k)).stem for k in range(3)] == STEMS
    assert reader.vocabulary.names == (["bolt"] if tool == "voc" else ["bolt", "crack"])
    for k in range(3):
        image, target = reader.load(k)
        assert image.shape == (*SIZE, 3)
        assert isinstance(target, Boxes)
        expected = [] if k == 2 else [box_of(k)] if tool == "voc" else [box_of(k), (34 + k, 10, 58 + k, 40)]
        np.testing.assert_allclose(target.xyxy, np.array(expected).reshape(-1, 4), atol=1e-4)
        assert target.labels.tolist() == list(range(len(expected)))
    assert {what: count for what, count in reader.counts.items() if count} == UNUSED[tool]


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "voc"])
def test_masks(tool, tmp_path):
    reader = reader_of(tool, tmp_path)
    reader.setup(tmp_path)
    for k in range(2):
        _, target = reader.load(k)
        assert isinstance(target, InstanceMasks)
        bolt, crack = target.rles
        polygon = [[value for point in triangle_of(k) for value in point]]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, *SIZE)))
        np.testing.assert_array_equal(coco_mask.decode(crack), expected)
        if k == 1 and tool in PAINTED:
            left, top, right, bottom = box_of(k)
            painted = np.zeros(SIZE, dtype=np.uint8)
            painted[top:bottom, left:right] = 1
            if tool == "cvat":
                painted[top, left : left + 2] = 0
            np.testing.assert_array_equal(coco_mask.decode(bolt), painted)
        else:
            assert bolt is None
        assert target.areas[1] == expected.sum()
    assert reader.counts["without_mask"] == (1 if tool in PAINTED else 2)


def test_parts_of_one_object(tmp_path):
    """Polygons of one group are one object with labelme and CVAT; masks of labelme lie where their box says."""
    base = own_exports.write_labelme(tmp_path / "labelme")
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:9, 7:12] = mask[6, 20] = True
    far = [[2, 40], [8, 40], [8, 46]]
    shapes = [
        {"label": "crack", "points": points, "shape_type": "polygon", "group_id": 4} for points in (triangle_of(0), far)
    ]
    content = json.loads((base / "b2.json").read_text())
    (base / "b2.json").write_text(json.dumps(content | {"shapes": [*shapes, labelme_mask(mask)]}))
    reader = Labelme(root="labelme")
    reader.setup(tmp_path)
    _, target = reader.load(1)
    assert target.labels.tolist() == [1, 0]
    both = [[value for point in points for value in point] for points in (triangle_of(0), far)]
    np.testing.assert_array_equal(
        coco_mask.decode(target.rles[0]), coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(both, *SIZE)))
    )
    np.testing.assert_array_equal(coco_mask.decode(target.rles[1]), mask)


def test_older_and_neighbouring_tools(tmp_path):
    """Label Studio before 1.0 has completions, X-AnyLabeling turned boxes."""
    path = own_exports.write_label_studio(tmp_path / "label_studio") / "project-4-at-2024-05-01.json"
    path.write_text(path.read_text().replace('"annotations"', '"completions"'))
    for name in (base := own_exports.write_labelme(tmp_path / "labelme")).glob("*.json"):
        name.write_text(name.read_text().replace('"shape_type": "polygon"', '"shape_type": "rotation"'))
    for reader in (LabelStudio("label_studio", path.name), Labelme(base.name)):
        reader.setup(tmp_path)
        target = reader.load(0)[1]
        assert [rle is None for rle in target.rles] == [True, False]
        assert "rotation not used" not in " ".join(reader.counted)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


MALFORMED = [
    ("yolo", "labels/train/b2.txt", "1 ", "7 ", "b2.txt, line 2: class 7 is none of data.yaml's, 0 to 1"),
    ("yolo", "labels/train/b2.txt", "0 0.", "0 20.", "line 1: 20.* is no share of the image"),
    ("yolo", "labels/train/b2.txt", "0 ", "0 0.5 ", "5 numbers after the class.*confidence"),
    ("yolo", "data.yaml", "names", "klassen", "no 'names'"),
    ("labelme", "b2.json", '"points": [[', '"points": [[null, ', "b2.json: shape 1"),
    (
        "labelme",
        "b2.json",
        '"label": "crack"',
        '"etikett": "crack"',
        "b2.json: shape 2 .None.: field 'label' is missing",
    ),
    ("labelme", "b2.json", '"imageHeight": 48', '"imageHeight": 64', "48 x 64 .* 64 x 64"),
    ("voc", "Annotations/b2.xml", "<xmin>13</xmin>", "", "b2.xml: object 1: it has coordinates that are not finite"),
    ("voc", "Annotations/b2.xml", "<xmin>13</xmin>", "<xmin>60</xmin>", "object 1: its box ends before it begins"),
    ("voc", "Annotations/b2.xml", "<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "document type"),
    ("voc", "Annotations/b2.xml", "</annotation>", "", "not a readable XML"),
    ("cvat", "annotations.xml", 'rle="2, 254"', 'rle="2, 200"', "image 1 .b2.jpg.: <mask> 1: run lengths .* 202"),
    ("cvat", "annotations.xml", ' xtl="8"', "", "image 0 .*: <box> 1: field 'xtl' is missing"),
    ("cvat", "annotations.xml", "10.00;", ";", "<polygon> 2"),
    ("label_studio", "project-4-at-2024-05-01.json", '"x": 12.5', '"x": "links"', "task 11: region r1"),
    (
        "label_studio",
        "project-4-at-2024-05-01.json",
        '"format": "rle"',
        '"format": "png"',
        "task 12: region r1.*wanted 'rle'",
    ),
    (
        "label_studio",
        "project-4-at-2024-05-01.json",
        '"rle": [0',
        '"rle": [9',
        "task 12: region r1.*values, not 4 x 48",
    ),
    ("via", "via_project_1May2024.json", '"all_points_y": [10,', '"all_points_y": [', "Brücke 1.jpg1234: region 1"),
    ("via_csv", "via_export_csv.csv", '""name"": ""rect""', '""name: ""rect""', "line 2"),
]


@pytest.mark.parametrize(("tool", "file", "old", "new", "words"), MALFORMED)
def test_malformed_records_are_named(tool, file, old, new, words, tmp_path):
    reader = reader_of(tool, tmp_path)
    change(tmp_path / tool / file, old, new)

    def use() -> None:
        reader.setup(tmp_path)
        [reader.load(k) for k in range(len(reader))]

    with pytest.raises(UserError, match=words):
        use()


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("voc", {"vocabulary": [OwnClass("nut", 0)]}, "object 1: its class 'bolt' is none of the vocabulary .nut."),
        ("voc", {"images": "Annotations"}, "3 of 3 images are not in .*Annotations, e.g. 'Brücke 1.jpg'"),
        ("cvat", {"subset": "Train"}, "has no image"),
        ("yolo", {"part": "val"}, "has no 'val'"),
        ("via", {"attribute": "colour"}, "states no class"),
    ],
)
def test_settings_that_do_not_fit(tool, arguments, words, tmp_path):
    with pytest.raises(UserError, match=words):
        reader_of(tool, tmp_path, **arguments).setup(tmp_path)


def test_boxes_alone_are_no_masks(tmp_path):
    reader = reader_of("yolo", tmp_path)
    for file in (tmp_path / "yolo" / "labels").rglob("*.txt"):
        file.write_text(file.read_text().splitlines()[0])
    with pytest.raises(UserError, match="boxes and no mask: set targets: boxes"):
        reader.setup(tmp_path)


def test_a_part_is_held_out(tmp_path):
    """Every image is in one part, by its name alone; classes are those of the whole."""
    names = [f"{k}.jpg" for k in range(400)]
    train, val = HoldOut("train", 0.25), HoldOut("val", 0.25)
    assert all(train.keeps(name) != val.keeps(name) for name in names)
    assert 70 < sum(map(val.keeps, names)) < 130
    assert val.keeps("a/1.jpg") == val.keeps("a/1.PNG")
    reader = reader_of("cvat", tmp_path)
    reader.setup(tmp_path)
    parts = [reader_of("cvat", tmp_path, hold_out=HoldOut(part, 0.2)) for part in ("train", "val")]
    for part in parts:
        part.setup(tmp_path)
    assert parts[0].vocabulary == parts[1].vocabulary == reader.vocabulary
    found = [{part.image_id(k) for k in range(len(part))} for part in parts]
    assert not found[0] & found[1]
    assert found[0] | found[1] == {f"{stem}.jpg" for stem in STEMS}


def test_classes_are_known_before_the_network_is_built(tmp_path):
    data = CoTraining(train={"mine": reader_of("yolo", tmp_path)}, ratios={"mine": 1}, root=tmp_path)
    assert data.vocabularies["mine"].names == ["bolt", "crack"]
    shutil.rmtree(tmp_path / "yolo")
    with pytest.raises(UserError, match="looked for"):
        CoTraining(train={"mine": Yolo(root="yolo")}, ratios={"mine": 1}, root=tmp_path)

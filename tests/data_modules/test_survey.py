"""What datasets of your own lost or lack is told when they are read."""

import json
import re

import cv2
import numpy as np
import pytest
from own_exports import write_coco
from pycocotools import mask as coco_mask

from data_modules.annotation_index.box_forms import other_form
from data_modules.formats import CocoInstances, LabelMaps, MaskFolders
from data_modules.survey import survey
from data_modules.vocabularies import OwnClass
from dataseg.io.text_files import read_text
from dataseg.structures import UserError

FILES = {"root": "mine", "annotations": "annotations.json", "images": "images"}


def told(reader, root) -> list[tuple[bool, str]]:
    found = []
    reader.setup(root)
    survey(reader, lambda message, benign=False: found.append((benign, message)))
    return found


def all_crowds(content):
    for record in content["annotations"]:
        record["iscrowd"] = 1


def one_crowd(content):
    content["annotations"][0]["iscrowd"] = 1


def doubled(content):
    content["annotations"] += [record | {"id": 100 + record["id"]} for record in content["annotations"]]


def one_class_alone(content):
    content["annotations"] = [record for record in content["annotations"] if record["category_id"] == 1]


def whole_image(content):
    image = content["images"][0]
    rows, columns = image["height"], image["width"]
    box = [0, 0, columns, rows]
    outline = [0, 0, columns, 0, columns, rows, 0, rows]
    content["annotations"][0] |= {"image_id": image["id"], "bbox": box, "segmentation": [outline]}


def along_rows(content):
    size = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for record in content["annotations"]:
        rows, columns = size[record["image_id"]]
        mask = np.zeros((rows, columns), dtype=np.uint8)
        left, top, width, height = (int(number) for number in record["bbox"])
        mask[top : top + height, left : left + width] = 1
        wrong = mask.ravel().reshape(columns, rows).T  # its runs down the columns are those along the rows of mask
        counts = coco_mask.encode(np.asfortranarray(wrong))["counts"].decode()
        record["segmentation"] = {"size": [rows, columns], "counts": counts}


def percent(content):
    for record in content["annotations"]:
        record["segmentation"] = [[v * 100 / (48 if k % 2 else 64) for k, v in enumerate(record["segmentation"][0])]]


def exchanged(content):
    for record in content["annotations"]:
        points = np.array(record["segmentation"]).reshape(-1, 2)[:, ::-1]
        record["segmentation"] = [points.ravel().tolist()]


def areas_of_boxes(content):
    for record in content["annotations"]:
        record["area"] = record["bbox"][2] * record["bbox"][3]


@pytest.mark.parametrize(
    ("edit", "benign", "words", "count"),
    [
        (all_crowds, False, "all .* are crowds .* set crowds: train", "crowds_that_are_ignored"),
        (one_crowd, True, "1 of .* are crowds", "crowds_that_are_ignored"),
        (doubled, True, "have the class and the mask of another", "objects_twice_in_an_image"),
        (one_class_alone, True, "no object has the class crack", "classes_without_an_object"),
        (whole_image, True, "1 of .* covers the whole image, e.g. image .*, object 0", "masks_of_the_whole_image"),
        (
            areas_of_boxes,
            True,
            "2 of 4 objects state an area that is not their mask's",
            "areas_that_are_not_their_masks",
        ),
        (along_rows, False, "go along the rows; COCO's go down the columns", "boxes_that_are_not_their_masks"),
        (percent, False, "fit their boxes if their coordinates are percent", "boxes_that_are_not_their_masks"),
        (exchanged, False, "fit their boxes if their coordinates are y, x", "boxes_that_are_not_their_masks"),
    ],
)
def test_instances(edit, benign, words, count, tmp_path):
    path = write_coco(tmp_path / "mine") / "annotations.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    reader = CocoInstances(**FILES, vocabulary=None)
    found = told(reader, tmp_path)
    assert any(kind is benign and re.search(words, message) for kind, message in found), found
    assert reader.counts[count] > 0
    trained = CocoInstances(**FILES, vocabulary=None, crowds="train")
    assert not any("crowds" in message for _, message in told(trained, tmp_path))


def test_a_sound_dataset_is_told_nothing_of(tmp_path):
    write_coco(tmp_path / "mine")
    assert told(CocoInstances(**FILES, vocabulary=None), tmp_path) == []


def test_black_and_white_masks_under_the_usual_ignore(tmp_path):
    for folder in ("photos", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:15, 5:15] = 255
    cv2.imwrite(str(tmp_path / "mine/photos/a.jpg"), np.zeros((20, 30, 3), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "mine/labels/a.png"), mask)
    classes = [OwnClass("ground", 0, "stuff"), OwnClass("tree", 1, "stuff")]
    reader = LabelMaps(root="mine", images="photos", annotations="labels", vocabulary=classes)
    text = " ".join(message for _, message in told(reader, tmp_path))
    assert "16.7% of the pixels of 1 maps are void" in text
    assert "no object has the class tree" in text
    assert reader.counts["void_percent"] == 17


def blocks(classes: int, side: int = 24) -> np.ndarray:
    """A label map of squares of random classes."""
    small = np.random.default_rng(0).integers(0, classes, (4, 6), dtype=np.uint8)
    return np.kron(small, np.ones((side, side), dtype=np.uint8))


def halved(labels, how):
    return cv2.resize(labels, None, fx=0.5, fy=0.5, interpolation=how)


def ramp(labels):
    return np.repeat(np.arange(48, dtype=np.uint8)[None] // 4, 32, axis=0)


@pytest.mark.parametrize(
    ("change", "graded", "words"),
    [
        (lambda labels: labels, False, None),
        (lambda labels: halved(labels, cv2.INTER_NEAREST), False, None),
        (lambda labels: cv2.resize(labels, None, fx=0.7, fy=0.7), False, "in label maps that were resized"),
        (lambda labels: cv2.GaussianBlur(labels, (5, 5), 1), False, r"a\.png: \d+ of \d+ borders .* \(1 of 1 maps\)"),
        (lambda labels: cv2.GaussianBlur(labels, (5, 5), 1), True, None),
        (ramp, False, None),  # classes 4 pixels wide are no borders
    ],
)
@pytest.mark.parametrize("classes", [4, 21])
def test_blurred_label_maps(change, graded, words, classes, tmp_path):
    labels = change(blocks(classes))
    for folder, content in (("photos", np.zeros((*labels.shape, 3), np.uint8)), ("labels", labels)):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / f"mine/{folder}/a.png"), content)
    own = [OwnClass(f"c{number}", number, "stuff") for number in range(classes if change is not ramp else 12)]
    reader = LabelMaps(root="mine", images="photos", annotations="labels", vocabulary=own, graded=graded)
    errors = [message for benign, message in told(reader, tmp_path) if not benign]
    assert len(errors) == (words is not None)
    assert words is None or re.search(words, errors[0])


def test_maps_of_an_outline_between_two_classes_are_doubtful_only(tmp_path):
    labels = cv2.GaussianBlur(blocks(2) * 2, (3, 3), 1)  # 0 and 2, and 1 between them: so are trimaps
    for folder, content in (("photos", np.zeros((*labels.shape, 3), np.uint8)), ("labels", labels)):
        (tmp_path / "mine" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / f"mine/{folder}/a.png"), content)
    own = [OwnClass(f"c{number}", number, "stuff") for number in range(3)]
    reader = LabelMaps(root="mine", images="photos", annotations="labels", vocabulary=own)
    (found,) = told(reader, tmp_path)
    assert found[0]
    assert "borders between classes pass through" in found[1]


def test_masks_with_soft_edges_are_told_in_training(tmp_path):
    (tmp_path / "mine/masks/a").mkdir(parents=True)
    (tmp_path / "mine/photos").mkdir()
    cv2.imwrite(str(tmp_path / "mine/photos/a.png"), np.zeros((20, 30, 3), np.uint8))
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15] = 255
    mask[5] = 100
    cv2.imwrite(str(tmp_path / "mine/masks/a/bolt_1.png"), mask)
    reader = MaskFolders(root="mine", images="photos", masks="masks", vocabulary=[OwnClass("bolt", 1)])
    ((benign, message),) = told(reader, tmp_path)
    assert benign
    assert re.search(r"bolt_1\.png: 5\.0% of its pixels .* cut at half \(1 such files in 1 images\)", message)
    assert reader.counts["doubtful_files"] == 1


BOXES = np.array([[8, 6, 10, 24], [30, 20, 22, 14], [58, 4, 26, 36]], dtype=np.float64)
SIZES = np.array([[48, 96]] * 3)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (BOXES, None),
        (BOXES + np.array([0, 0, 1.5, 1.5]), None),
        (np.concatenate([BOXES[:, :2], BOXES[:, :2] + BOXES[:, 2:]], axis=1), "corners"),
        (np.concatenate([BOXES[:, :2] + BOXES[:, 2:] / 2, BOXES[:, 2:]], axis=1), "centres"),
        (BOXES / [96, 48, 96, 48], "shares of the image"),
        (BOXES / [96, 48, 96, 48] * 100, "percent"),
        (BOXES[:, [1, 0, 3, 2]], "exchanged"),
        (BOXES + 1000, "reach out of them"),
        (np.zeros((3, 4)), "no extent"),
        (np.zeros((0, 4)), None),
    ],
)
def test_forms_of_boxes(stated, words):
    found = other_form(stated, SIZES[: len(stated)])
    assert found is None if words is None else found is not None and words in found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_files(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("0 Brücke".encode(encoding))
    assert read_text(path) == "0 Brücke"
    path.write_bytes("Straße".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt: is not UTF-8 text \(byte 0xdf\).*save it as UTF-8"):
        read_text(path)

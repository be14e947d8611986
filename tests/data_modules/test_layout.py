"""Missing data: everything that is missing, at once, before anything is read."""

import json
import shutil
import time

import pytest
from fake_data import write_ade, write_coco, write_objects365

from data_modules import CoTraining
from data_modules.formats import (
    AdePanoptic,
    AdeSemantic,
    CityscapesPanoptic,
    CocoBoxes,
    CocoInstances,
    CocoPanoptic,
    LabelMaps,
    MissingDataError,
    Objects365Boxes,
    Objects365Instances,
    PascalContext59,
    PascalContext459,
)

NEEDED = {
    AdeSemantic: ["images/training", "annotations/training"],
    AdePanoptic: ["images/validation", "ade20k_panoptic_val.json", "ade20k_panoptic_val"],
    CocoPanoptic: ["train2017", "annotations/panoptic_train2017.json", "annotations/panoptic_train2017"],
    CocoBoxes: ["train2017", "annotations/instances_train2017.json"],
    CocoInstances: ["val2017", "annotations/instances_val2017.json"],
    Objects365Boxes: ["train", "train/zhiyuan_objv2_train.json"],
    Objects365Instances: ["val", "o365_instance_seg_val.json"],
    CityscapesPanoptic: ["leftImg8bit/val", "gtFine/cityscapes_panoptic_val.json", "gtFine/cityscapes_panoptic_val"],
    PascalContext59: ["JPEGImages", "ImageSets/SegmentationContext/val.txt", "SegmentationClassContext"],
    PascalContext459: ["JPEGImages", "ImageSets/SegmentationContext/val.txt", "trainval"],
}


@pytest.mark.parametrize("kind", NEEDED)
def test_everything_missing_is_named(tmp_path, kind):
    reader = kind()
    names = NEEDED[kind]
    base = tmp_path / reader.root
    with pytest.raises(MissingDataError, match="get it from http") as nowhere:
        reader.locate(tmp_path)
    assert {base / name for name in names} <= {path for paths in nowhere.value.missing for path in paths}
    assert all(str(base / name) in str(nowhere.value) for name in names)
    for present in names:
        shutil.rmtree(base, ignore_errors=True)
        (base / present).mkdir(parents=True)
        if all((base / name).exists() for name in names):
            continue  # Objects365's JSON lies in the folder of the images
        with pytest.raises(MissingDataError) as partly:
            reader.locate(tmp_path)
        first_choices = [paths[0] for paths in partly.value.missing]
        there = [name for name in names if (base / name).exists()]
        assert sorted(first_choices) == sorted(base / name for name in names if name not in there)
    for name in names:
        (base / name).mkdir(parents=True, exist_ok=True)
    reader.locate(tmp_path)


def test_the_likeliest_place_is_reported(tmp_path):
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "down", 2)
    shutil.rmtree(tmp_path / "down/coco/train2017")
    with pytest.raises(MissingDataError) as error:
        CocoPanoptic().locate(tmp_path)
    assert [paths[0] for paths in error.value.missing] == [tmp_path / "down/coco/train2017"]


def test_overrides_are_looked_for_alone(tmp_path):
    reader = LabelMaps("mine", "pictures", "labels", vocabulary="ade20k_150")
    with pytest.raises(MissingDataError, match=r"mine/pictures .*\n.*mine/labels "):
        reader.locate(tmp_path)
    with pytest.raises(MissingDataError) as error:
        Objects365Boxes(annotations="mine.json").locate(tmp_path)
    assert "zhiyuan" not in str(error.value)


def test_all_data_sets_are_located_before_one_is_read(tmp_path):
    write_ade(tmp_path)
    base = write_objects365(tmp_path)
    (base / "train/zhiyuan_objv2_train.json").write_text("{")  # reading it would fail
    train = {"ade": AdeSemantic(), "coco": CocoPanoptic(), "o365": Objects365Boxes()}
    data = CoTraining(train=train, ratios={"ade": 1, "coco": 1, "o365": 1}, root=tmp_path)
    for ask in (data.setup, data.require_files):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"(?s)1 of 3 datasets.*coco: COCO panoptic.*panoptic_train2017"):
            ask("fit")
        assert time.perf_counter() - start < 1
    write_coco(tmp_path)
    data.require_files("fit")  # finds all, reads nothing
    with pytest.raises(ValueError, match=r"zhiyuan_objv2_train\.json"):
        data.setup("fit")


def test_required_files_of_the_stage_only(tmp_path):
    write_coco(tmp_path, split="val2017")
    data = CoTraining(
        train={"coco": CocoPanoptic()},
        val={"coco": CocoPanoptic(split="val2017")},
        ratios={"coco": 1},
        root=tmp_path,
    )
    data.require_files("validate")
    with pytest.raises(ValueError, match="1 of 2"):
        data.require_files("fit")
    data.setup("validate")
    content = json.loads((tmp_path / "coco/annotations/panoptic_val2017.json").read_text())
    assert len(data.val_readers["coco"]) == len(content["images"])

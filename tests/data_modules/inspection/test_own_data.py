"""`dataseg own-data` on folders as labelling tools leave them: recognised, described, written, trained on."""

import json
import shutil

import cv2
import numpy as np
import own_exports
import pytest
import yaml
from cli_runs import ROOT
from own_exports import SIZE, STEMS

from data_modules.inspection.own_data import main
from dataseg.structures import UserError

FORMS = {
    "yolo": "Yolo",
    "yolo_boxes": "Yolo",
    "labelme": "Labelme",
    "voc": "PascalVocBoxes",
    "cvat": "CvatImages",
    "label_studio": "LabelStudio",
    "via": "Via",
    "via_csv": "Via",
    "coco": "CocoInstances",
    "label_maps": "LabelMaps",
    "mask_folders": "MaskFolders",
}
BOXES = {"voc", "yolo_boxes"}


@pytest.fixture
def conf(tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("exp", "suite"))
    return tmp_path / "conf"


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_is_recognised(form, conf, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_exports.WRITERS[form](tmp_path / "mine")
    assert main(["mine", "--conf", str(conf)]) == 0
    told = capsys.readouterr().out
    assert "3 images; segments by class: " in told
    content = yaml.safe_load((conf / "exp" / "mine.yaml").read_text(encoding="utf-8"))
    data = content["data"]["init_args"]
    assert data["train"]["mine"]["class_path"] == f"data_modules.formats.{FORMS[form]}"
    assert ("val" in data) == (form not in BOXES)
    names = [c["name"] for c in data["train"]["mine"]["init_args"]["vocabulary"]]
    assert names == (
        ["class 0", "class 1", "class 2"] if form == "label_maps" else ["bolt"] if form == "voc" else ["bolt", "crack"]
    )
    with pytest.raises(UserError, match="is there already"):
        main(["mine", "--conf", str(conf)])


def written(conf):
    return yaml.safe_load((conf / "exp" / "mine.yaml").read_text(encoding="utf-8"))["data"]["init_args"]["train"][
        "mine"
    ]


def test_black_and_white_masks_of_another_name(conf, tmp_path):
    own_exports.write_label_maps(tmp_path / "mine")
    for path in list((tmp_path / "mine/labels").iterdir()):
        cv2.imwrite(str(path), np.where(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == 255, 255, 0).astype(np.uint8))
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    main([str(tmp_path / "mine"), "--conf", str(conf)])
    arguments = written(conf)["init_args"]
    assert arguments["labels_suffix"] == "_mask.png"
    assert [c["id"] for c in arguments["vocabulary"]] == [0, 255]


def test_annotations_of_several_forms(conf, tmp_path, capsys):
    own_exports.write_voc(tmp_path / "mine")
    (tmp_path / "mine/SegmentationClass").mkdir()
    for stem in STEMS:
        (tmp_path / f"mine/SegmentationClass/{stem}.png").write_bytes(
            cv2.imencode(".png", np.eye(*SIZE, dtype=np.uint8))[1].tobytes()
        )
    main([str(tmp_path / "mine"), "--conf", str(conf)])
    assert written(conf)["class_path"] == "data_modules.formats.PascalVocBoxes"
    assert "not used: SegmentationClass (as LabelMaps, with --form LabelMaps)" in capsys.readouterr().out
    main([str(tmp_path / "mine"), "--conf", str(conf), "--form", "LabelMaps", "--overwrite"])
    assert written(conf)["init_args"]["images"] == "JPEGImages"
    with pytest.raises(UserError, match="no annotations of the form Yolo, but PascalVocBoxes, LabelMaps"):
        main([str(tmp_path / "mine"), "--conf", str(conf), "--form", "Yolo", "--overwrite"])


def test_zipped_images(conf, tmp_path):
    own_exports.write_coco(tmp_path / "mine")
    shutil.make_archive(str(tmp_path / "mine/images"), "zip", tmp_path / "mine", "images")
    shutil.rmtree(tmp_path / "mine/images")
    main([str(tmp_path / "mine"), "--conf", str(conf)])
    assert written(conf)["init_args"]["images"] == "images"
    with pytest.raises(UserError, match="but a file: unpack it"):
        main([str(tmp_path / "mine/images.zip"), "--conf", str(conf)])


def test_doubts_are_told(conf, tmp_path, capsys):
    path = own_exports.write_coco(tmp_path / "mine") / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    main([str(tmp_path / "mine"), "--conf", str(conf)])
    assert "1 of 4 annotations are crowds" in capsys.readouterr().out


def test_label_maps_of_colours(conf, tmp_path):
    own_exports.write_label_maps(tmp_path / "mine")
    for path in (tmp_path / "mine/labels").iterdir():
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.stack([values // 2, values, 255 - values], axis=-1))
    main([str(tmp_path / "mine"), "--conf", str(conf)])
    arguments = written(conf)["init_args"]
    assert arguments["encoding"] == "colors"
    assert [c["color"] for c in arguments["vocabulary"]] == [[255, 0, 0], [254, 1, 0], [253, 2, 1], [0, 255, 127]]


def test_parts_are_known_by_their_names(conf, tmp_path):
    base = tmp_path / "mine"
    for part in ("train", "val"):
        own_exports.write_coco(base / part)
        (base / part / "annotations.json").rename(base / f"instances_{part}.json")
    main([str(base), "--name", "parts", "--conf", str(conf)])
    data = yaml.safe_load((conf / "exp" / "parts.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    for part in ("train", "val"):
        arguments = data[part]["parts"]["init_args"]
        assert arguments["annotations"] == f"instances_{part}.json"
        assert arguments["images"] == f"{part}/images"
        assert "hold_out" not in arguments


def test_what_is_not_recognised(conf, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        main([str(tmp_path / "nowhere"), "--conf", str(conf)])
    own_exports.write_pictures(tmp_path / "mine")
    with pytest.raises(UserError, match=r"no annotations of a known form among its files \(3 .jpg\)"):
        main([str(tmp_path / "mine"), "--conf", str(conf)])
    own_exports.write_coco(tmp_path / "mine")
    own_exports.write_cvat(tmp_path / "mine")
    with pytest.raises(
        UserError, match=r"several forms \(CocoInstances: annotations.json; CvatImages: annotations.xml\): choose one"
    ):
        main([str(tmp_path / "mine"), "--conf", str(conf)])

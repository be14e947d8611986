import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools

from dataseg.cli.__main__ import main
from dataseg.prediction_files import InstanceWriter, LabelWriter, PanopticWriter
from dataseg.structures import ClassSpec, InstanceMasks, SegmentMap, Vocabulary

VOCABULARY = Vocabulary(
    "toy", tuple(ClassSpec(i, f"class{i}", i < 3, (f"class {i}",), (9 * i, 0, 0)) for i in range(1, 5))
)


@pytest.fixture
def vocabulary_file(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(VOCABULARY.to_json()))
    return path


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (3, 4), generator=generator).repeat_interleave(5, 0).repeat_interleave(6, 1)
    return SegmentMap(ids, torch.tensor([0, 1, 2, 3]))


def spoilt(segments):
    return SegmentMap(segments.ids.roll(2, 1), segments.labels)


def run(*arguments):
    return main(["score", *map(str, arguments)])


def test_panoptic(tmp_path, capsys):
    truth, results = (PanopticWriter(tmp_path / f"{name}.json", VOCABULARY) for name in ("gt", "pred"))
    for number in range(3):
        truth.add(maps(number), str(number))
        results.add(spoilt(maps(number)), str(number))
    results.add(maps(9), "9")  # not in the ground truth
    truth.finish(), results.finish()
    assert run("--task", "panoptic", "--gt", truth.path, "--pred", truth.path, "--areas", "both", "--per-class") == 0
    perfect = json.loads((tmp_path / "gt.panoptic_scores.json").read_text())
    assert perfect["pq_stored"] == perfect["pq_recounted"] == perfect["sq_stuff_stored"] == 100.0
    assert "| class4 |" in capsys.readouterr().out
    assert run("--task", "panoptic", "--gt", truth.path, "--pred", results.path) == 0
    out = capsys.readouterr().out
    assert "1 predicted image(s) are not in the ground truth" in out
    scores = json.loads((tmp_path / "pred.panoptic_scores.json").read_text())
    assert 0 < scores["pq"] < 100
    assert scores["images"] == 3
    assert set(scores["per_class"]) == set(VOCABULARY.names)
    assert scores["convention"]["areas"] == "stored"
    assert scores["unit"] == "percent"


def test_semantic(tmp_path, vocabulary_file, capsys):
    truth, results = (LabelWriter(tmp_path / name, VOCABULARY) for name in ("gt", "pred"))
    for number in range(3):
        truth.add(maps(number), f"image{number}")
        results.add(spoilt(maps(number)), f"image{number}")
    files = ("--gt", tmp_path / "gt", "--pred", tmp_path / "pred")
    assert run("--task", "semantic", *files, "--vocabulary", vocabulary_file, "--per-class") == 0
    printed = capsys.readouterr().out
    assert "| ground truth | predicted as |" in printed
    scores = json.loads((tmp_path / "pred.semantic_scores.json").read_text())
    confusion = np.array(scores["confusion"])
    assert confusion.shape == (4, 5)
    assert confusion.sum() == 3 * 15 * 24
    iou = confusion.diagonal() / (confusion.sum(1) + confusion[:, :4].sum(0) - confusion.diagonal())
    assert scores["miou"] == pytest.approx(100 * iou.mean())
    assert scores["per_class"]["class2"]["pixels"] == confusion[1].sum()
    assert run("--task", "semantic", *files) == 1
    assert "label maps do not say their classes" in capsys.readouterr().err
    (tmp_path / "pred" / "image1.png").unlink()
    assert run("--task", "semantic", *files, "--vocabulary", vocabulary_file) == 1
    assert "no label map for image image1" in capsys.readouterr().err


def test_instance(tmp_path, capsys):
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[2:12, 3:20] = 1
    rle = mask_tools.encode(mask)
    text = {"size": rle["size"], "counts": rle["counts"].decode()}
    content = {
        "images": [{"id": i, "height": 20, "width": 30} for i in (4, 11)],
        "annotations": [{"image_id": 4, "category_id": 2, "segmentation": text, "area": 170, "iscrowd": 0}],
        "categories": [{"id": 2, "name": "cat"}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    vocabulary = Vocabulary("cats", (ClassSpec(2, "cat", True, ("cat",), (0, 0, 0)),))
    writer = InstanceWriter(tmp_path / "pred.json", vocabulary)
    writer.add(InstanceMasks([rle], torch.tensor([0]), (20, 30), scores=torch.tensor([0.5])), "4")
    writer.finish()
    out = tmp_path / "figures" / "x.json"
    assert run("--task", "instance", "--gt", tmp_path / "gt.json", "--pred", writer.path, "--out", out) == 0
    scores = json.loads(out.read_text())
    assert scores["mask_ap"] == pytest.approx(100)
    assert scores["mask_apl"] is None
    assert scores["images"] == 2
    assert "1 of 2 images have no prediction in the file" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, capsys):
    assert run("--task", "instance", "--gt", tmp_path / "no.json", "--pred", tmp_path / "no.json") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "no.json: not a readable JSON file" in error


def test_a_prediction_of_the_wrong_size_names_image_and_ground_truth(tmp_path, capsys):
    for name, size in (("gt", 4), ("pred", 5)):
        writer = PanopticWriter(tmp_path / f"{name}.json", VOCABULARY)
        writer.add(SegmentMap(torch.zeros(size, 4, dtype=torch.int32), torch.tensor([0])), "77")
        writer.finish()
    assert run("--task", "panoptic", "--gt", tmp_path / "gt.json", "--pred", tmp_path / "pred.json") == 1
    assert "gt.json, image 77: the prediction is 5 x 4" in capsys.readouterr().err


def test_official_samples_score_100_against_themselves(real_data, tmp_path):
    path = real_data / "coco/annotations/panoptic_val2017.json"
    status = run("--task", "panoptic", "--gt", path, "--pred", path, "--out", tmp_path / "s.json")
    assert status == 0
    assert json.loads((tmp_path / "s.json").read_text())["pq"] == 100.0
    folder = real_data / "ade/ADEChallengeData2016/annotations"
    vocabulary = Vocabulary("ade", tuple(ClassSpec(i, f"c{i}", True, ("c",), (0, 0, 0)) for i in range(1, 151)))
    (tmp_path / "v.json").write_text(json.dumps(vocabulary.to_json()))
    files = ("--gt", folder, "--pred", folder, "--gt-ignore", 0, "--pred-ignore", 0, "--out", tmp_path / "s.json")
    assert run("--task", "semantic", *files, "--vocabulary", tmp_path / "v.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["miou"] == 100.0
    assert Image.open(next(folder.rglob("*.png"))).mode in ("L", "P")

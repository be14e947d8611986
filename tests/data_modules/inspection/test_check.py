"""The data check finds what is wrong, the statistics describe what there is."""

import contextlib
import io
import json
import re
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from fake_data import SIZE, color_of, write_ade, write_coco, write_objects365
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from data_modules.formats import (
    AdeSemantic,
    CocoInstances,
    CocoPanoptic,
    LabelMaps,
    Objects365Boxes,
    Objects365Instances,
)
from data_modules.inspection import check as check_program
from data_modules.inspection.check import check, evenly_spaced
from data_modules.inspection.experiment import Experiment
from data_modules.inspection.journal import Journal, identity_of, state_of
from data_modules.inspection.problems import Finding, Problem, SelfScore, as_prediction, examine
from data_modules.inspection.statistics import describe
from data_modules.inspection.stats import stats
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, UserError
from dataseg.visualization.overlay import draw

CONFIG = """
data:
  class_path: data_modules.CoTraining
  init_args:
    train:
      ade: { class_path: data_modules.formats.AdeSemantic }
      coco: { class_path: data_modules.formats.CocoPanoptic }
      o365: { class_path: data_modules.formats.Objects365Boxes }
    val:
      ade: { class_path: data_modules.formats.AdeSemantic, init_args: { split: validation } }
      ade_panoptic: { class_path: data_modules.formats.AdePanoptic }
      coco:
        class_path: data_modules.formats.CocoPanoptic
        init_args: { split: val2017, tasks: [panoptic, semantic] }
      o365: { class_path: data_modules.formats.Objects365Instances }
    ratios: { ade: 1, coco: 1, o365: 1 }
model:
  network:
    class_path: dataseg.network.MaskClassificationNetwork
    init_args: { backbone: dataseg.network.TimmBackbone }
  criterion: { class_path: dataseg.losses.Criterion }
  text: { class_path: dataseg.text.embeddings.TextEmbeddings, init_args: { encoder: null, cache: nothing.safetensors } }
"""


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "data"
    for split in ("training", "validation"):
        write_ade(root, split=split, seed=len(split))
    for split in ("train2017", "val2017"):
        write_coco(root, split=split, seed=len(split))
    write_objects365(root)
    write_objects365(root, split="val", seed=1, masks=True)
    return root


@pytest.fixture
def run_check(root, tmp_path, monkeypatch):
    """The check, started as from the command line; gives exit status, what it prints, and the listed problems."""

    def run(*args, of=check, options=check_program):
        (tmp_path / "config.yaml").write_text(CONFIG)
        wanted = {"images": (int, 0, ""), "workers": (int, 1, ""), "similarity": (float, 0.9, "")}
        arguments = [f"--config={tmp_path / 'config.yaml'}", f"--data.root={root}", f"--runs={tmp_path / 'runs'}"]
        experiment = Experiment(wanted, [*arguments, "--exp=test", *args])
        console = Console(record=True, width=200, file=(tmp_path / "printed").open("w"))
        status = of(experiment, console)
        listed = tmp_path / "runs/test/data_check/problems.jsonl"
        problems = [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []
        return status, console.export_text(), problems

    return run


def kinds(problems):
    return {(p["severity"], p["data_set"], p["kind"]) for p in problems}


def test_sound_data_pass(run_check, tmp_path):
    status, text, problems = run_check()
    assert status == 0
    assert kinds(problems) == {
        ("warning", "train coco", "without a segment"),
        ("warning", "val coco", "without a segment"),
        ("warning", "train o365", "without a segment"),
        ("warning", "val o365", "without a segment"),
        ("warning", "train o365", "records that stop no training"),
        ("warning", "val o365", "records that stop no training"),  # its annotations are numbered from 0
        ("warning", "val ade_panoptic", "stated area is not the PNG's"),  # as the generator writes them
        ("warning", "val ade_panoptic", "not 100 against itself"),
    }
    for figure in ("miou 100.00", "pq 100.00", "mask_ap 100.00"):
        assert figure in text
    score = float(re.search(r"scores pq (\d+\.\d+) against itself, not 100", text)[1])
    assert 50 < score < 100
    grids = {path.name for path in (tmp_path / "runs/test/data_check").glob("*.jpg")}
    assert grids == {
        f"{r}_{n}.jpg"
        for r, n in [
            ("train", "ade"),
            ("train", "coco"),
            ("train", "o365"),
            ("val", "ade"),
            ("val", "ade_panoptic"),
            ("val", "coco"),
            ("val", "o365"),
        ]
    }
    for name in grids:
        assert cv2.imread(str(tmp_path / "runs/test/data_check" / name)).std() > 10


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _shift_ade(root):
    for path in (root / "ADEChallengeData2016/annotations/training").glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) - 1)  # 0 -> 255


def _swap_image(root):
    (root / "coco/val2017/000000000102.jpg").write_bytes((root / "coco/train2017/000000000103.jpg").read_bytes())


CASES = {
    "missing": (lambda r: (r / "coco/train2017").rename(r / "coco/x"), "train coco", "missing", "coco/train2017"),
    "image": (
        lambda r: (r / "objects365/train/patch1/objects365_v1_00000003.jpg").unlink(),
        "train o365",
        "unreadable or inconsistent",
        "objects365_v1_00000003.jpg",
    ),
    "truncated": (
        lambda r: (r / "coco/train2017/000000000101.jpg").write_bytes(b"\xff\xd8\xff"),
        "train coco",
        "unreadable or inconsistent",
        "000000000101.jpg",
    ),
    "size": (
        lambda r: cv2.imwrite(str(r / "coco/val2017/000000000101.jpg"), np.zeros((9, 9, 3), np.uint8)),
        "val coco",
        "unreadable or inconsistent",
        "9 x 9",
    ),
    "unlisted": (
        lambda r: cv2.imwrite(
            str(r / "coco/annotations/panoptic_val2017/000000000101.png"), color_of(np.full(SIZE, 999))
        ),
        "val coco",
        "unreadable or inconsistent",
        "that the JSON does not list",
    ),
    "vocabulary": (
        lambda r: _edit(
            r / "coco/annotations/panoptic_train2017.json",
            lambda c: [s.update(category_id=12) for a in c["annotations"][1:3] for s in a["segments_info"]],
        ),
        "train coco",
        "malformed records",
        "category_id 12",
    ),
    "shifted": (_shift_ade, "train ade", "unreadable or inconsistent", "already-shifted"),
    "box": (
        lambda r: _edit(
            r / "objects365/train/zhiyuan_objv2_train.json", lambda c: c["annotations"][3].update(bbox=[1, 2, 3])
        ),
        "train o365",
        "malformed records",
        "annotation 3",
    ),
    "json": (
        lambda r: (r / "coco/annotations/panoptic_val2017.json").write_text('{"images": ['),
        "val coco",
        "annotation file",
        "panoptic_val2017.json",
    ),
    "leak": (_swap_image, "val coco", "trained on", "image 102 is image 103 of train coco"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_found(run_check, root, case):
    damage, data_set, kind, words = CASES[case]
    damage(root)
    status, text, problems = run_check()
    assert status == 1
    errors = [p for p in problems if p["severity"] == "error"]
    assert {(p["data_set"], p["kind"]) for p in errors} == {(data_set, kind)}
    assert any(words in p["message"] for p in errors)
    assert f"error {data_set}: {kind}" in text


def test_where_every_record_is_wrong_all_are_named(run_check, root):
    def misname(content):
        for annotation in content["annotations"]:
            annotation["image_id"] = 7

    _edit(root / "coco/annotations/panoptic_train2017.json", misname)
    status, _, problems = run_check()
    assert status == 1
    messages = [p["message"] for p in problems if p["data_set"] == "train coco"]
    assert len(messages) == 7
    assert "annotation 5: its image_id 7 is the id of no image in the file" in messages[5]
    assert "holds no usable annotation" in messages[6]


def test_stuff_in_several_segments_is_a_warning(run_check, root):
    def split(content):
        for segment in content["annotations"][2]["segments_info"]:
            segment["category_id"] = 200

    _edit(root / "coco/annotations/panoptic_val2017.json", split)
    status, _, problems = run_check()
    assert status == 0
    (found,) = [p for p in problems if p["kind"] == "stuff in several segments"]
    assert found["data_set"] == "val coco"
    assert "image 102: segments 0, 2, 3 are all" in found["message"], "segment 1 is a crowd"


@pytest.mark.parametrize("first_id", [0, 1])
def test_annotation_id_0_is_named_as_pycocotools_never_matches_it(tmp_path, first_id):
    (tmp_path / "own").mkdir()
    cv2.imwrite(str(tmp_path / "own/a.png"), np.zeros((40, 40, 3), np.uint8))
    annotations = [
        {"id": first_id + k, "image_id": 1, "category_id": 1, "bbox": [x, 0, 9, 9], "area": 81, "iscrowd": 0}
        | {"segmentation": [[x, 0, x + 9, 0, x + 9, 9, x, 9]]}
        for k, x in enumerate((0, 20))
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "leaf"}],
    }
    path = tmp_path / "own/a.json"
    path.write_text(json.dumps(content))
    messages = []
    reader = CocoInstances("own", "a.json", ".", vocabulary=None)
    reader.locate(tmp_path)
    reader.read_classes(tmp_path)
    reader.read(lambda message, benign=False: messages.append(message) if benign else pytest.fail(message))
    score = SelfScore(reader, "own")
    score.update(reader.load(0)[1], "1")
    assert score.compute() == {"mask_ap": pytest.approx(100)}

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes([a | {"score": 1.0} for a in annotations]), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert (evaluator.stats[0] < 0.6) == bool(messages) == (first_id == 0)
    assert all("annotation 0 has the id 0: pycocotools never matches it" in message for message in messages)


def test_segments_without_a_pixel_and_duplicates_are_warnings(run_check, root):
    def bury(content):
        content["annotations"][1]["segments_info"].append({"id": 9, "category_id": 17, "area": 50, "iscrowd": 0})

    _edit(root / "coco/annotations/panoptic_val2017.json", bury)
    train = root / "ADEChallengeData2016/images/training"
    (train / "ADE_train_00000002.jpg").write_bytes((train / "ADE_train_00000001.jpg").read_bytes())
    status, _, problems = run_check()
    assert status == 0
    found = kinds(problems)
    assert ("warning", "val coco", "in the JSON, not in the PNG") in found
    assert ("warning", "val coco", "not 100 against itself") in found
    assert ("warning", "train ade", "duplicates") in found


def test_an_interrupted_check_goes_on(run_check, root, tmp_path, monkeypatch):
    seen = []

    def looks(reader, index):
        seen.append(index)
        return examine(reader, index)

    def stops(reader, index):
        if len(seen) == 8:
            raise KeyboardInterrupt
        return looks(reader, index)

    monkeypatch.setattr(check_program, "examine", stops)
    with pytest.raises(KeyboardInterrupt):
        run_check()
    progress = tmp_path / "runs/test/data_check/progress/train_coco.jsonl"
    progress.write_text(progress.read_text() + '[5, "ab')  # cut off in the middle of a line
    monkeypatch.setattr(check_program, "examine", looks)
    status, _, problems = run_check()
    assert status == 0
    assert len(seen) == 5 + 6 + 7 + 5 + 5 + 6 + 7, "nothing is looked at twice"
    assert not progress.parent.exists()
    seen.clear()
    assert run_check()[2] == problems
    assert len(seen) == 41, "a finished check begins anew: files may have been mended"


def test_an_interrupted_check_does_not_go_on_with_another_annotation_file(run_check, root, monkeypatch):
    seen = []

    def stops(reader, index):
        if len(seen) == 13:
            raise KeyboardInterrupt
        seen.append(index)
        return examine(reader, index)

    monkeypatch.setattr(check_program, "examine", stops)
    with pytest.raises(KeyboardInterrupt):
        run_check()
    (root / "coco/annotations/panoptic_train2017.json").touch()
    monkeypatch.setattr(check_program, "examine", lambda reader, index: (seen.append(index), examine(reader, index))[1])
    run_check()
    assert len(seen) == 41 + 6


@pytest.mark.parametrize("change", ["labels", "setting"])
def test_an_interrupted_check_looks_again_at_what_changed(tmp_path, change):
    (tmp_path / "own").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"own/{name}.jpg"), np.zeros((4, 4, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"own/{name}.png"), np.full((4, 4), 255, np.uint8))

    def journal(**settings):
        reader = LabelMaps("own", ".", ".", "mini_ade", **settings)
        reader.setup(tmp_path)
        return Journal(tmp_path / "a.jsonl", identity_of(reader), partial(state_of, reader))

    with journal() as first:
        for row in range(2):
            first.add(Finding(row, "00ff", []))
    if change == "labels":
        cv2.imwrite(str(tmp_path / "own/a.png"), np.zeros((4, 4), np.uint16) + 255)
    with journal(**{"ignore": 255} if change == "labels" else {"offset": -1}) as second:
        assert list(second.done) == ([1] if change == "labels" else [])


def test_several_processes_find_the_same(run_check, root):
    CASES["image"][0](root)
    CASES["unlisted"][0](root)
    one = run_check()[2]
    assert run_check("--workers=2")[2] == one


def test_a_part_of_the_images(run_check):
    _, text, problems = run_check("--images=2")
    assert {p["data_set"] for p in problems if p["kind"] == "without a segment"} >= {"train coco"}
    assert evenly_spaced(10, 3) == [0, 4, 9]
    assert evenly_spaced(3, 10) == [0, 1, 2]
    assert re.search(r"train coco\s*│ COCO panoptic\s*│ 2 ", text)


def test_a_journal_of_another_file_is_not_gone_on_with(tmp_path):
    finding = Finding(3, "00ff", [Problem("error", "kind", "text é")])
    with Journal(tmp_path / "a.jsonl", "one", lambda index: [index]) as journal:
        journal.add(finding)
    with Journal(tmp_path / "a.jsonl", "one", lambda index: [index]) as journal:
        assert journal.done == {3: finding}
    with Journal(tmp_path / "a.jsonl", "two", lambda index: [index]) as journal:
        assert journal.done == {}


# ------------------------------------------------------------------------------------------------- parts


def test_a_perfect_prediction_leaves_crowds_out():
    ids = torch.tensor([[0, 1, 2, VOID]], dtype=torch.int16)
    target = SegmentMap(ids, torch.tensor([5, 6, 7]), is_crowd=torch.tensor([False, True, False]))
    prediction = as_prediction(target)
    assert prediction.ids.tolist() == [[0, VOID, 1, VOID]]
    assert prediction.labels.tolist() == [5, 7]
    masks = InstanceMasks([None, {"size": [1, 4], "counts": b"04"}], torch.tensor([1, 2]), (1, 4))
    assert as_prediction(masks).labels.tolist() == [2]
    assert as_prediction(Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))) is None


def test_a_ground_truth_that_is_void_cannot_be_scored(root):
    reader = CocoPanoptic(split="val2017")
    reader.setup(root)
    score = SelfScore(reader, "coco")
    score.update(reader.load(0)[1], "100")
    with pytest.raises(UserError, match="void"):
        score.compute()


@pytest.mark.parametrize("kind", [AdeSemantic, CocoPanoptic, Objects365Boxes, Objects365Instances])
def test_pictures(root, kind):
    reader = kind()
    reader.setup(root)
    image, target = reader.load(2)
    before = image.copy()
    picture = draw(image, target, reader.vocabulary)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert (picture != image).any(axis=2).mean() > 0.02
    assert (image == before).all()


# ------------------------------------------------------------------------------------------------- statistics


def images_of_each(page: str) -> list[str]:
    return re.findall(r'<tr><td>(?:train|val) .*?</td><td>.*?</td><td class="n">([\d,]+)', page)


def test_statistics(run_check, root, tmp_path):
    status, text, _ = run_check(of=stats)
    assert status == 0
    assert "vocabularies not compared" in text, "this experiment's text cache is not there"
    page = (tmp_path / "runs/test/data_stats.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs no other file"
    assert page.count("data:image/jpeg;base64,") == sum(min(8, int(n)) for n in images_of_each(page)) >= 7
    row = re.search(r"<tr><td>train coco</td><td>COCO panoptic(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall(r">([\d.,]+)", row)[:5] == ["6", "133", "20", "3.3", "3"]
    row = re.search(r"<tr><td>train o365</td><td>Objects365 v2(.*?)</tr>", page, re.DOTALL)[1]
    assert re.findall(r">([\d.,]+)", row)[:3] == ["7", "365", "24"]


def test_sizes_of_segments_whose_area_is_not_stated(root):
    path = root / "coco/annotations/panoptic_train2017.json"
    content = json.loads(path.read_text())
    stated = [s.pop("area") for a in content["annotations"] for s in a["segments_info"]]
    path.write_text(json.dumps(content))
    reader = CocoPanoptic()
    reader.setup(root)
    assert describe(reader, "coco", 0).sizes.tolist() == np.sqrt(np.array(stated)).astype(np.float32).tolist()


def test_statistics_name_what_is_missing(run_check, root, tmp_path):
    (root / "coco").rename(root / "elsewhere")
    status, text, _ = run_check(of=stats)
    assert status == 1
    assert "panoptic_train2017.json" in text
    assert "panoptic_train2017.json" in (tmp_path / "runs/test/data_stats.html").read_text()

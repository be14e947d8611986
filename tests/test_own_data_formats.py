"""The ten-minute walk of docs/own_data.md for each form, by its commands: own-data, data-check, fit, eval, predict."""

import json
import shutil

import own_exports
import pytest
from cli_runs import ROOT, SMALL, finish, own_experiment, start
from PIL import Image

SCORES = {"label_maps": "miou", "voc": None, "yolo_boxes": None}
"""Primary score by form; the others' is mask AP. Boxes are not scored."""


@pytest.mark.slow
@pytest.mark.parametrize("form", own_exports.WRITERS)
def test_from_a_folder_to_predictions(form, tmp_path, monkeypatch):
    monkeypatch.setattr(own_exports, "STEMS", ["Brücke 1", "b2", "c3", "d4", "e5"])
    monkeypatch.setattr(own_exports, "SIZE", (64, 96))
    mine = own_exports.WRITERS[form](tmp_path / "mine")
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf, ignore=shutil.ignore_patterns("exp", "suite"))

    def run(*arguments: str) -> str:
        output = tmp_path / f"{arguments[0]}.txt"
        status = finish(start([*map(str, arguments)], output), 300)
        assert status == 0, output.read_text()[-3000:]
        return output.read_text()

    assert "5 images; segments by class: " in run("own-data", mine, "--conf", conf)
    own = own_experiment("mine", conf, tmp_path)
    run("data-check", *own)
    checked = tmp_path / "runs/mine/data_check"
    problems = [json.loads(line) for line in (checked / "problems.jsonl").read_text().splitlines()]
    assert not [problem for problem in problems if problem["severity"] == "error"]
    assert (checked / "train_mine.jpg").is_file()

    run("fit", *own, "--trainer.max_steps=20", "--trainer.val_check_interval=20", *SMALL)
    checkpoint = tmp_path / "runs/mine/test/checkpoints/last.ckpt"
    assert (checkpoint.parent / "step-20.ckpt").is_file()
    score = SCORES.get(form, "mask_ap")
    if score is not None:
        metrics = json.loads((tmp_path / "runs/mine/test/metrics.json").read_text())
        assert sum(part["images"] for part in metrics["data"].values()) == 5
        assert 0 <= metrics[f"mine.{score}"] <= 100
        assert score in run("eval", *own, f"--ckpt_path={checkpoint}", *SMALL)

    images = next(path.parent for path in mine.rglob("*.jpg"))
    turned = images / "turned.jpg"  # a photograph that lies on its side
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "b2.jpg").transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    run("predict", "--model", checkpoint, "--images", images, "--out", tmp_path / "out")
    pictures = [path for path in (tmp_path / "out").iterdir() if path.suffix in (".jpg", ".png")]
    assert len(pictures) == 6
    assert len({Image.open(path).size for path in pictures}) == 1  # all upright

"""make predict: what stands in pictures and JSON file is what the predictor gives, and mistakes end in one message."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pycocotools import mask as mask_tools
from tiny_model import PETS, make_model

import dataseg
from dataseg.cli import predict
from dataseg.cli.__main__ import main
from dataseg.deployment.model_file import write_model
from dataseg.io.images import open_image
from dataseg.structures import InstanceMasks, SegmentMap, Task
from dataseg.visualization.overlay import draw

ROOT = Path(__file__).resolve().parents[3]
FIELDS = {"category", "category_id", "area", "bbox", "segmentation"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, make_model())
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images, one a folder deeper, among files that are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "more/a.JPG")):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 60 + seed)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / "._a.png").write_text("what some systems leave behind")
    return folder


def run(*options) -> int:
    return main(["predict", *map(str, options)])


def masks_of(segments) -> list[np.ndarray]:
    if isinstance(segments, SegmentMap):
        return [(segments.ids == k).numpy() for k in range(len(segments))]
    return [mask_tools.decode(rle).astype(bool) for rle in segments.rles]


@pytest.mark.parametrize("task", list(Task))
def test_as_the_predictor(model, photos, tmp_path, task, capsys):
    out = tmp_path / "new" / "out"
    assert run("--model", model, "--images", photos, "--out", out, "--dataset", "home", "--task", task) == 0
    content = json.loads((out / "predictions.json").read_text())
    assert content["task"] == task
    assert content["vocabulary"] == "pets"
    predictor, count = dataseg.load(model), 0
    for record, name in zip(content["images"], ("a.png", "more/a.JPG"), strict=True):
        segments = predictor(photos / name, "home", task)
        image = open_image(photos / name).decode()
        assert record["file_name"] == name
        assert (record["height"], record["width"]) == image.shape[:2]
        assert len(record["segments"]) == len(segments) > 0
        count += len(segments)
        for k, (found, mask) in enumerate(zip(record["segments"], masks_of(segments), strict=True)):
            spec = PETS.classes[segments.labels[k]]
            assert (found["category"], found["category_id"]) == (spec.name, spec.id)
            assert found["area"] == mask.sum()
            ys, xs = np.nonzero(mask)
            x, y, width, height = found["bbox"]
            assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert np.array_equal(mask_tools.decode(found["segmentation"]), mask)
            if segments.scores is None:
                assert found.keys() == FIELDS
            else:
                assert found["score"] == segments.scores[k].item()
        picture = open_image(out / record["picture"]).decode()
        assert picture.shape == image.shape
        if not isinstance(segments, InstanceMasks):
            assert np.array_equal(picture, draw(image, segments, PETS, is_prediction=True))
    assert f"{task}, {count} segments in 2 of 2 images" in capsys.readouterr().out
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "a.png.png",
        "more/a.JPG.png",
        "predictions.json",
    ]


def test_classes_of_ones_own(model, photos, tmp_path):
    options = ("--classes", "cat, road", "--stuff", "road", "--task", "semantic")
    assert run("--model", model, "--images", photos / "a.png", "--out", tmp_path / "out", *options) == 0
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    segments = dataseg.load(model)(photos / "a.png", ["cat", "road"], "semantic", ["road"])
    assert [s["category"] for s in record["segments"]] == [("cat", "road")[label] for label in segments.labels]


def test_the_only_vocabulary_need_not_be_named(photos, tmp_path):
    write_model(tmp_path / "one.safetensors", make_model(vocabularies={"home": PETS, "again": PETS}))
    assert run("--model", tmp_path / "one.safetensors", "--images", photos, "--out", tmp_path / "out") == 0


def test_broken_images_are_named_and_skipped(model, photos, tmp_path, capsys):
    (photos / "b.jpg").write_bytes(b"no image")
    (photos / "c.heic").write_bytes(b"of a telephone")
    assert run("--model", model, "--images", photos, "--out", tmp_path / "out", "--dataset", "home") == 1
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert [line.split()[:2] for line in lines] == [["skipped:", str(photos / n)] for n in ("b.jpg", "c.heic")]
    assert "2 of 4 images" in shown.out
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [record["file_name"] for record in content["images"]] == ["a.png", "more/a.JPG"]
    assert not list((tmp_path / "out").glob("[bc]*"))


def test_images_of_many_bands(model, tmp_path):
    values = np.random.default_rng(0).random((40, 60, 5)).astype(np.float32) * 3000
    (tmp_path / "photos").mkdir()
    tifffile.imwrite(tmp_path / "photos" / "a.tif", values, photometric="minisblack", planarconfig="contig")
    written = [np.rint(values[..., band] / 3000 * 255).astype(np.uint8) for band in (3, 2, 1)]
    out, of_model = tmp_path / "out", ("--model", model, "--dataset", "home")
    chosen = ("--bands", 4, 3, 2, "--value-range", 0, 3000)
    assert run(*of_model, "--images", tmp_path / "photos", "--out", out, *chosen) == 0
    (record,) = json.loads((out / "predictions.json").read_text())["images"]
    segments = dataseg.load(model)(np.dstack(written), "home", "panoptic")
    assert [found["area"] for found in record["segments"]] == [int(mask.sum()) for mask in masks_of(segments)]


def test_pictures_are_not_predicted_on(model, photos, capsys):
    """Results may lie among the images: they are no images the next time."""
    options = ("--model", model, "--dataset", "home", "--out", photos / "out")
    for _ in range(2):
        assert run(*options, "--images", photos) == 0
        assert "2 of 2 images" in capsys.readouterr().out
    assert run(*options, "--images", photos / "out" / "a.png.png") == 1
    assert "take another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--dataset": None}, "the model knows several datasets: choose --dataset, one of ['home', 'street']"),
        ({"--dataset": "hom"}, "choose one of ['home', 'pets', 'roads', 'street']"),
        ({"--dataset": None, "--classes": "cat,,dog"}, "one or more non-empty texts"),
        ({"--dataset": None, "--classes": "zebra"}, "no text vectors of ['zebra']"),
        ({"--dataset": None, "--classes": "cat", "--stuff": "sky"}, "stuff names ['sky']"),
        ({"--stuff": "sky"}, "--stuff says which of --classes"),
        ({"--model": "missing.safetensors"}, "not a whole exported model"),
        ({"--model": "missing.ckpt"}, "missing.ckpt"),
        ({"--images": "missing"}, "missing: no such image or folder"),
        ({"--images": "empty"}, "empty: holds no image"),
        ({"--device": "toaster"}, "no device 'toaster'"),
        ({"--out": "photos/notes.txt"}, "notes.txt"),
    ],
)
def test_mistakes_are_one_message(model, photos, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    every = {"--model": model, "--images": "photos", "--out": "out", "--dataset": "home"} | options
    assert run(*(word for name, value in every.items() if value is not None for word in (name, value))) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not Path("out").exists()


def test_two_images_of_one_name_are_refused(model, photos, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "a.png")
    assert run("--model", model, "--images", photos, other, "--out", tmp_path / "out", "--dataset", "home") == 1
    assert f"{photos / 'a.png'} and {other / 'a.png'} are both named a.png" in capsys.readouterr().err


def test_scores_decide_what_pictures_show():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    segments = InstanceMasks(
        [predict.encode_mask(mask) for mask in masks.numpy()],
        torch.tensor([0, 1]),
        (4, 4),
        scores=torch.tensor([0.9, 0.1]),
    )
    assert predict.confident(segments).labels.tolist() == [0]
    assert len(predict.describe(segments, PETS)) == 2


@pytest.mark.parametrize(
    ("words", "missing"),
    [(["predict"], "CKPT"), (["predict", "CKPT=x.ckpt"], "IMAGES"), (["export"], "CKPT"), (["replay"], "FILE")],
)
def test_make_says_what_is_missing(words, missing):
    done = subprocess.run(["make", "-o", "setup", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode
    assert f"{missing}=... is needed" in done.stderr


def test_words_without_vectors_are_made_by_an_encoder(model, photos, tmp_path, capsys):
    options = ("--model", model, "--images", photos / "a.png", "--out", tmp_path / "out", "--classes", "zebra,cat")
    assert run(*options) == 1
    message = capsys.readouterr().err
    assert "no text vectors of ['zebra']" in message
    assert "--encoder" in message
    assert "words it has vectors of: car, cat, dog, grass, hound, lawn, road, sky" in message
    assert run(*options, "--encoder", "{class_path: tiny_model.HashText, init_args: {name: other}}") == 1
    assert '{"model": "other"}' in capsys.readouterr().err
    assert run(*options, "--encoder", "tiny_model.HashText") == 0
    (record,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert {s["category"] for s in record["segments"]} <= {"zebra", "cat"}
    for wrong in ("[", "[1]", "no.such.Class"):
        assert run(*options, "--encoder", wrong) == 1
        assert "--encoder" in capsys.readouterr().err

"""An exported model: one line loads it, nothing is downloaded, and it gives what the evaluation would."""

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import CONFIG, DIM, PETS, ROADS, HashText, make_model, vocabulary

import dataseg
from dataseg.deployment.model_file import read_model, write_model
from dataseg.deployment.network import build_network
from dataseg.inference.postprocess import PanopticOptions, PostProcessor
from dataseg.inference.resize import ResizeShortestEdge, to_tensor
from dataseg.network import LinearClassifier
from dataseg.structures import (
    Batch,
    Boxes,
    InstanceMasks,
    Sample,
    SegmentMap,
    Task,
    UserError,
    Vocabulary,
)
from dataseg.text.embeddings import TextEmbeddings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, make_model())
    return path


@pytest.fixture
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (171, 93), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---------------------------------------------------------------------------------------------------- several images


@pytest.mark.parametrize("network", ["convnext", tiny.ENCODER_ONLY])
@pytest.mark.parametrize("task", [Task.PANOPTIC, Task.SEMANTIC, Task.INSTANCE])
def test_several_images_are_segmented_as_one_by_one(picture, network, task, monkeypatch):
    """Those of one padded size in one pass; scores within 1e-4."""
    model = make_model()
    predictor = dataseg.deployment.predictor.Predictor(
        tiny.network(network),
        model.vocabularies,
        model.text,
        ResizeShortestEdge(60, 128),
        postprocess=PostProcessor(panoptic=PanopticOptions(score_threshold=0.0, overlap_threshold=0.0)),
        templates="plain",
    )
    images = [picture, picture[:80, :150], picture.transpose(1, 0, 2), picture[:90], picture[::-1]]
    alone = [predictor(np.ascontiguousarray(image), "home", task) for image in images]
    passes, forward = [], predictor.network.forward
    monkeypatch.setattr(predictor.network, "forward", lambda x, *more: passes.append(len(x)) or forward(x, *more))
    together = predictor(images, "home", task)
    assert sum(passes) == len(images) > len(passes)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.labels, other.labels)
        if isinstance(one, SegmentMap):
            assert (one.ids == other.ids).float().mean() > 0.999  # a pixel between two segments may change sides
        if one.scores is not None:
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    assert len(predictor(images, "home", task, batch_size=1)) == len(images)
    assert predictor([], "home", task) == []


# ------------------------------------------------------------------------------------------------------ the file


def test_everything_comes_back(path):
    wrote, read = make_model(), read_model(path)
    assert read.config == wrote.config
    assert read.vocabularies == wrote.vocabularies
    assert read.provenance == wrote.provenance
    assert read.text.rows == wrote.text.rows
    assert read.text.metadata == wrote.text.metadata
    assert torch.equal(read.text.vectors, wrote.text.vectors)
    assert read.weights.keys() == wrote.weights.keys()
    for name, value in wrote.weights.items():
        assert torch.equal(read.weights[name], value)


def test_a_vocabulary_without_vectors_is_never_written():
    with pytest.raises(ValueError, match=r"'other': no text vector for \['boat'\]"):
        make_model(vocabularies={"other": vocabulary("v", [("boat",)], [])})


def test_damaged_files_are_refused(path, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(path.read_bytes()[:-100])
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    for wrong in (short, other, tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(UserError, match=r"not a whole exported model.*make export"):
            dataseg.load(wrong)


def test_classes_of_other_packages_are_named_not_imported(tmp_path):
    section = {"class_path": "surprise_package.Network", "init_args": {}}
    model = make_model(config={"model": {"network": section}})
    (tmp_path / "surprise_package.py").write_text("raise SystemExit('it ran')")
    write_model(tmp_path / "m.safetensors", model)
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"surprise_package\.Network.*packages=\('surprise_package',\)"):
            dataseg.load(tmp_path / "m.safetensors")
    finally:
        sys.path.remove(str(tmp_path))


def test_nested_classes_of_other_packages_are_refused():
    section = json.loads(json.dumps(CONFIG["model"]["network"]))
    section["init_args"]["backbone"]["class_path"] = "os.system"
    with pytest.raises(UserError, match=r"os\.system"):
        build_network({"model": {"network": section}}, {}, "file")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w.pop("pixel_mean"), r"1 missing \(pixel_mean\)"),
        (lambda w: w.update(extra=torch.zeros(1)), r"1 left over \(extra\)"),
        (lambda w: w.update(pixel_std=torch.zeros(2)), r"1 of another shape \(pixel_std \[2\], not \[3, 1, 1\]\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(spoil, message):
    weights = dict(tiny.network().state_dict())
    spoil(weights)
    with pytest.raises(UserError, match=message):
        build_network(CONFIG, weights, "file")


def test_a_configuration_of_another_version_is_one_message():
    section = json.loads(json.dumps(CONFIG["model"]["network"]))
    section["init_args"]["querys"] = 3
    with pytest.raises(UserError, match=r"file: model\.network cannot be built.*querys.*another version"):
        build_network({"model": {"network": section}}, {}, "file")
    with pytest.raises(UserError, match=r"no model\.network"):
        build_network({}, {}, "file")


def test_a_linear_classifier_in_the_weights_is_taken_over():
    linear = tiny.network(classifier=LinearClassifier(tiny.OPTIONS["hidden_dim"], 4))
    network = build_network(CONFIG, linear.state_dict(), "file")
    assert isinstance(network.classifier, LinearClassifier)
    assert network.classifier.num_classes == 4


# ------------------------------------------------------------------------------------------------------ prediction


def expected(image: np.ndarray, chosen: Vocabulary, task: Task):
    """The evaluation's own way, written out."""
    model = make_model()
    network = tiny.network()
    network.load_state_dict(model.weights)
    names = [p for c in chosen.classes for p in c.prompts]
    index = [i for i, c in enumerate(chosen.classes) for _ in c.prompts]
    classes = dataseg.structures.ClassEmbeddings(HashText().encode(names), torch.tensor(index))
    pixels = to_tensor(ResizeShortestEdge(96, 128).resize(image))
    sample = Sample(pixels, Boxes(torch.zeros(0, 4), torch.zeros(0).long()), "", image.shape[:2])
    batch = Batch.collate([sample], "home", task)
    with torch.no_grad():
        proposals = network(batch.images, classes, batch.sizes)[-1]
    post = PostProcessor(panoptic=PanopticOptions(score_threshold=0.0, overlap_threshold=0.0))
    return post(proposals, batch, chosen.is_thing, task)[0]


def assert_same(a, b):
    assert type(a) is type(b)
    assert a.labels.tolist() == b.labels.tolist()
    if isinstance(a, SegmentMap):
        assert torch.equal(a.ids, b.ids)
    else:
        assert a.rles == b.rles
        assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(("name", "chosen"), [("home", PETS), ("street", ROADS), ("roads", ROADS)])
def test_as_in_evaluation(path, picture, name, chosen, task):
    result = dataseg.load(path)(picture, name, task)
    assert_same(result, expected(picture, chosen, task))
    if isinstance(result, SegmentMap):
        assert result.ids.shape == picture.shape[:2]
        assert result.ids.dtype == torch.int32
    else:
        assert isinstance(result, InstanceMasks)
        assert result.size == picture.shape[:2]
        assert chosen.is_thing[result.labels].all()
        assert len(result)


def test_nothing_is_fetched(path, picture, monkeypatch):
    def raise_problem(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", raise_problem)
    monkeypatch.setattr(socket, "getaddrinfo", raise_problem)
    assert len(dataseg.load(path)(picture, "home", "semantic"))


def test_arrays_tensors_and_files_are_one(path, picture, tmp_path):
    file = tmp_path / "picture.png"
    cv2.imwrite(str(file), picture[..., ::-1])
    model = dataseg.load(path)
    results = [model(image, "home", "semantic") for image in (picture, torch.from_numpy(picture), file, str(file))]
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("size", [(1, 1), (33, 257), (300, 20)])
def test_any_size(path, size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert dataseg.load(path)(image, "home").ids.shape == size


def test_wrong_images_are_one_message(path, picture, tmp_path):
    model = dataseg.load(path)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    with pytest.raises(UserError, match=r"uint8 \[H, W, 3\].*float64 \[93, 171, 3\]"):
        model(picture / 255, "home")
    with pytest.raises(UserError, match="not a readable image"):
        model(text, "home")
    Image.new("1", (1, 1)).save(tmp_path / "huge.png")
    content = bytearray((tmp_path / "huge.png").read_bytes())
    content[16:24] = struct.pack(">II", 2**16, 2**15)  # as its header states
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(UserError, match=r"huge\.png is not a readable image"):  # more pixels than OpenCV takes
        model(tmp_path / "huge.png", "home")
    with pytest.raises(UserError, match="cannot be read"):
        model(tmp_path / "missing.jpg", "home")


def test_wrong_names_are_one_message(path, picture):
    model = dataseg.load(path)
    with pytest.raises(UserError, match=r"no task 'depth': choose one of semantic, panoptic, instance"):
        model(picture, "home", "depth")
    with pytest.raises(UserError, match=r"'hom': choose one of \['home', 'pets', 'roads', 'street'\]"):
        model(picture, "hom")
    with pytest.raises(UserError, match=r"stuff names \['sea'\]"):
        model(picture, ["dog", "sky"], stuff=["sea"])
    for nothing in ([], [""], [()]):
        with pytest.raises(UserError, match="class names must be"):
            model(picture, nothing)


# -------------------------------------------------------------------------------------------------- open vocabulary


def test_known_names_need_no_encoder(path, picture):
    result = dataseg.load(path)(picture, [("cat", "hound"), "road"], "semantic", stuff=["road"])
    chosen = vocabulary("v", [("cat", "hound")], [("road",)])
    assert_same(result, expected(picture, chosen, Task.SEMANTIC))


def test_new_names_need_the_encoder(path, picture):
    with pytest.raises(UserError, match=r"no text vectors of \['zebra'\].*encoder=.*hash"):
        dataseg.load(path)(picture, ["dog", "zebra"])


def test_new_names_are_embedded_as_in_training(path, picture, tmp_path):
    model = dataseg.load(path, encoder=HashText())
    chosen = vocabulary("v", [("zebra", "horse")], [("sea",), ("sky",)])
    assert_same(
        model(picture, [("zebra", "horse"), "sea", "sky"], "panoptic", ["sea", "sky"]),
        expected(picture, chosen, Task.PANOPTIC),
    )
    trained = TextEmbeddings(HashText(), tmp_path / "t.safetensors", "plain")(chosen)
    torch.testing.assert_close(model.classes(chosen).vectors, trained.vectors)
    assert torch.equal(model.classes(chosen).class_index, trained.class_index)
    assert_same(model(picture, chosen), model(picture, chosen))


def test_another_encoder_is_refused(path):
    with pytest.raises(UserError, match=r'trained with vectors of the text encoder \{"model": "hash"\}.*"other"'):
        dataseg.load(path, encoder=HashText("other"))


def test_other_templates_are_refused(tmp_path):
    model = make_model()
    model.text.metadata["templates"] = json.dumps(["the {}"])
    write_model(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match="prompt templates 'plain' differ"):
        dataseg.load(tmp_path / "m.safetensors", encoder=HashText())


def test_other_weights_of_the_same_encoder_are_refused(tmp_path, picture):
    model = make_model()
    model.text.metadata["weights_sha256"] = "a" * 64
    write_model(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match="other weights"):
        dataseg.load(tmp_path / "m.safetensors", encoder=HashText(weights="b" * 64))(picture, ["zebra"])
    (cache,) = (tmp_path / "cache" / "dataseg").glob("*.safetensors")
    cache.unlink()
    assert dataseg.load(tmp_path / "m.safetensors", encoder=HashText(weights="a" * 64))(picture, ["zebra"])


# -------------------------------------------------------------------------------------------------------- surroundings


def test_importing_the_package_is_light():
    code = "import sys, dataseg; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "src")})


def test_unknown_attributes_stay_errors():
    with pytest.raises(AttributeError, match="has no attribute 'loud'"):
        _ = dataseg.loud


def test_from_the_hub(path, picture, monkeypatch):
    asked = []

    def download(name, file, revision=None):
        asked.append((name, file, revision))
        if name == "owner/missing":
            raise FileNotFoundError("404")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(dataseg.load("hf://owner/name@v2")(picture, "home", "semantic"))
    assert asked == [("owner/name", "model.safetensors", "v2")]
    with pytest.raises(UserError, match=r"hf://owner/missing.*404"):
        dataseg.load("hf://owner/missing")


def test_tensors_lie_under_plain_names(path):
    tensors = load_file(path)
    assert tensors["text.vectors"].shape == (8, DIM)
    assert {name.split(".")[0] for name in tensors} == {"network", "text"}

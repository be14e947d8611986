"""The network as a program for any batch and size: equal to eager, in torch.export and in ONNX."""

import json

import pytest
import tiny
import torch
import torch.nn.functional as F  # noqa: N812
from tiny_model import make_model

from dataseg.cli import export
from dataseg.deployment import traced
from dataseg.deployment.network import build_network
from dataseg.deployment.predictor import Predictor
from dataseg.deployment.traced import FixedVocabulary
from dataseg.structures import Batch, Boxes, ClassEmbeddings, ClassSpec, Sample, Task, UserError, Vocabulary

VOCABULARY = Vocabulary(
    "v", tuple(ClassSpec(i, p[0], True, p, (0, 0, 0)) for i, p in enumerate([("a", "b"), ("c",), ("d", "e")]))
)
ODD = [(1, 3, 225, 225), (1, 3, 257, 415), (4, 3, 300, 226), (3, 3, 512, 288)]


def make_classes() -> ClassEmbeddings:
    return ClassEmbeddings(F.normalize(torch.randn(5, 8), dim=-1), torch.tensor([0, 0, 1, 2, 2]))


def images_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 255).round()


@torch.no_grad()
def test_pads_as_evaluation_does():
    network, classes = tiny.network("convnext"), make_classes()
    image = images_of((3, 65, 97)).to(torch.uint8)
    nothing = Boxes(torch.zeros(0, 4), torch.zeros(0).long())
    batch = Batch.collate([Sample(image, nothing, "", (65, 97))], "x", Task.PANOPTIC)
    wanted = network(batch.images, classes, batch.sizes)[-1]
    class_logits, mask_logits = FixedVocabulary(network, classes)(image[None].float())
    assert class_logits.shape == (1, 6, 3 + 1)
    assert mask_logits.shape == (1, 6, 96 // 4, 128 // 4)
    torch.testing.assert_close(class_logits, wanted.class_logits)
    torch.testing.assert_close(mask_logits, wanted.mask_logits)
    multiples = FixedVocabulary(network, classes, any_size=False)
    padded = torch.tensor(multiples.padding_rgb)[:, None, None].repeat(1, 1, 96, 128)
    padded[..., :65, :97] = image
    for ours, theirs in zip(multiples(padded), (class_logits, mask_logits), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "backbone",
    ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in (tiny.ENCODER_ONLY, "convnext", "vitdet"))],
)
@torch.no_grad()
def test_one_program_for_any_batch_and_size(backbone, tmp_path):
    network = traced.trace(tiny.network(backbone), make_classes())
    assert network.model.any_size
    assert "225 to 8192 pixels" in network.images
    traced.save_program(network, tmp_path / "m.pt2", VOCABULARY)
    extra = {"vocabulary.json": "", "images.txt": ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert Vocabulary.from_json(json.loads(extra["vocabulary.json"])) == VOCABULARY
    assert extra["images.txt"] == network.images
    for shape in ODD:
        for a, b in zip(network.model(images_of(shape)), loaded(images_of(shape)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises((RuntimeError, AssertionError)):
        loaded(images_of((1, 3, 100, 300)))


@pytest.mark.slow
@torch.no_grad()
def test_swin_takes_multiples_of_32(tmp_path):
    network = traced.trace(tiny.network("swin", decoder_layers=1), make_classes())
    assert not network.model.any_size
    assert "multiples of 32 from 256 pixels" in network.images
    module = network.program.module()
    for shape in [(1, 3, 256, 256), (3, 3, 320, 448), (2, 3, 480, 288)]:
        for a, b in zip(network.model(images_of(shape)), module(images_of(shape)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [*tiny.BACKBONES, tiny.ENCODER_ONLY])
@torch.no_grad()
def test_onnx(backbone, tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install 'dataseg[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'dataseg[onnx]'")
    pytest.importorskip("onnxruntime", reason="pip install 'dataseg[onnx]'")
    network = traced.trace(tiny.network(backbone), make_classes())
    path = tmp_path / "m.onnx"
    traced.save_onnx(network, path, VOCABULARY)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert Vocabulary.from_json(json.loads(metadata["vocabulary"])) == VOCABULARY
    assert metadata["images"] == network.images
    run = traced.onnx_runner(path)
    shapes = ODD if network.model.any_size else [(1, 3, 256, 256), (3, 3, 320, 448)]
    close = []
    for shape in shapes:
        for seed in range(2):
            images = images_of(shape, seed)
            for a, b in zip(network.model(images), run(images), strict=True):
                assert a.shape == b.shape
                close.append(torch.allclose(a, b, rtol=1e-4, atol=1e-4))
    # where a mask logit is 0 but for rounding, masked attention may see a pixel in one of the two only
    assert sum(close) >= len(close) - 2
    assert len(traced.compare(network.model, run, "m.onnx")) == len(traced.CHECKED)


@torch.no_grad()
def test_a_traced_network_that_differs_is_refused():
    model = FixedVocabulary(tiny.network("convnext"), make_classes()).eval()
    assert all(max(result.largest) == 0 for result in traced.compare(model, model, "same"))
    with pytest.raises(UserError, match=r"wrong: is not equal to the network.*class logits differ by"):
        traced.compare(model, lambda images: tuple(x + 0.01 for x in model(images)), "wrong")
    with pytest.raises(UserError, match="not equal"):
        traced.compare(model, lambda images: tuple(x * torch.nan for x in model(images)), "nan")
    with pytest.raises(UserError, match=r"shape: gives \[1, 6, 2\] in place of \[1, 6, 4\]"):
        traced.compare(model, lambda images: (model(images)[0][..., :2], model(images)[1]), "shape")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install onnx onnxscript onnxruntime"):
        traced.save_onnx(None, tmp_path / "m.onnx", VOCABULARY)
    with pytest.raises(UserError, match=r"pip install onnx onnxscript onnxruntime"):
        traced.onnx_runner(tmp_path / "m.onnx")


def test_the_command_line_writes_and_compares(tmp_path, monkeypatch):
    """Tracing apart, which the tests above do."""
    predictor = Predictor.of(model := make_model(), load_network(model), "m")
    seen = []

    def fake_trace(network, classes):
        seen.append(classes)
        fixed = FixedVocabulary(network, classes).eval()
        return traced.TracedNetwork(None, fixed)

    monkeypatch.setattr(traced, "trace", fake_trace)
    monkeypatch.setattr(traced, "save_onnx", lambda network, path, vocabulary: path.write_text(vocabulary.name))
    monkeypatch.setattr(traced, "onnx_runner", lambda path: FixedVocabulary(load_network(model), seen[0]).eval())
    lines = export.write_traced(predictor, "street", None, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "roads"
    assert seen[0].num_classes == 3
    assert len(lines) == 1 + len(traced.CHECKED)
    monkeypatch.setattr(traced, "onnx_runner", lambda path: lambda images: (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(UserError, match=r"wrong\.onnx: gives \[1\] in place of"):
        export.write_traced(predictor, "street", None, tmp_path / "wrong.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"], "nothing is left of a wrong one"
    with pytest.raises(UserError, match=r"one vocabulary built in: choose --vocabulary, one of \['home', 'street'\]"):
        export.write_traced(predictor, None, None, tmp_path / "m.onnx")


def load_network(model):
    return build_network(model.config, model.weights, "m")

"""Text embeddings: templates, averaging, the cache and what it refuses. No weights are downloaded."""

import json
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from tiny_model import HashText, things

from dataseg.structures import UserError, Vocabulary
from dataseg.text.cache import read_cache, write_cache
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.encoder import OpenClipText
from dataseg.text.overlap import by_vocabularies, report_shared_names
from dataseg.text.templates import templates_of

ROOT = Path(__file__).resolve().parents[3]
MINI_CACHE = ROOT / "data_modules" / "vocabularies" / "mini_text.safetensors"


ANIMALS = things(("dog", "hound"), ("cat",), ("horse", "pony", "foal"))


# -------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(("name", "count"), [("plain", 1), ("article", 1), ("vild", 14), ("clip", 80)])
def test_template_sets(name, count):
    templates = templates_of(name)
    assert len(set(templates)) == len(templates) == count
    assert all(t.count("{}") == 1 and "zebra" in t.format("zebra") for t in templates)


def test_an_unknown_template_set_is_named():
    with pytest.raises(UserError, match=r"no prompt templates 'vlid'.*vild"):
        TextEmbeddings(HashText(), Path("x"), templates="vlid")


# --------------------------------------------------------------------------------------------------------- embedding


def test_synonyms_stay_rows_of_their_class(tmp_path):
    classes = TextEmbeddings(HashText(), tmp_path / "t.safetensors")(ANIMALS)
    assert classes.vectors.shape == (6, 8)
    assert classes.vectors.dtype == torch.float32
    assert classes.vectors.device.type == "cpu"
    assert torch.allclose(classes.vectors.norm(dim=1), torch.ones(6))
    assert classes.class_index.tolist() == [0, 0, 1, 2, 2, 2]
    assert classes.num_classes == 3


def test_templates_are_averaged_per_name(tmp_path):
    encoder = HashText()
    row = TextEmbeddings(encoder, tmp_path / "t.safetensors").embed(["dog"])[0]
    sentences = encoder.encode([t.format("dog") for t in templates_of("vild")])
    assert torch.allclose(row, F.normalize(sentences.mean(0), dim=0), atol=1e-6)


@given(st.lists(st.sampled_from(["dog", "cat", "horse", "naïve café", "A/B", "x" * 80]), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_rows_follow_the_names_asked_for(tmp_path_factory, names):
    text = TextEmbeddings(HashText(), tmp_path_factory.mktemp("t") / "t.safetensors", templates="plain")
    assert torch.allclose(text.embed(names), HashText().encode(names), atol=1e-6)
    assert torch.equal(text.embed(names), text.embed(names))


# ------------------------------------------------------------------------------------------------------------- cache


def test_what_is_cached_is_not_encoded_again(tmp_path):
    first = TextEmbeddings(HashText(), tmp_path / "t.safetensors")(ANIMALS)
    encoder = HashText()
    second = TextEmbeddings(encoder, tmp_path / "t.safetensors")(ANIMALS)
    assert encoder.asked == []
    assert torch.equal(first.vectors, second.vectors)


def test_one_file_serves_several_vocabularies(tmp_path):
    encoder = HashText()
    text = TextEmbeddings(encoder, tmp_path / "t.safetensors", templates="plain")
    animals = text(ANIMALS).vectors
    text(things(("dog",), ("car",)))
    assert encoder.asked == [*sorted({"dog", "hound", "cat", "horse", "pony", "foal"}), "car"]
    assert torch.equal(text(ANIMALS).vectors, animals)
    content = read_cache(tmp_path / "t.safetensors")
    assert set(content.rows) == {"dog", "hound", "cat", "horse", "pony", "foal", "car"}
    assert json.loads(content.metadata["encoder"]) == {"model": "hash"}
    assert json.loads(content.metadata["templates"]) == ["{}"]
    assert "dataseg" in content.metadata


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"encoder": HashText("other")}, "encoder"), ({"templates": "article"}, "templates")],
)
def test_a_cache_of_another_make_is_refused(tmp_path, changed, key):
    path = tmp_path / "t.safetensors"
    TextEmbeddings(HashText(), path, templates="plain")(ANIMALS)
    before = path.read_bytes()
    text = TextEmbeddings(**{"encoder": HashText(), "cache": path, "templates": "plain", **changed})
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} was made with another {key}.*text\.{key}.*delete"):
        text(ANIMALS)
    assert path.read_bytes() == before


def test_other_weights_of_the_same_name_are_not_mixed(tmp_path):
    one, other = HashText(), HashText()
    one.weights_sha256, other.weights_sha256 = "aaa", "bbb"
    TextEmbeddings(one, tmp_path / "t.safetensors")(ANIMALS)
    TextEmbeddings(other, tmp_path / "t.safetensors")(ANIMALS)  # nothing to encode, nothing to mix
    with pytest.raises(UserError, match="other weights_sha256: it says aaa, the encoder bbb"):
        TextEmbeddings(other, tmp_path / "t.safetensors").embed(["car"])


def test_without_an_encoder_the_cache_must_have_all(tmp_path):
    path = tmp_path / "t.safetensors"
    made = TextEmbeddings(HashText(), path)(ANIMALS)
    assert torch.equal(TextEmbeddings(None, path)(ANIMALS).vectors, made.vectors)
    with pytest.raises(UserError, match=r"lacks 2 of 3 names: 'bus', 'car'.*text\.encoder"):
        TextEmbeddings(None, path).embed(["car", "dog", "bus"])
    with pytest.raises(UserError, match=r"does not exist lacks 1 of 1 names: 'car'"):
        TextEmbeddings(None, tmp_path / "none.safetensors").embed(["car"])
    with pytest.raises(UserError, match=r"text\.encoder, or text\.cache"):
        TextEmbeddings(None)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_file_that_is_no_cache_is_refused(tmp_path, content):
    path = tmp_path / "t.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.safetensors: no cache of text embeddings"):
        TextEmbeddings(HashText(), path)(ANIMALS)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    TextEmbeddings(HashText(), path)(ANIMALS)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TextEmbeddings(HashText(), path).embed(["car"])
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"t.safetensors", ".t.safetensors.lock"}


def test_names_and_rows_must_agree(tmp_path):
    with pytest.raises(ValueError, match=r"vectors \[2, 3\] for 1 names"):
        write_cache(tmp_path / "t", torch.zeros(2, 3), ["a"], {})
    with pytest.raises(ValueError, match="1 of them different"):
        write_cache(tmp_path / "t", torch.zeros(2, 3), ["a", "a"], {})


def test_one_builds_while_others_wait(tmp_path):
    started = threading.Barrier(4)
    encoders = [HashText() for _ in range(4)]

    def build(encoder: HashText) -> torch.Tensor:
        started.wait()
        return TextEmbeddings(encoder, tmp_path / "t.safetensors")(ANIMALS).vectors

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(build, encoders))
    assert sum(bool(e.asked) for e in encoders) == 1
    assert all(torch.equal(r, results[0]) for r in results)


def test_the_default_cache_tells_encoders_and_templates_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [TextEmbeddings(HashText()), TextEmbeddings(HashText("b")), TextEmbeddings(HashText(), templates="plain")]
    assert len({t.cache for t in texts}) == 3
    texts[0](ANIMALS)
    assert texts[0].cache.is_file()
    assert texts[0].cache.is_relative_to(tmp_path)


# ---------------------------------------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP architecture of a few hundred thousand weights, registered under its own name."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-test-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-test-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test-clip", pretrained=None)
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def test_open_clip_agrees_with_the_whole_model(tiny_clip, tmp_path):
    import open_clip

    encoder = OpenClipText("tiny-test-clip", str(tiny_clip), device="cpu", batch_size=3)
    text = TextEmbeddings(encoder, tmp_path / "t.safetensors", templates="vild")
    row = text.embed(["dog"])[0]
    model = open_clip.create_model("tiny-test-clip", pretrained=str(tiny_clip)).eval()
    tokens = open_clip.get_tokenizer("tiny-test-clip")([t.format("dog") for t in templates_of("vild")])
    with torch.inference_mode():
        features = model.encode_text(tokens, normalize=True)
    assert torch.allclose(row, F.normalize(features.mean(0), dim=0), atol=1e-5)
    assert len(read_cache(tmp_path / "t.safetensors").metadata["weights_sha256"]) == 64


def test_open_clip_states_its_shape_and_identity(tiny_clip):
    encoder = OpenClipText("tiny-test-clip", str(tiny_clip), device="cpu")
    vectors = encoder.encode(["a dog", "a cat", "a dog"])
    assert vectors.shape == (3, 16)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.equal(vectors[0], vectors[2])
    assert encoder.identity["pretrained"].startswith("sha256 ")


def test_the_activation_of_weights_in_a_file_is_asked_for(tiny_clip):
    with pytest.warns(UserWarning, match=r"set text\.encoder\.quick_gelu=true for them, or false to confirm"):
        assert OpenClipText("tiny-test-clip", str(tiny_clip)).identity["quick_gelu"] == "false"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert OpenClipText("tiny-test-clip", str(tiny_clip), quick_gelu=True).identity["quick_gelu"] == "true"


def test_random_weights_are_the_same_each_time(tiny_clip):
    first, second = (OpenClipText("tiny-test-clip", "random", device="cpu") for _ in range(2))
    assert torch.equal(first.encode(["dog"]), second.encode(["dog"]))
    assert first.weights_sha256 == second.weights_sha256


def test_weights_from_openai_run_with_their_own_activation():
    assert OpenClipText().identity["quick_gelu"] == "true"
    assert OpenClipText("ViT-L-14", "laion2b_s32b_b82k").identity["quick_gelu"] == "false"
    assert OpenClipText("ViT-L-14-quickgelu", "random").identity["quick_gelu"] == "true"


@pytest.mark.parametrize(("model", "weights"), [("ViT-L-14", "no-such-tag"), ("no-such-model", "random")])
def test_unknown_models_and_weights_are_named(model, weights):
    with pytest.raises(UserError, match=rf"text encoder '{model}' with weights(?s:.*)encoder\.pretrained.*text\.cache"):
        OpenClipText(model, weights, device="cpu").encode(["dog"])


def test_it_is_built_from_yaml(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--text", type=TextEmbeddings)
    config = {
        "class_path": "dataseg.text.embeddings.TextEmbeddings",
        "init_args": {
            "encoder": {"class_path": "dataseg.text.encoder.OpenClipText", "init_args": {"model": "ViT-B-32"}},
            "cache": str(tmp_path / "t.safetensors"),
            "templates": "clip",
        },
    }
    text = parser.instantiate(parser.parse_object({"text": config})).text
    assert isinstance(text.encoder, OpenClipText)
    assert text.encoder.model == "ViT-B-32"
    assert text.cache == tmp_path / "t.safetensors"


# ------------------------------------------------------------------------------------------------------------- report


def test_shared_and_near_names_are_reported(tmp_path):
    class Nearly(HashText):
        def encode(self, sentences):
            return super().encode([s.replace("automobile", "car") for s in sentences])

    text = TextEmbeddings(Nearly(), tmp_path / "t.safetensors", templates="plain")
    a = things(("Car",), ("dog", "hound"), name="a")
    b = things(("tree",), ("car", "auto"), ("hound",), name="b")
    c = things(("automobile",), ("dog",), name="c")
    found = report_shared_names([a, b, c], text, threshold=0.95)
    pairs = {(*f.first, *f.second): f.shared for f in found}
    assert pairs == {
        ("a", "Car", "b", "car"): True,
        ("a", "dog", "b", "hound"): True,
        ("a", "dog", "c", "dog"): True,
        ("b", "car", "c", "automobile"): False,
    }
    assert [f.shared for f in found] == [True, True, True, False]
    assert str(found[-1]) == "b: 'car' ~ c: 'automobile' (cosine 1.00)"


# --------------------------------------------------------------------------------------------------- the mini suite's


@pytest.mark.parametrize("name", ["mini_ade", "mini_coco", "mini_objects365", "mini_open"])
def test_the_shipped_cache_has_every_mini_prompt(name):
    classes = TextEmbeddings(None, MINI_CACHE, templates="article")(
        Vocabulary.load(MINI_CACHE.with_name(f"{name}.json"))
    )
    assert classes.vectors.shape[1] == 384
    assert torch.allclose(classes.vectors.norm(dim=1), torch.ones(len(classes.vectors)), atol=1e-4)
    cosines = classes.vectors @ classes.vectors.T
    other = classes.class_index[:, None] != classes.class_index[None, :]
    assert cosines[other].max() < 0.7


def test_the_shipped_cache_tells_where_it_comes_from():
    content = read_cache(MINI_CACHE)
    encoder = json.loads(content.metadata["encoder"])
    assert "all-MiniLM-L6-v2" in encoder["model"]
    assert {"package", "weights_sha256"} <= set(encoder)
    assert "Apache-2.0" in content.metadata["licence"]


def test_synonyms_across_mini_vocabularies_are_near():
    text = TextEmbeddings(None, MINI_CACHE, templates="article")
    vocabularies = [Vocabulary.load(MINI_CACHE.with_name(f"mini_{n}.json")) for n in ("ade", "coco", "objects365")]
    found = report_shared_names(vocabularies, text, threshold=0.6)
    assert set(by_vocabularies(found)) == {
        ("mini_ade", "mini_coco"),
        ("mini_ade", "mini_objects365"),
        ("mini_coco", "mini_objects365"),
    }
    pairs = {(f.first[1], f.second[1]) for f in found}
    assert {("car", "automobile"), ("sofa", "couch"), ("car", "Car"), ("mug", "Cup"), ("person", "pedestrian")} <= pairs

"""make embed: the cache is filled for every vocabulary, and names that come twice are reported."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_model import HashText, things

from dataseg.cli import embed
from dataseg.cli.__main__ import main
from dataseg.structures import UserError, Vocabulary
from dataseg.text.cache import read_cache
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.overlap import shared_within

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "data_modules" / "vocabularies"
EVERY = sorted(FOLDER.glob("*.json"))


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*more: str) -> int:
    return main(["embed", "--config=conf/exp/mini_all.yaml", *more])


def hashed(cache: Path) -> list[str]:
    return [
        '--model.text.encoder={"class_path": "tiny_model.HashText"}',
        f"--model.text.cache={cache}",
        "--model.text.templates=plain",
    ]


def names_of(vocabularies: list[Vocabulary]) -> set[str]:
    return {prompt for v in vocabularies for spec in v.classes for prompt in spec.prompts}


def test_every_vocabulary_is_embedded(tmp_path, capsys):
    cache = tmp_path / "text.safetensors"
    assert run(*hashed(cache), "--vocabularies", *map(str, EVERY)) == 0
    vocabularies = [Vocabulary.load(path) for path in EVERY]
    content = read_cache(cache)
    assert set(content.rows) == names_of(vocabularies)
    assert torch.allclose(content.vectors.norm(dim=1), torch.ones(len(content.rows)))
    output = capsys.readouterr().out
    for v in vocabularies:
        assert f"{v.name}: {len(v)} classes" in output
        assert v.digest in output
    total = len(content.rows)
    assert f"text embeddings: {total} of {total} names" in output
    assert f"{total} names added" in output
    assert "share a name" in output


def test_only_what_is_missing_is_made(tmp_path, capsys):
    cache = tmp_path / "text.safetensors"
    assert run(*hashed(cache)) == 0
    before = read_cache(cache)
    assert set(before.rows) == names_of(
        [Vocabulary.load(FOLDER / f"mini_{n}.json") for n in ("ade", "coco", "objects365")]
    )
    capsys.readouterr()
    assert run(*hashed(cache)) == 0
    assert f"{cache}: 0 names added" in capsys.readouterr().out
    assert read_cache(cache).rows == before.rows


def test_written_in_parts(tmp_path, monkeypatch):
    """What was embedded before an interruption is kept."""
    monkeypatch.setattr(embed, "CHUNK", 2)

    class Interrupted(HashText):
        def encode(self, sentences):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().encode(sentences)

    many = things(*[(letter,) for letter in "abcdefg"])
    cache = tmp_path / "t.safetensors"
    with pytest.raises(KeyboardInterrupt):
        embed.fill(TextEmbeddings(Interrupted(), cache, "plain"), [many], Console(quiet=True))
    assert set(read_cache(cache).rows) == set("abcd")
    encoder = HashText()
    assert embed.fill(TextEmbeddings(encoder, cache, "plain"), [many], Console(quiet=True)) == 3
    assert encoder.asked == ["e", "f", "g"]


def test_a_cache_of_another_encoder_is_refused_though_it_has_all_names(tmp_path):
    some = things(("dog",))
    cache = tmp_path / "t.safetensors"
    embed.fill(TextEmbeddings(HashText("one"), cache, "plain"), [some], Console(quiet=True))
    with pytest.raises(UserError, match="another encoder"):
        embed.fill(TextEmbeddings(HashText("two"), cache, "plain"), [some], Console(quiet=True))


def test_without_an_encoder_what_cannot_be_made_is_left_out(capsys, caplog):
    files = [FOLDER / "mini_coco.json", FOLDER / "pascal_context_59.json"]
    assert run("--vocabularies", *map(str, files)) == 0
    assert "pascal_context_59: left out" in caplog.text
    assert "mini_coco" not in caplog.text
    output = capsys.readouterr().out
    assert "mini_coco: 24 classes" in output
    assert "pascal_context_59: " not in output


def test_without_an_encoder_the_experiment_itself_must_be_complete(capsys):
    assert run("--data.val.ade.vocabulary=pascal_context_59", "--data.train.ade.vocabulary=pascal_context_59") == 1
    assert "Without text.encoder" in capsys.readouterr().err


def test_a_missing_vocabulary_file_is_named(capsys, tmp_path):
    assert run(*hashed(tmp_path / "t.safetensors"), "--vocabularies", "nowhere.json") == 1
    assert "nowhere.json" in capsys.readouterr().err


def test_shared_names(tmp_path, capsys):
    a = things(("screen", "monitor"), ("blind", "Screen"), ("dog",), name="a")
    b = things(("Dog", "puppy"), ("cat",), name="b")
    assert shared_within(a) == [("screen", ["screen", "blind"])]
    assert shared_within(b) == []
    text = TextEmbeddings(HashText(), tmp_path / "t.safetensors", "plain")
    embed.report([a, b], text, 0.999, Console())
    output = capsys.readouterr().out
    assert "WARNING a: 'screen', 'blind' share the name 'screen'" in output
    assert "1 pairs of classes" in output
    assert "a / b: 1: dog = Dog" in output
    assert "0 more pairs" in output


def test_official_words_of_the_experiment_are_embedded(tmp_path):
    """Names are what the experiment's readers say, not only what stands in the files."""
    cache = tmp_path / "t.safetensors"
    record = json.loads((FOLDER / "mini_ade.json").read_text())
    record["classes"][0]["prompts"] = ["a name of my own"]
    own = tmp_path / "own.json"
    own.write_text(json.dumps(record))
    assert run(*hashed(cache), f"--data.val.ade.vocabulary={own}", f"--data.train.ade.vocabulary={own}") == 0
    assert "a name of my own" in read_cache(cache).rows

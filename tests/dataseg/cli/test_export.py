"""From a training run's folder to one file that predicts, to programs, and to the hub."""

import base64
import contextlib
import functools
import json
import pickle
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from cli_runs import SMALL, on_suite
from huggingface_hub import ModelCard, constants

import dataseg
from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint.files import SHARD_STATE
from dataseg.checkpoint.load import read_checkpoint
from dataseg.cli import co_training, export, predict
from dataseg.cli.__main__ import main as dataseg_command
from dataseg.deployment import from_run, hub
from dataseg.deployment.model_file import read_model
from dataseg.network import MaskClassificationNetwork
from dataseg.structures import SegmentMap, UserError, Vocabulary

ROOT = Path(__file__).resolve().parents[3]


def arguments(verb: str, base: Path, *more: str) -> list[str]:
    return [
        verb,
        f"--config={ROOT / 'conf' / 'base.yaml'}",
        f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}",
        *on_suite(base / "mini", base / "runs"),
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--model.postprocess.panoptic.score_threshold=0.0",
        "--model.postprocess.panoptic.overlap_threshold=0.0",
        *SMALL,
        *more,
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with data and a run."""
    base = tmp_path_factory.mktemp("base")
    ensure(base / "mini", MiniSpec(seed=3, size=64, ade=(3, 2), coco=(3, 2), objects365=(3, 2)), progress=False)
    with contextlib.chdir(ROOT):  # the text cache's path is relative to it
        co_training.run(arguments("fit", base, "--exp=small"))
    return base


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def checkpoint(base) -> Path:
    return base / "runs" / "small" / "test" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("out") / "model.safetensors"
    with contextlib.chdir(ROOT):
        assert (
            export.main([str(base / "runs" / "small" / "test" / "checkpoints" / "best.ckpt"), "--out", str(path)]) == 0
        )
    return path


# -------------------------------------------------------------------------------------------------- one file


def test_the_file_holds_all(exported, checkpoint):
    model = read_model(exported)
    content = torch.load(checkpoint, weights_only=True)
    assert model.config == yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())
    assert {name: v.to_json() for name, v in model.vocabularies.items()} == content["vocabularies"]
    assert {f"network.{name}" for name in model.weights} == set(content["state_dict"])
    assert model.text.metadata["template_set"] == "article"
    assert "all-MiniLM-L6-v2" in model.text.metadata["encoder"]
    assert model.provenance["step"] == 2
    metrics = json.loads((checkpoint.parents[1] / "metrics.json").read_text())
    assert model.provenance["figures"] == {
        k: v for k, v in metrics["history"][-1].items() if k != "step" and v is not None
    }


def test_predicts_as_the_evaluation_does(exported, base, checkpoint):
    """Every evaluation image of every dataset, through the trained module and through the loaded file."""
    run = co_training.run(arguments("validate", base, f"--ckpt_path={checkpoint}", "--exp=again"))
    model = dataseg.load(exported)
    compared = 0
    for name, loader in zip(run.datamodule.tasks, run.datamodule.val_dataloader(), strict=True):
        reader = run.datamodule.val_readers[name]
        for batch in loader:
            image = reader.load(reader_index(reader, batch.image_ids[0]))[0]
            with torch.no_grad():
                evaluated = run.model.eval().validation_step(batch, 0)
            for task, (wanted,) in evaluated.items():
                found = model(image, name, task)
                assert found.labels.tolist() == wanted.labels.tolist()
                if isinstance(wanted, SegmentMap):
                    assert torch.equal(found.ids, wanted.ids)
                else:
                    assert found.rles == wanted.rles
                    torch.testing.assert_close(found.scores, wanted.scores)
                compared += len(wanted)
    assert compared > 20


def test_predicts_from_the_checkpoint_as_from_the_file(exported, checkpoint, base, tmp_path):
    contents = []
    for model in (checkpoint, exported):
        out = tmp_path / model.suffix
        options = ["--images", str(base / "mini" / "coco" / "val2017"), "--out", str(out), "--dataset", "coco"]
        assert predict.main(["--model", str(model), *options]) == 0
        contents.append(json.loads((out / predict.RESULT).read_text()))
    assert contents[0] == contents[1]
    assert len(contents[0]["images"]) == 2


def reader_index(reader, image_id: str) -> int:
    return next(i for i in range(len(reader)) if reader.image_id(i) == image_id)


def test_lies_beside_the_configuration_by_default(checkpoint, exported):
    assert export.main([str(checkpoint)]) == 0
    written = checkpoint.parents[1] / "model.safetensors"
    one, other = read_model(written), read_model(exported)  # the order of a safetensors file's metadata is not fixed
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    assert one.vocabularies == other.vocabularies
    written.unlink()


@pytest.mark.parametrize("verb", ["export", "predict"])
def test_a_checkpoint_is_read_once_and_its_network_built_once(verb, checkpoint, base, tmp_path, monkeypatch):
    calls = []
    init = MaskClassificationNetwork.__init__

    @functools.wraps(init)  # its signature is read
    def build(self, *args, **options):
        calls.append("built" if torch.empty(0).device.type == "cpu" else "compared")
        init(self, *args, **options)

    monkeypatch.setattr(from_run, "read_checkpoint", lambda path: calls.append("read") or read_checkpoint(path))
    monkeypatch.setattr(MaskClassificationNetwork, "__init__", build)
    monkeypatch.setattr(export, "write_traced", lambda predictor, *rest: [])
    out, images = str(tmp_path / "m.safetensors"), str(base / "mini" / "coco" / "val2017")
    options = {
        "export": [str(checkpoint), "--out", out, "--program", str(tmp_path / "m.pt2"), "--vocabulary", "coco"],
        "predict": ["--model", str(checkpoint), "--images", images, "--out", str(tmp_path), "--dataset", "coco"],
    }
    assert dataseg_command([verb, *options[verb]]) == 0
    assert calls == ["read", "compared", "built"]  # without memory first


def test_vocabularies_can_be_carried_along(checkpoint, tmp_path):
    extra = Vocabulary.load(ROOT / "data_modules" / "vocabularies" / "mini_ade.json").to_json() | {"name": "extra"}
    file = tmp_path / "extra.json"
    file.write_text(json.dumps(extra))
    out = tmp_path / "m.safetensors"
    assert export.main([str(checkpoint), "--out", str(out), "--vocabularies", str(file)]) == 0
    assert set(read_model(out).vocabularies) == {"ade", "ade_panoptic", "coco", "o365", "extra"}
    file.write_text(json.dumps(extra | {"name": "coco"}))
    with pytest.raises(UserError, match=r"\['coco'\] have the names of datasets"):
        from_run.model_of(checkpoint, vocabularies=[Vocabulary.load(file)])


def test_a_missing_configuration_has_a_remedy(checkpoint, tmp_path, capsys):
    alone = tmp_path / "alone" / "deep" / "alone.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(checkpoint, alone)
    assert dataseg_command(["export", str(alone), "--out", str(tmp_path / "m.safetensors")]) == 1
    message = capsys.readouterr().err
    assert "no config.yaml of its run in" in message
    assert "--config" in message
    assert str(alone.parent) in message
    config = checkpoint.parents[1] / "config.yaml"
    assert export.main([str(alone), "--out", str(tmp_path / "m.safetensors"), "--config", str(config)]) == 0


def test_another_configuration_is_refused(checkpoint, tmp_path):
    settings = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text())
    settings["model"]["network"]["init_args"]["hidden_dim"] = 64
    wrong = tmp_path / "config.yaml"
    wrong.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"do not fit.*of another shape"):
        from_run.model_of(checkpoint, wrong)
    wrong.write_text("trainer: {}")
    with pytest.raises(UserError, match=r"no model\.network"):
        from_run.model_of(checkpoint, wrong)
    wrong.write_text("a: [")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        from_run.model_of(checkpoint, wrong)


def test_a_missing_text_cache_is_one_message(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.safetensors, which does not exist lacks"):
        from_run.model_of(checkpoint, text_cache=tmp_path / "nothing.safetensors")


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_malicious_checkpoint_does_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "bad.ckpt"
    torch.save({"state_dict": Malicious(marker)}, path)
    with pytest.raises(UserError, match=r"bad\.ckpt.*could run code"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(UserError, match=r"bad\.ckpt"):
        read_checkpoint(path)
    assert not marker.exists()


def test_what_is_no_checkpoint_is_named(checkpoint, tmp_path):
    short = tmp_path / "short.ckpt"
    short.write_bytes(checkpoint.read_bytes()[:1000])
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    values = tmp_path / "values.ckpt"
    torch.save([1, 2], values)
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"model.weight": torch.zeros(1)}, "vocabularies": {}}, foreign)
    for path, message in [
        (short, "damaged"),
        (other, "no vocabularies"),
        (values, "no weights"),
        (tmp_path / "missing.ckpt", "there is no such checkpoint"),
        (tmp_path, "not a sharded checkpoint"),
    ]:
        with pytest.raises(UserError, match=message):
            read_checkpoint(path)
    with pytest.raises(UserError, match=r"no weights named network\.\*"):
        from_run.model_of(foreign, checkpoint.parents[1] / "config.yaml")


def test_the_name_must_say_what_it_is(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        export.main([str(checkpoint), "--out", str(tmp_path / "m.bin")])


def test_a_folder_of_shards_is_made_whole(checkpoint, exported, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    run = tmp_path / "run"
    folder = run / "checkpoints" / "step-2.ckpt"
    folder.mkdir(parents=True)
    shutil.copy(checkpoint.parents[1] / "config.yaml", run)
    weights, (optimizer,) = content.pop("state_dict"), content.pop("optimizer_states")
    names = list(weights)
    groups = [g | {"params": [names[i] for i in g["params"]]} for g in optimizer["param_groups"]]
    named = {"state": {names[i]: state for i, state in optimizer["state"].items()}, "param_groups": groups}
    dcp.save({"state_dict": weights, "optimizer_0": named}, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / SHARD_STATE)
    whole, _ = from_run.model_of(folder)
    assert whole.weights.keys() == read_model(exported).weights.keys()
    for name, value in read_model(exported).weights.items():
        assert torch.equal(whole.weights[name], value)
    assert whole.provenance["step"] == 2


# ------------------------------------------------------------------------------------------------------ the hub


class UnreachableError(Exception):
    """As an HTTP library's own errors are: of no common kind, and without a word."""


class FakeApi:
    """Takes what huggingface_hub.HfApi would."""

    calls: list

    def __init__(self, **options) -> None:
        self.calls = FakeApi.calls = []

    def create_repo(self, name, private, repo_type, exist_ok):
        if name == "owner/forbidden":
            raise OSError("403 forbidden")
        if name == "owner/unreachable":
            raise UnreachableError
        self.calls.append(("create", name, private, repo_type, exist_ok))

    def create_commit(self, name, operations, commit_message, repo_type):
        self.calls.append(("commit", name, operations))
        return type("Commit", (), {"commit_url": f"https://hub/{name}/commit/1"})()


def test_push(exported, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    out = tmp_path / "m.safetensors"
    assert (
        export.main([str(checkpoint), "--out", str(out), "--push", "owner/name", "--private", "--license", "mit"]) == 0
    )
    assert "pushed: https://hub/owner/name/commit/1" in capsys.readouterr().out
    (create, commit) = FakeApi.calls
    assert create == ("create", "owner/name", True, "model", True)
    files = {operation.path_in_repo: operation.path_or_fileobj for operation in commit[2]}
    assert set(files) == {"model.safetensors", "README.md", "config.json"}
    assert Path(files["model.safetensors"]).read_bytes() == out.read_bytes()
    assert json.loads(files["config.json"]) == read_model(out).config
    card = files["README.md"].decode()
    assert card == (tmp_path / "README.md").read_text()
    metadata = ModelCard(card).data
    assert (metadata.library_name, metadata.pipeline_tag, metadata.license) == ("dataseg", "image-segmentation", "mit")
    assert {(r.dataset_name, r.metric_type) for r in metadata.eval_results} >= {("coco", "pq"), ("o365", "mask_ap")}
    for expected in (
        'dataseg.load("hf://owner/name")',
        "| `coco` | 4.0 | CocoPanoptic | mini_coco | 24 |",
        "| `ade_panoptic` | evaluated only | AdePanoptic | mini_ade | 20 |",
        "all-MiniLM-L6-v2",
        "| optimisation steps | 2 |",
        "| experiment | `small` |",
        "metric: mean IoU, detectron2 convention; averaging: mean over the classes present in the ground truth",
        "Weights: `mit`.",
    ):
        assert expected in card


def test_the_card_s_snippet_runs_as_it_stands(checkpoint, base, tmp_path, monkeypatch):
    assert export.main([str(checkpoint), "--out", str(tmp_path / "m.safetensors")]) == 0
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    shutil.copy(next((base / "mini" / "coco" / "val2017").iterdir()), tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(snippet, found)
    assert isinstance(found["segments"], SegmentMap)
    assert "Nobody has stated a licence" in (tmp_path / "README.md").read_text()


def test_another_readme_stays_as_it_is(checkpoint, tmp_path, capsys):
    for text, stays in (("# My project\n", True), ("---\nlicense: mit\nlibrary_name: dataseg\n---\n", False)):
        (tmp_path / "README.md").write_text(text)
        assert export.main([str(checkpoint), "--out", str(tmp_path / "m.safetensors")]) == 0
        assert ((tmp_path / "README.md").read_text() == text) == stays
        assert ("is no model card, and stays as it is" in capsys.readouterr().out) == stays


def test_there_and_back_by_a_hub_on_this_machine(checkpoint, exported, tmp_path, monkeypatch):
    """huggingface_hub itself on our side, and what it asks for on the other."""
    with fake_hub(tmp_path, monkeypatch) as stored:
        assert export.main([str(checkpoint), "--out", str(tmp_path / "m.safetensors"), "--push", "owner/name"]) == 0
        assert set(stored) == {"README.md", "config.json", "model.safetensors"}
        model, local = dataseg.load("hf://owner/name"), dataseg.load(exported)
        assert all(
            torch.equal(a, b) for a, b in zip(model.network.parameters(), local.network.parameters(), strict=True)
        )
        assert model.vocabularies == local.vocabularies
        with pytest.raises(UserError, match=r"hf://owner/other: cannot get model\.safetensors.*Repository Not Found"):
            dataseg.load("hf://owner/other")


@contextlib.contextmanager
def fake_hub(folder: Path, monkeypatch):
    """Serves one repository, owner/name; yields its files by name."""
    stored: dict[str, bytes] = {}
    commit = "a" * 40

    class Hub(BaseHTTPRequestHandler):
        def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                reply = {"url": f"{address}/owner/name", "name": "owner/name"}
            elif self.path == "/api/validate-yaml":
                reply = {"errors": [], "warnings": []}
            elif self.path == "/api/models/owner/name/preupload/main":
                files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                reply = {"files": [f | {"shouldIgnore": False} for f in files]}
            elif self.path == "/api/models/owner/name/commit/main":
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        stored[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                reply = {"success": True, "commitOid": commit, "commitUrl": f"{address}/owner/name/commit/{commit}"}
            else:
                return self.answer(404, X_Error_Code="RepoNotFound")
            return self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")

        def do_GET(self):
            content = stored.get(self.path.removeprefix("/owner/name/resolve/main/"))
            if content is None:
                return self.answer(404, X_Error_Code="RepoNotFound")
            return self.answer(200, content, ETag='"1"', X_Repo_Commit=commit)

        do_HEAD = do_GET  # noqa: N815 (the base class calls it so)

        def log_message(self, *words) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stored
    finally:
        server.shutdown()
        server.server_close()


def test_a_refused_push_is_one_message(exported, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    with pytest.raises(UserError, match=r"cannot push to 'owner/forbidden' \(403 forbidden\): sign in"):
        hub.push(exported, "owner/forbidden", "a card")
    with pytest.raises(UserError, match=r"cannot push to 'owner/unreachable' \(UnreachableError\): sign in"):
        hub.push(exported, "owner/unreachable", "a card")


def test_only_exported_models_are_pushed(checkpoint):
    with pytest.raises(UserError, match="not a whole exported model"):
        hub.push(checkpoint, "owner/name", "a card")

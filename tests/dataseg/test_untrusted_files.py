"""Files from others: none runs code, opens another file or the network, or takes memory that it has no bytes for."""

import dataclasses
import inspect
import io
import json
import pickle
import socket
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import tiny
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_model import BACKBONE, CONFIG, make_model

import dataseg
from data_modules import formats
from data_modules.vocabularies import OwnClass
from dataseg.checkpoint import resume
from dataseg.checkpoint.consolidate import consolidate, require_shards
from dataseg.checkpoint.files import SHARD_STATE, step_path
from dataseg.checkpoint.load import read_checkpoint
from dataseg.checkpoint.safe_reader import read_tensors
from dataseg.checkpoint.shard_index import INDEX
from dataseg.checkpoint.validate import problem_of
from dataseg.cli import replay
from dataseg.deployment import from_run
from dataseg.deployment.model_file import FORMAT, write_model
from dataseg.deployment.network import build_network
from dataseg.io.rle import rle_of
from dataseg.network.backbones import timm_factory
from dataseg.structures import UserError, Vocabulary
from dataseg.text.cache import read_cache

DEEP = "[" * 5000 + "]" * 5000


@pytest.fixture(autouse=True)
def _closed(monkeypatch, tmp_path):
    """A module that must not be imported lies in the working directory; nothing may be looked for in the network."""
    (tmp_path / "evilmod.py").write_text("raise SystemExit('it ran')\nclass Foo: ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def refuse(*args, **options):
        raise SystemExit("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def config(**network) -> dict:
    """The tiny model's configuration with other arguments of the network, or of its backbone."""
    content = json.loads(json.dumps(CONFIG))
    arguments = content["model"]["network"]["init_args"]
    arguments |= {name: value for name, value in network.items() if name != "of_backbone"}
    if "of_backbone" in network:
        arguments["backbone"]["init_args"] |= network["of_backbone"]
    return content


# ----------------------------------------------------------------------------------------------- exported models


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backbone": "evilmod.Foo"}, "must be a mapping"),
        ({"backbone": {"class_path": "evilmod.Foo"}}, "evilmod.Foo, which is not of this project"),
        ({"backbone": json.dumps({"class_path": "evilmod.Foo"})}, "must be a mapping"),
        ({"backbone": {"class_path": "dataseg.network.TextClassifier"}}, "must be a Backbone, not a TextClassifier"),
        ({"backbone": {"class_path": "dataseg.network.backbones.timm_factory.create_model"}}, "not of this project"),
        ({"backbone": {"class_path": ["evilmod.Foo"]}}, "class_path must be a name"),
        ({"backbone": {"class_path": "dataseg.network.TimmBackbone", "dict_kwargs": {}}}, "class_path and init_args"),
        ({"classifier": "evilmod.Foo"}, "must be a mapping"),
        ({"classifier": {"class_path": "evilmod.Foo", "init_args": {}}}, "evilmod.Foo"),
        ({"num_queries": "8"}, "num_queries must be int"),
        ({"num_queries": True}, "num_queries must be int"),
        ({"num_queries": {"class_path": "evilmod.Foo"}}, "num_queries must be int"),
        ({"num_queries": 10**9}, "beyond 65,536"),
        ({"num_queries": 10**400}, "beyond 65,536"),
        ({"num_queries": float("nan")}, "no plain value"),
        ({"num_queries": 65_000}, "do not fit the configured network"),
        ({"hidden_dim": 65_536}, "do not fit the configured network"),
        ({"decoder_layers": 10**6}, "beyond 65,536"),
        ({"decoder_layers": 60_000}, "the configured network has more than"),
        ({"pixel_decoder_layers": 60_000}, "the configured network has more than"),
        ({"decoder_layers": -1}, "do not fit the configured network"),
        ({"num_heads": 0}, "fails with ZeroDivisionError"),
        ({"of_backbone": {"name": "hf-hub:evil/model"}}, "no name of an architecture"),
        ({"of_backbone": {"name": "hf_hub:evil/model"}}, "no name of an architecture"),
        ({"of_backbone": {"name": "local-dir:/etc"}}, "no name of an architecture"),
        ({"of_backbone": {"name": "../x"}}, "no name of an architecture"),
        ({"of_backbone": {"options": {"checkpoint_path": "x.pth"}}}, "options checkpoint_path are not taken"),
        ({"of_backbone": {"options": {"pretrained_cfg_overlay": {"file": "x.pth"}}}}, "pretrained_cfg_overlay"),
        ({"of_backbone": {"options": {"pretrained_cfg": {"hf_hub_id": "evil/model"}}}}, "pretrained_cfg"),
        ({"of_backbone": {"options": {"cache_dir": "/tmp"}}}, "cache_dir"),
        ({"of_backbone": {"options": {"pretrained": True}}}, "pretrained"),
        ({"of_backbone": {"options": {"act_layer": "../x"}}}, "letters, digits"),
        ({"of_backbone": {"options": {"depths": [60_000] * 4}}}, "the configured network has more than"),
        ({"of_backbone": {"options": {"dims": [65_536] * 4}}}, "do not fit the configured network"),
        ({"of_backbone": {"options": {"dims": "8"}}}, "cannot be built"),
    ],
)
def test_a_hostile_configuration_is_refused_at_once(changed, words):
    weights = tiny.network().state_dict()
    (Path("x.pth")).write_bytes(b"never opened")
    begun = time.monotonic()
    with pytest.raises(UserError, match="file: ") as stop:
        build_network(config(**changed), weights, "file")
    assert words in str(stop.value)
    assert len(str(stop.value)) < 800
    assert time.monotonic() - begun < 20  # minutes and hundreds of GB, were sizes believed


@pytest.mark.parametrize("name", ["class_vectors", "class_vectors..weight", "backgrounds", "class_vectors.pop.weight"])
def test_odd_names_of_weights_end_in_one_message(name):
    weights = tiny.network().state_dict() | {f"classifier.{name}": torch.zeros(2, 8)}
    with pytest.raises(UserError, match="file: "):
        build_network(CONFIG, weights, "file")


def test_loading_names_the_model_and_imports_nothing(tmp_path):
    for spoilt in ("evilmod.Foo", json.dumps({"class_path": "evilmod.Foo"}), {"class_path": "evilmod.Foo"}):
        write_model(tmp_path / "m.safetensors", make_model(config=config(backbone=spoilt)))
        with pytest.raises(UserError, match=r"m\.safetensors: model\.network cannot be built"):
            dataseg.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("postprocess", ["evilmod.Foo", {"class_path": "evilmod.Foo"}, {"panoptic": "evilmod.Foo"}])
def test_postprocessing_is_of_plain_values(postprocess, tmp_path):
    spoilt = config()
    spoilt["model"]["postprocess"] = postprocess
    write_model(tmp_path / "m.safetensors", make_model(config=spoilt))
    with pytest.raises(UserError, match=r"model\.postprocess cannot be built"):
        dataseg.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "data",
    [
        {"eval_size": "evilmod.Foo"},
        {"eval_scales": 3},
        {"eval_window": {"a": 1}},
        {"eval_transform": {"size": 60_000, "max_size": 60_000}},
        {"eval_scales": [1e6]},
    ],
)
def test_evaluation_settings_are_of_plain_values(data, tmp_path):
    spoilt = config() | {"data": {"init_args": data}}
    write_model(tmp_path / "m.safetensors", make_model(config=spoilt))
    with pytest.raises(UserError, match="data"):
        dataseg.load(tmp_path / "m.safetensors")


def test_packages_are_the_users_choice(monkeypatch, tmp_path):
    (tmp_path / "friendly.py").write_text(
        "from dataseg.network import TimmBackbone\nclass Mine(TimmBackbone):\n    pass\n"
    )
    section = {"class_path": "friendly.Mine", "init_args": BACKBONE}
    write_model(tmp_path / "m.safetensors", make_model(config=config(backbone=section)))
    with pytest.raises(UserError, match=r"packages=\('friendly',\)"):
        dataseg.load(tmp_path / "m.safetensors")
    assert type(dataseg.load(tmp_path / "m.safetensors", packages=["friendly"]).network.backbone).__name__ == "Mine"
    write_model(tmp_path / "m.safetensors", make_model(config=config(backbone="evilmod.Foo")))
    with pytest.raises(UserError, match="must be a mapping"):
        dataseg.load(tmp_path / "m.safetensors", packages=["friendly"])


def test_weights_are_never_asked_for():
    left_out = config()
    del left_out["model"]["network"]["init_args"]["backbone"]["init_args"]["pretrained"]  # whose default is True
    build_network(left_out, tiny.network().state_dict(), "file")


def test_every_listed_option_is_an_architecture_s():
    """None of them is among the arguments that timm's own loading takes."""
    for function in (timm.create_model, timm.models.build_model_with_cfg, timm.models.load_pretrained):
        taken = {p.name for p in inspect.signature(function).parameters.values()} - {"num_classes"}
        assert not taken & timm_factory._ADMITTED
    with timm_factory.restricted(), pytest.raises(UserError):
        timm_factory.probe_model("resnet18", {"checkpoint_path": "x"})


@pytest.mark.parametrize(
    "spoil",
    [
        {"config": DEEP},
        {"config": "[]"},
        {"config": '{"model": "evilmod.Foo"}'},
        {"config": "NaN"},
        {"text": DEEP},
        {"text": "[]"},
        {"text": '{"names": {"dog": 1}}'},
        {"text": '{"names": [["dog"]]}'},
        {"text": '{"names": ["dog", "dog"]}'},
        {"text": '{"names": []}'},
        {"vocabularies": DEEP},
        {"vocabularies": "[1]"},
        {"vocabularies": '{"home": 3}'},
        {"vocabularies": '{"home": {"name": "x", "classes": [{"id": Infinity, "name": "a"}]}}'},
        {"vocabularies": '{"home": {"name": "x", "classes": [3]}}'},
        {"provenance": "[]"},
        {"provenance": "{"},
    ],
)
def test_malformed_records_of_a_model_end_in_one_message(spoil, tmp_path):
    path = tmp_path / "m.safetensors"
    write_model(path, make_model())
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(tensors, path, metadata | spoil)
    with pytest.raises(UserError, match=r"m\.safetensors: not a whole exported model"):
        dataseg.load(path)


@pytest.mark.parametrize("vectors", [torch.full((9, 8), torch.nan), torch.zeros(3), torch.zeros(3, 8)])
def test_vectors_of_a_model_are_checked(vectors, tmp_path):
    model = make_model()
    model.text.vectors = vectors
    write_model(tmp_path / "m.safetensors", model)
    with pytest.raises(UserError, match="not a whole exported model"):
        dataseg.load(tmp_path / "m.safetensors")


# --------------------------------------------------------------------------------------------- sharded checkpoints


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture
def shards(tmp_path) -> Path:
    """As FSDP2 leaves them: weights, an optimiser with plain values, and the rest."""
    folder = step_path(tmp_path / "runs" / "exp" / "run" / "checkpoints", 3)
    folder.mkdir(parents=True)
    optimizer = {
        "state": {"network.w": {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["network.w"], "foreach": None}],
    }
    dcp.save(
        {"state_dict": {"network.w": torch.arange(4.0)}, "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True
    )
    torch.save({"global_step": 3, "vocabularies": {}}, folder / SHARD_STATE)
    return folder


def test_an_honest_folder_is_read(shards):
    assert problem_of(shards) is None
    content = consolidate(shards)
    assert content["state_dict"]["network.w"].tolist() == [0, 1, 2, 3]
    assert content["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.99)
    assert read_checkpoint(shards).step == 3


def rewrite(shards: Path, change) -> None:
    index = pickle.loads((shards / INDEX).read_bytes())
    change(index)
    (shards / INDEX).write_bytes(pickle.dumps(index))


def replaced(index, **changes):
    key = next(iter(index.storage_data))
    index.storage_data[key] = dataclasses.replace(index.storage_data[key], **changes)


def plain_value(shards: Path, value) -> None:
    """Put another pickle in the place of a plain value (the learning rate)."""

    def change(index):
        key = next(k for k in index.storage_data if k.fqn.endswith("lr"))
        buffer = io.BytesIO()
        torch.save(value, buffer)
        (shards / "more.distcp").write_bytes(buffer.getvalue())
        index.storage_data[key] = dataclasses.replace(
            index.storage_data[key], relative_path="more.distcp", offset=0, length=len(buffer.getvalue())
        )

    rewrite(shards, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s, m: (s / INDEX).write_bytes(pickle.dumps(Evil(m))), "it wants to call"),
        (lambda s, m: rewrite(s, lambda i: i.state_dict_metadata.update(x=Evil(m))), "it wants to call"),
        (lambda s, m: plain_value(s, Evil(m)), "Weights only load failed"),
        (lambda s, m: (s / INDEX).write_bytes(b"cbuiltins\neval\n(S'1'\ntR."), "it wants to call builtins.eval"),
        (lambda s, m: (s / INDEX).write_bytes(b""), "EOFError"),
        (lambda s, m: (s / INDEX).unlink(), "FileNotFoundError"),
        (lambda s, m: (s / INDEX).write_bytes(pickle.dumps({"storage_data": 3})), "AttributeError"),
        (lambda s, m: rewrite(s, lambda i: replaced(i, relative_path="../../../secret")), "no file of the folder"),
        (lambda s, m: rewrite(s, lambda i: replaced(i, relative_path="/etc/passwd")), "no file of the folder"),
        (lambda s, m: rewrite(s, lambda i: replaced(i, length=10**15)), "cut short"),
        (lambda s, m: rewrite(s, lambda i: replaced(i, offset=-1)), "cut short"),
        (lambda s, m: rewrite(s, huge), "its tensors would have"),
        (lambda s, m: rewrite(s, lambda i: i.planner_data.update({"state_dict.x": ("a", 10**9)})), "no names"),
    ],
)
def test_a_planted_folder_runs_nothing(shards, tmp_path, spoil, words):
    marker = tmp_path / "ran"
    spoil(shards, marker)
    for use in (consolidate, require_shards, read_checkpoint, lambda path: resume.find(path.parents[2], None)):
        with pytest.raises(UserError) as stop:
            use(shards)
        assert words in str(stop.value) or "none of the 1 checkpoints" in str(stop.value)
    assert words in problem_of(shards)
    assert not marker.exists()


def huge(index) -> None:
    index.state_dict_metadata["state_dict.network.w"].size = torch.Size([10**6, 10**6])


# ----------------------------------------------------------------------------------- checkpoints of one file, runs


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"network.w": 3}, "vocabularies": {}},
        {"state_dict": {3: torch.zeros(1)}, "vocabularies": {}},
        {"state_dict": {"network.w": torch.zeros(1).expand(10**6, 10**6)}, "vocabularies": {}},
        {"state_dict": {"network.w": torch.zeros(1)}, "vocabularies": {}, "global_step": "x"},
    ],
)
def test_malformed_checkpoints_end_in_one_message(content, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: its state_dict or global_step"):
        read_checkpoint(tmp_path / "x.ckpt")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: evilmod.Foo", "not the resolved configuration"),
        ("[]", "not the resolved configuration"),
        ("!!python/object/apply:os.system [touch ran]", "cannot be read as YAML"),
        (BOMB + "model: {network: *a39, text: {}}", "cannot be read as YAML"),
        ("[" * 600 + "]" * 600, "cannot be read as YAML"),
        ("model: {network: evilmod.Foo, text: {}}", "must be a mapping"),
        ("model: {network: {class_path: evilmod.Foo}, text: {}}", "not of this project"),
    ],
)
def test_a_run_of_somebody_else_imports_nothing(text, words, tmp_path):
    torch.save({"state_dict": {"network.w": torch.zeros(1)}, "vocabularies": {}}, tmp_path / "x.ckpt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError) as stop:
        from_run.model_of(tmp_path / "x.ckpt")
    assert words in str(stop.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"facts": 3},
        {"facts": {}, "seeds": [], "batches": []},
        {"facts": {"device": "cpu", "precision": "32"}, "seeds": ["x"], "batches": []},
        {
            "facts": {"device": "cpu", "precision": "32"},
            "seeds": [],
            "batches": [],
            "classes": {"a": {"vocabulary": 3}},
        },
        {"facts": torch.zeros(1).expand(10**6, 10**6)},
        {"facts": {"device": "cpu", "precision": "32"}, "seeds": [1], "batches": [[{"targets": [{"kind": "os"}]}]]},
    ],
)
def test_malformed_replay_files_end_in_one_message(content, tmp_path):
    file = tmp_path / "replay" / "step-1-rank-0.pt"
    file.parent.mkdir()
    torch.save(content, file)
    torch.save({}, tmp_path / "replay" / "step-1-weights.pt")
    with pytest.raises(UserError, match=r"step-1-rank-0\.pt: not a replay file"):
        replay.replay(file)


# ------------------------------------------------------------------------------------------- weights, text, classes


@pytest.mark.parametrize(
    "index",
    [
        DEEP,
        "[]",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "x", "b": 3}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": ".."}}',
        '{"weight_map": {"a": "../model.safetensors"}}',
        '{"weight_map": {"a": "evil.bin"}}',
    ],
)
def test_malformed_indexes_end_in_one_message(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"index\.json: not an index of safetensors shards"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("names", "vectors"),
    [
        (DEEP, torch.zeros(1, 4)),
        ('["a", 3]', torch.zeros(2, 4)),
        ('{"a": 0}', torch.zeros(1, 4)),
        ('["a", "b"]', torch.zeros(1, 4)),
        ('["a", "a"]', torch.zeros(2, 4)),
        ('["a"]', torch.full((1, 4), torch.nan)),
        ('["a"]', torch.zeros(1)),
        ('["a"]', torch.zeros(1, 4, dtype=torch.long)),
    ],
)
def test_malformed_text_caches_end_in_one_message(names, vectors, tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"vectors": vectors}, path, {"format": "dataseg text embeddings 1", "names": names})
    with pytest.raises(UserError, match=r"t\.safetensors: no cache of text embeddings"):
        read_cache(path)


@pytest.mark.parametrize(
    "text", [DEEP, "3", '{"name": "x", "classes": [{"id": Infinity, "name": "a"}]}', '{"name": 3}']
)
def test_malformed_vocabularies_end_in_one_message(text, tmp_path):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(UserError, match=r"v\.json: not a vocabulary file"):
        Vocabulary.load(tmp_path / "v.json")


def test_the_format_is_still_the_one_of_0_1():
    assert FORMAT == "dataseg model 1"


# ------------------------------------------------------------------------------------------------ annotations


def _label_studio(root, height, width):
    value = {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["a"]}
    region = {"type": "polygonlabels", "value": value, "original_height": height, "original_width": width}
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
    (root / "project.json").write_text(json.dumps([task]))
    return formats.LabelStudio(".", images=".")


def _labelme(root, height, width):
    shape = {"label": "a", "points": [[1, 1], [5, 1], [5, 5]], "shape_type": "polygon"}
    about = {"shapes": [shape], "imagePath": "a.png", "imageHeight": height, "imageWidth": width}
    (root / "a.json").write_text(json.dumps(about))
    return formats.Labelme(".", images=".", annotations=".")


def _cvat(root, height, width):
    polygon = '<polygon label="a" points="1,1;5,1;5,5"/>'
    image = f'<image id="0" name="a.png" height="{height}" width="{width}">{polygon}</image>'
    (root / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    return formats.CvatImages(".", images=".")


def _cvat_mask(root, height, width):
    run = int(height) * int(width)
    mask = f'<mask label="a" left="0" top="0" height="{height}" width="{width}" rle="{run}"/>'
    image = f'<image id="0" name="a.png" height="8" width="8">{mask}</image>'
    (root / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    return formats.CvatImages(".", images=".")


def _coco(root, height, width):
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5]], "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    content = {"images": [image], "annotations": [polygon], "categories": [{"id": 1, "name": "a"}]}
    (root / "a.json").write_text(json.dumps(content))
    return formats.CocoInstances(root=".", annotations="a.json", images=".", vocabulary=[OwnClass("a", 1)])


@pytest.mark.parametrize("write", [_label_studio, _labelme, _cvat, _cvat_mask, _coco])
@pytest.mark.parametrize(("height", "width"), [(10**9, 10**9), (10**6, 10**6), (-5, 8)])
def test_sizes_that_annotations_state_are_not_believed(tmp_path, write, height, width):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    begun = time.monotonic()
    with pytest.raises(UserError, match="must be positive, 120,000,000 pixels at most"):
        write(tmp_path, height, width).setup(tmp_path)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("far", [1e9, 1e6, -1e9, 1e300, float("inf"), float("nan")])
@pytest.mark.parametrize("tool", ["labelme", "cvat", "via", "label_studio", "yolo", "coco"])
def test_coordinates_far_outside_end_in_one_message(tmp_path, tool, far):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((100, 100, 3), np.uint8))
    points = [[1, 1], [far, 1], [5, 5]]
    flat = [number for point in points for number in point]
    match tool:
        case "labelme":
            reader = _labelme(tmp_path, 100, 100)
            content = json.loads((tmp_path / "a.json").read_text())
            content["shapes"][0]["points"] = points
            (tmp_path / "a.json").write_text(json.dumps(content))
        case "cvat":
            reader = _cvat(tmp_path, 100, 100)
            text = (tmp_path / "annotations.xml").read_text()
            (tmp_path / "annotations.xml").write_text(text.replace("5,1", f"{far},1"))
        case "via":
            shape = {"name": "polygon", "all_points_x": flat[::2], "all_points_y": flat[1::2]}
            regions = [{"shape_attributes": shape, "region_attributes": {"class": "a"}}]
            (tmp_path / "via.json").write_text(json.dumps({"a": {"filename": "a.png", "size": 1, "regions": regions}}))
            reader = formats.Via(".", annotations="via.json", images=".")
        case "label_studio":
            reader = _label_studio(tmp_path, 100, 100)
            content = json.loads((tmp_path / "project.json").read_text())
            content[0]["annotations"][0]["result"][0]["value"]["points"] = points
            (tmp_path / "project.json").write_text(json.dumps(content))
        case "yolo":
            (tmp_path / "data.yaml").write_text("train: .\nnames: [a]\n")
            (tmp_path / "a.txt").write_text(" ".join(map(str, [0, *flat])))
            reader = formats.Yolo(".")
        case "coco":
            reader = _coco(tmp_path, 100, 100)
            content = json.loads((tmp_path / "a.json").read_text())
            content["annotations"][0]["segmentation"] = [flat]
            (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"far outside its image|is no share|is no percent|not finite|malformed|\b(nan|inf)\b"
    ):
        reader.setup(tmp_path)


def test_names_of_a_data_yaml_are_texts(tmp_path):
    (tmp_path / "data.yaml").write_text(BOMB + "train: .\nnames: {0: *a39}\n")
    with pytest.raises(UserError, match="'names' must be a list of names"):
        formats.Yolo(".").setup(tmp_path)


@pytest.mark.parametrize("counts", [[2**62, 2**62, 2**62, 2**62 + 64], [2**32, 64], [64 - 2**32, 2**32]])
def test_run_lengths_that_overflow_are_refused(counts):
    with pytest.raises(UserError, match="run lengths that add up to"):
        rle_of({"size": [8, 8], "counts": counts}, 8, 8)

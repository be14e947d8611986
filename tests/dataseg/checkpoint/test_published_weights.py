"""Published weights through the command line: what `make train` and `make eval` do with them."""

import contextlib
from pathlib import Path

import pytest
import torch
from cli_runs import ROOT
from safetensors.torch import save_file

from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint.mask2former import load_published
from dataseg.cli import co_training
from dataseg.structures import ClassEmbeddings
from dataseg.training import build

NUM_CLASSES = 20  # of mini-ADE
BACKBONE = "--model.network.init_args.backbone.init_args"


@pytest.fixture
def published(mask2former_pair, tmp_path) -> Path:
    """A Hugging Face folder of a small model with a class head for mini-ADE."""
    if mask2former_pair.name != "resnet":
        pytest.skip("one architecture is enough here")
    state = dict(mask2former_pair.theirs.state_dict())
    state["class_predictor.weight"] = torch.randn(NUM_CLASSES + 1, 64)
    state["class_predictor.bias"] = torch.randn(NUM_CLASSES + 1)
    state["criterion.empty_weight"] = torch.ones(NUM_CLASSES + 1)
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What the first rank is told."""
    messages: list[str] = []
    monkeypatch.setattr(build, "rank_zero_info", messages.append)
    return messages


def run(verb: str, base: Path, *more: str) -> co_training.CoTrainingCLI:
    ensure(base / "mini", MiniSpec(seed=3, size=64, ade=(3, 2), coco=(3, 2), objects365=(3, 2)), progress=False)
    with contextlib.chdir(ROOT):  # paths of readers and of the text cache are relative to it
        return co_training.run(
            [
                verb,
                "--config=conf/exp/mini_ade.yaml",
                f"--runs={base / 'runs'}",
                f"--data.root={base / 'mini'}",
                "--data.mini=null",
                "--data.train_transform.image_size=64",
                "--data.eval_transform.size=64",
                "--data.batch_size=2",
                "--trainer.accelerator=cpu",
                "--trainer.max_steps=1",
                "--trainer.val_check_interval=1",
                f"{BACKBONE}.name=resnet50",
                f"{BACKBONE}.freeze_norm=true",
                f"{BACKBONE}.options={{layers: [1, 2, 1, 1], channels: [8, 16, 24, 32]}}",
                "--model.network.init_args.hidden_dim=64",
                "--model.network.init_args.num_queries=20",
                "--model.network.init_args.decoder_layers=4",
                "--model.network.init_args.num_heads=4",
                "--model.network.init_args.feedforward_dim=80",
                "--model.network.init_args.pixel_decoder_feedforward_dim=96",
                "--model.criterion.init_args.num_points=64",
                "--data.val={ade: conf/data/mini/ade_val.yaml}",
                *more,
            ]
        )


@torch.no_grad()
def test_evaluated_as_published(mask2former_pair, published, tmp_path, told):
    # the backbone's own first weights are not fetched: they would be overwritten
    linear = (f"--model.weights={published}", "--model.classifier=linear", f"{BACKBONE}.pretrained=true")
    # text vectors are not even looked for
    done = run("validate", tmp_path, *linear, f"--model.text.init_args.cache={tmp_path / 'absent'}")
    assert "tensors loaded; 1 dropped (a constant of the loss)" in "".join(told)
    assert "class head of" in done.model.text_provenance
    assert done.config.validate.model.network.init_args.backbone.init_args.pretrained is False
    wanted = mask2former_pair.make_ours()
    load_published(wanted, published, class_head="linear")
    (loader,) = done.datamodule.val_dataloader()
    classes = ClassEmbeddings(torch.zeros(NUM_CLASSES, 1), torch.arange(NUM_CLASSES))
    for batch in loader:
        ours = done.model.eval().network(batch.images, done.model.classes(batch.dataset))[-1]
        theirs = wanted(batch.images, classes)[-1]
        torch.testing.assert_close(ours.class_logits, theirs.class_logits)
        torch.testing.assert_close(ours.mask_logits, theirs.mask_logits)
    with pytest.raises(ValueError, match=r"the class head of .* knows 20 classes.*\{'coco': 24\}.*--data\.val="):
        run("validate", tmp_path, *linear, "--data.val={coco: conf/data/mini/coco_val.yaml}")


def test_training_starts_from_them(mask2former_pair, published, tmp_path, caplog, told):
    done = run("fit", tmp_path, f"--model.weights={published}", "--model.optimization.lr=1e-30")
    assert "its class head is dropped" in caplog.text
    assert "2 dropped (class head)" in "".join(told)
    network = mask2former_pair.make_ours()
    load_published(network, published, class_head="linear")
    wanted = network.state_dict()
    trained = done.model.network.state_dict()
    assert set(wanted) - set(trained) == {"classifier.linear.weight", "classifier.linear.bias"}
    for name in set(wanted) & set(trained):
        torch.testing.assert_close(trained[name], wanted[name])


def test_mistakes_are_one_message(published, tmp_path):
    path = published / "model.safetensors"
    with pytest.raises(ValueError, match=r".*published: another architecture: num_queries 20 \(network: 21\)"):
        run("fit", tmp_path, f"--model.weights={published}", "--model.network.init_args.num_queries=21")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r".*model\.safetensors: truncated.*fetch it again"):
        run("fit", tmp_path, f"--model.weights={published}")
    with pytest.raises(ValueError, match=r"model\.classifier=linear keeps .*: give model\.weights too"):
        run("validate", tmp_path, "--model.classifier=linear")

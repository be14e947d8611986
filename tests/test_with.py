"""Every overlay of conf/with in a run of its own: three steps, and what must be different from a run without it."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from cli_runs import ROOT, SMALL, on_suite

import dataseg
from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training, export
from dataseg.structures import UserError

OVERLAYS = sorted(
    path.stem
    for path in (ROOT / "conf" / "with").glob("*.yaml")
    if "callbacks+:" not in path.read_text()  # ema: see test_resume; early_stopping: below
)


class Recorder(pl.Callback):
    """Weights before, terms of each step's losses, gradients of the first step."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.terms, self.gradients, self.images = [], {}, []
        self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.terms.append({d: {n: float(v) for n, v in terms.items()} for d, terms in outputs["terms"].items()})
        self.images.append({name: len(part) for name, part in batch.items() if part is not None})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            self.gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    spec = MiniSpec(seed=3, size=64, ade=(3, 2), coco=(6, 2), objects365=(6, 2))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)  # the text cache's path is relative to it


def run(suite: Path, runs: Path, overlays: list[str], *more: str, verb: str = "fit"):
    return co_training.run(
        [
            verb,
            f"--config={ROOT / 'conf' / 'base.yaml'}",
            f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}",
            *(f"--config={ROOT / 'conf' / 'with' / name}.yaml" for name in overlays),
            "--exp=with",
            *on_suite(suite, runs),
            "--data.batch_size=2",
            "--trainer.max_steps=3",
            "--trainer.val_check_interval=3",
            "--trainer.num_sanity_val_steps=0",
            "--trainer.enable_model_summary=false",
            *SMALL,
            "--model.optimization.warmup_steps=0",
            *more,
        ]
    )


QUICK = [
    '--trainer.callbacks=[{"class_path": "test_with.Recorder"}]',
    "--trainer.limit_val_batches=0",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
]


def recorded(suite: Path, runs: Path, overlays: list[str]):
    cli = run(suite, runs, overlays, *QUICK)
    (recorder,) = (c for c in cli.trainer.callbacks if type(c).__name__ == "Recorder")
    return cli, recorder


@pytest.fixture(scope="module")
def plain(suite, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return recorded(suite, tmp_path_factory.mktemp("plain"), [])[1]


def changed(cli, recorder, part: str) -> set[str]:
    """Names below a part of the network whose values training changed."""
    after = cli.model.state_dict()
    return {
        name.removeprefix(part)
        for name, value in recorder.before.items()
        if name.startswith(part) and not torch.equal(after[name], value)
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_three_steps(overlay, suite, tmp_path, plain):
    cli, found = recorded(suite, tmp_path, [overlay])
    assert cli.trainer.global_step == 3
    values = [value for step in found.terms for terms in step.values() for value in terms.values()]
    assert torch.tensor(values).isfinite().all()
    assert set(found.gradients) == {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in found.gradients.values())
    CHECKS[overlay](cli, found, plain)


def check_merge_predictions(cli, found, plain):
    assert found.terms[0].keys() == plain.terms[0].keys()
    for (dataset, mine), (_, theirs) in zip(*(r.terms[0].items() for r in (found, plain)), strict=True):
        assert (mine == theirs) == (dataset == "o365")


def check_merge_max(cli, found, plain):
    assert cli.model.postprocess.semantic.merge == "max"
    assert found.terms == plain.terms


def check_mixed_batches(cli, found, plain):
    assert found.images == [{"ade": 1, "coco": 4, "o365": 4}] * 3


def check_ratios_equal(cli, found, plain):
    assert [list(images) for images in found.images] != [list(images) for images in plain.images]
    assert sorted(name for images in found.images for name in images) == ["ade", "coco", "o365"]


def check_official_optimizer(cli, found, plain):
    decays = {id(p): g["weight_decay"] for g in cli.trainer.optimizers[0].param_groups for p in g["params"]}
    assert decays[id(cli.model.network.pixel_decoder.mask_projection.bias)] == 0.05
    assert cli.model.optimization.milestones == (0.889, 0.963)
    assert found.terms[0] == plain.terms[0]


def check_classifier_centered(cli, found, plain):
    of_vocabulary = {spec.vocabulary.name: cli.model.classes(name) for name, spec in cli.datamodule.specs.items()}
    center = torch.cat([classes.vectors for classes in of_vocabulary.values()]).mean(0)
    torch.testing.assert_close(cli.model.network.classifier.center, center)
    assert found.terms != plain.terms


def check_classifier_learnt(cli, found, plain):
    vectors = {name: value for name, value in found.before.items() if ".class_vectors." in name}
    assert {name: len(value) for name, value in vectors.items()} == {
        f"network.classifier.class_vectors.{v.name}.weight": len(v)
        for v in (spec.vocabulary for spec in cli.datamodule.specs.values())
    }
    seen = {cli.datamodule.specs[name].vocabulary.name for images in found.images for name in images}
    assert changed(cli, found, "network.classifier.class_vectors.") >= {f"{name}.weight" for name in seen}
    groups = {id(p): group["weight_decay"] for group in cli.trainer.optimizers[0].param_groups for p in group["params"]}
    assert all(groups[id(p)] == 0 for p in cli.model.network.classifier.class_vectors.parameters())
    assert "learnt" in cli.model.text_provenance
    texts = [v for name, v in cli.model.named_buffers() if name.endswith(".vectors")]
    assert texts
    assert not any(v.any() for v in texts)


def check_fine_tune(cli, found, plain):
    assert found.terms == plain.terms  # numbers of steps alone, which the command line sets here


def check_background_separate(cli, found, plain):
    seen = {cli.datamodule.specs[name].vocabulary.name for images in found.images for name in images}
    assert changed(cli, found, "network.classifier.backgrounds.") >= seen
    after = [value for name, value in cli.model.state_dict().items() if ".backgrounds." in name]
    assert not any(torch.equal(a, b) for i, a in enumerate(after) for b in after[:i])
    assert "network.classifier.background" in plain.before.keys() - found.before.keys()
    assert found.terms[0] == plain.terms[0]  # all start as the shared one


def of_boxes(recorder):
    return [terms["o365"] for terms in recorder.terms if "o365" in terms]


def check_box_off(cli, found, plain):
    assert all(terms["projection"] > 0 for terms in of_boxes(plain))
    assert all(terms["projection"] == 0 and terms["class"] > 0 for terms in of_boxes(found))


def check_box_affinity(cli, found, plain):
    assert all(terms["affinity"] >= 0 and terms["projection"] > 0 for terms in of_boxes(found))  # 0: all background
    assert not any("affinity" in terms for terms in of_boxes(plain))
    assert cli.model.criterion.weights["affinity"] == cli.model.criterion.weights["projection"]


def test_a_run_that_gets_no_better_stops(suite, tmp_path):
    options = [f"--trainer.callbacks.{key}" for key in ("monitor=coco.pq", "patience=1", "min_delta=1000")]
    cli = run(suite, tmp_path, ["early_stopping"], *options, "--trainer.val_check_interval=1")
    assert cli.trainer.global_step == 2


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}


def test_all_that_can_be_are_combined(suite, tmp_path):
    cli, found = recorded(suite, tmp_path, [name for name in OVERLAYS if name != "box_off"])
    assert [set(terms) for terms in found.terms] == [{"ade", "coco", "o365"}] * 3
    assert all(gradient.isfinite().all() for gradient in found.gradients.values())
    assert cli.model.merge == "predictions"


@pytest.fixture(scope="module")
def own_vectors(suite, tmp_path_factory) -> Path:
    """Checkpoint of a run whose vocabularies have classes and backgrounds of their own."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        run(suite, runs, ["classifier_learnt", "background_separate"])
    return runs / "with" / "test" / "checkpoints" / "last.ckpt"


def test_an_exported_model_has_the_learnt_vectors(own_vectors, suite, tmp_path):
    options = [f"--ckpt_path={own_vectors}", "--model.postprocess.panoptic.score_threshold=0.0"]
    cli = run(suite, tmp_path, ["classifier_learnt", "background_separate"], *options, verb="validate")
    assert export.main([str(own_vectors), "--out", str(tmp_path / "model.safetensors")]) == 0
    model = dataseg.load(tmp_path / "model.safetensors")
    loaded, trained = model.network.state_dict(), torch.load(own_vectors, weights_only=True)["state_dict"]
    assert any("class_vectors" in name for name in loaded)
    assert all(torch.equal(trained[f"network.{name}"], value) for name, value in loaded.items())
    batch = next(iter(cli.datamodule.val_dataloader()[0]))
    name, spec = batch.dataset, cli.datamodule.specs[batch.dataset]
    with torch.no_grad():
        wanted = cli.model.eval().network(batch.images, cli.model.classes(name))[-1]
        found = model.network(batch.images, model.classes(spec.vocabulary))[-1]
    assert torch.equal(found.class_logits, wanted.class_logits)
    with pytest.raises(UserError, match=r"'given names' of 2 classes cannot be classified"):
        model(torch.zeros(64, 64, 3, dtype=torch.uint8), spec.vocabulary.names[:2])  # it has text vectors of them


def test_other_data_sets_are_evaluated(own_vectors, suite, tmp_path, caplog):
    """A set that training knew not keeps its start; one that is not evaluated is not missed."""
    state = torch.load(own_vectors, weights_only=True)
    gone = [name for name in state["state_dict"] if "mini_coco" in name]
    assert len(gone) == 2
    for name in gone:
        state["state_dict"][name.replace("mini_coco", "elsewhere")] = state["state_dict"].pop(name)
    torch.save(state, tmp_path / "other.ckpt")
    options = [f"--ckpt_path={tmp_path / 'other.ckpt'}", "--trainer.limit_val_batches=1"]
    run(suite, tmp_path, ["classifier_learnt", "background_separate"], *options, verb="validate")
    assert "without the vocabularies ['mini_coco']" in caplog.text


@pytest.mark.parametrize("option", ["classifier=learnt", "background=separate"])
def test_a_linear_classifier_has_no_vocabularies(option, suite, tmp_path):
    linear = '{"class_path": "dataseg.network.LinearClassifier", "init_args": {"hidden_dim": 32, "num_classes": 3}}'
    with pytest.raises(ValueError, match=r"need a TextClassifier as the network's classifier, not LinearClassifier"):
        run(suite, tmp_path, [], f"--model.network.init_args.classifier={linear}", f"--model.{option}")

"""The command line on small datasets in the official layouts: files in, checkpoint and figures out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_runs import NO_PICTURES, on_suite
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training
from dataseg.cli.__main__ import main
from dataseg.structures import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = MiniSpec(seed=3, size=64, ade=(6, 4), coco=(8, 4), objects365=(8, 6), open=4)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return ensure(tmp_path_factory.mktemp("data") / "mini", SMALL, progress=False)


def arguments(verb: str, suite: Path, runs: Path, *more: str) -> list[str]:
    return [
        verb,
        f"--config={ROOT / 'conf' / 'base.yaml'}",
        f"--config={ROOT / 'conf' / 'exp' / 'mini_all.yaml'}",
        "--exp=mini_all",
        *on_suite(suite, runs),
        "--data.batch_size=2",
        "--data.num_workers=0",
        *more,
    ]


@pytest.fixture(scope="module")
def run(suite, tmp_path_factory) -> Path:
    """A trained run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    co_training.run(
        arguments(
            "fit",
            suite,
            runs,
            "--trainer.max_steps=9",
            "--trainer.val_check_interval=9",
            "--trainer.log_every_n_steps=1",
        )
    )
    return runs / "mini_all" / "test"


def test_metrics_of_every_data_set(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for key in ("ade.miou", "coco.pq", "ade_panoptic.pq", "o365.mask_ap", "o365.mask_ap50", "score"):
        assert 0 <= metrics[key] <= 100
    assert metrics["run"]["step"] == 9
    assert metrics["run"]["seed"] == 0
    assert metrics["history"][-1]["step"] == 9
    assert set(metrics["per_class"]) == {"ade.semantic", "coco.panoptic", "ade_panoptic.panoptic", "o365.instance"}
    for convention in metrics["conventions"].values():
        assert {"averaging", "crowd", "vocabulary", "text", "merge", "postprocess"} <= set(convention)


def test_resolved_configuration_stands_beside(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 9
    assert config["data"]["init_args"]["ratios"] == {"ade": 1.0, "coco": 4.0, "o365": 4.0}


def test_checkpoints(run):
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "step-8.ckpt", "step-9.ckpt"}


def test_tensorboard_shows_losses_rates_sampling_and_panels(run):
    events = EventAccumulator(str(run))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    for dataset, terms in {"ade": ("mask", "dice"), "coco": ("mask", "class"), "o365": ("projection",)}.items():
        assert {f"loss/{dataset}/{term}" for term in terms} <= scalars
    assert {"sampling/ade", "sampling/coco", "sampling/o365", "throughput/images_per_second"} <= scalars
    assert any(tag.startswith("lr") for tag in scalars)
    assert {"metrics/ade.miou", "metrics/coco.pq", "metrics/score"} <= scalars
    shares = {name: events.Scalars(f"sampling/{name}")[-1].value for name in ("ade", "coco", "o365")}
    assert shares == pytest.approx({"ade": 1 / 9, "coco": 4 / 9, "o365": 4 / 9})  # one whole block of 1 + 4 + 4 steps
    panels = events.Tags()["images"]
    for title in ("ade.semantic/", "coco.panoptic/", "ade_panoptic.panoptic/", "o365.instance/"):
        assert any(tag.startswith(f"pictures.{title}") for tag in panels)
    groups = sorted({tag.partition("/")[0] for kind in ("scalars", "images") for tag in events.Tags()[kind]})
    assert groups[0] == "loss"  # what TensorBoard opens on, below the charts of all datasets
    for name, last in {"loss_coco": "loss/coco/total", "score_coco.pq": "metrics/coco.pq"}.items():
        of_dataset = EventAccumulator(str(run / f"datasets_{name}")).Reload()
        assert of_dataset.Scalars(f"datasets/{name.partition('_')[0]}")[-1].value == events.Scalars(last)[-1].value


def test_evaluation_repeats_the_figures_exactly(run, suite, tmp_path):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    co_training.run(arguments("validate", suite, tmp_path, checkpoint, NO_PICTURES))
    trained = json.loads((run / "metrics.json").read_text())
    again = json.loads((tmp_path / "mini_all" / "test" / "metrics.json").read_text())
    figures = {key for key, value in trained.items() if not isinstance(value, dict | list)}
    assert len(figures) > 20
    assert {k: again[k] for k in figures} == {k: trained[k] for k in figures}
    assert again["run"]["step"] == trained["run"]["step"] == 9


def test_evaluation_leaves_the_files_of_its_training_run_alone(run, suite):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    checkpoint = run / "checkpoints" / "step-8.ckpt"
    more = ("--trainer.limit_val_batches=1", f"--ckpt_path={checkpoint}")
    co_training.run(arguments("validate", suite, run.parents[1], *more))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    metrics = json.loads((run.with_name("test_eval") / "metrics.json").read_text())
    assert metrics["run"]["step"] == 8
    assert metrics["run"]["checkpoint"] == str(checkpoint)


def test_one_checkpoint_is_evaluated_on_sets_it_was_not_trained_on(suite, tmp_path):
    more = ("--data.ratios={ade: 1}", "--trainer.max_steps=2")
    co_training.run(arguments("fit", suite, tmp_path / "runs", *more, "--trainer.limit_val_batches=0"))
    checkpoint = tmp_path / "runs" / "mini_all" / "test" / "checkpoints" / "last.ckpt"
    overlay = f"--config={ROOT / 'conf' / 'on' / 'mini_all.yaml'}"
    co_training.run(arguments("validate", suite, tmp_path, overlay, f"--ckpt_path={checkpoint}", NO_PICTURES))
    metrics = json.loads((tmp_path / "mini_all" / "test" / "metrics.json").read_text())
    for key in ("ade.miou", "coco.pq", "ade_panoptic.pq", "o365.mask_ap", "open.miou", "open.pq"):
        assert 0 <= metrics[key] <= 100
    assert "settee" in metrics["per_class"]["open.semantic"]


def test_sets_that_are_missing_stand_in_no_result(suite, run, tmp_path, caplog):
    gone = {"class_path": "data_modules.formats.CocoPanoptic", "init_args": {"root": "gone"}}
    val = {"ade": str(ROOT / "conf" / "data" / "mini" / "ade_val.yaml"), "gone": gone}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"init_args": {"missing": "skip", "val": val}}}))
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    co_training.run(arguments("validate", suite, tmp_path, f"--config={overlay}", checkpoint, NO_PICTURES))
    assert caplog.text.count("1 of 2 evaluation sets are not below") == 1
    metrics = json.loads((tmp_path / "mini_all" / "test" / "metrics.json").read_text())
    assert set(metrics["per_class"]) == {"ade.semantic"}
    assert not any(key.startswith(("gone", "coco")) for key in metrics)


@pytest.mark.parametrize("dataset", ["ade", "coco", "o365"])
def test_any_subset_by_configuration_alone(dataset, suite, tmp_path):
    cli = co_training.run(
        arguments(
            "fit",
            suite,
            tmp_path,
            "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0",
            f"--data.ratios={{{dataset}: 1}}",
        )
    )
    assert cli.trainer.global_step == 2
    assert set(cli.datamodule.train_readers) == {dataset}


def test_mixed_batches_hold_all_data_sets(suite, tmp_path):
    cli = co_training.run(
        arguments(
            "fit",
            suite,
            tmp_path,
            "--trainer.max_steps=2",
            "--trainer.limit_val_batches=0",
            "--data.mixed=true",
            "--data.batch_size=9",
        )
    )
    assert cli.trainer.global_step == 2


def test_missing_data_end_in_one_message(tmp_path, capsys):
    base, exp = ROOT / "conf" / "base.yaml", ROOT / "conf" / "exp" / "r50_all.yaml"
    root, runs = f"--data.root={tmp_path / 'nowhere'}", f"--runs={tmp_path}"
    assert main(["fit", f"--config={base}", f"--config={exp}", root, runs]) == 1
    message = capsys.readouterr().err
    for expected in ("ADEChallengeData2016", "coco", "objects365", "http", "nowhere", "data.root"):
        assert expected in message
    for name in ("ade", "coco", "o365", "ade_panoptic"):
        assert f"{name}:" in message


@pytest.mark.parametrize(
    ("verb", "mistake", "words"),
    [
        ("validate", "--ckpt_path={root}/README.md", "README.md: damaged or no checkpoint"),
        ("validate", "--ckpt_path={root}/src", "src: not a sharded checkpoint"),
        ("validate", "--ckpt_path={root}/nowhere.ckpt", "nowhere.ckpt: there is no such checkpoint"),
        ("validate", "--ckpt_path={run}/metrics.json", "metrics.json: damaged or no checkpoint"),
        ("fit", "--resume={root}/README.md", "README.md: damaged or no checkpoint"),
        ("fit", "--data.ratios.cocoo=2", "data.ratios names cocoo, but data.train has ade, coco, o365"),
        ("fit", "--data.ratios.coco=-2", "must be a positive number, got -2"),
        ("fit", "--data.train_transform.scale_range=[1.5,0.5]", "scale_range must be two positive numbers in order"),
        ("fit", "--data.batch_size=0", "batch_size must be positive"),
        ("fit", "--runs={run}/../..", "has the checkpoints of an earlier run: RESUME=auto"),
    ],
)
def test_a_mistake_ends_in_its_message(run, suite, tmp_path, capsys, verb, mistake, words):
    assert main(arguments(verb, suite, tmp_path, mistake.format(root=ROOT, run=run), "--trainer.max_steps=1")) == 1
    message = "error: " + capsys.readouterr().err.rpartition("error: ")[2]
    assert words in message
    assert len(message) < 600


def test_a_checkpoint_of_another_network_is_told_in_one_line(run, suite, tmp_path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    options = [f"--ckpt_path={checkpoint}", "--model.network.hidden_dim=32"]
    with pytest.raises(UserError, match=r"the checkpoint: its tensors do not fit the .* of another shape \(") as stop:
        co_training.run(arguments("validate", suite, tmp_path, *options))
    assert len(str(stop.value)) < 600


def test_resuming_with_other_settings_names_them_and_keeps_the_old(run, suite, tmp_path):
    own = shutil.copytree(run, tmp_path / "mini_all" / "test", symlinks=True)
    before = (own / "config.yaml").read_text()
    more = ["--trainer.max_steps=10", "--trainer.limit_val_batches=0", "--trainer.log_every_n_steps=1"]
    more += ["--seed_everything=3", "--model.optimization.lr=0.25", "--resume=auto"]
    with pytest.warns(UserWarning, match="going on with other settings than before") as told:
        co_training.run(arguments("fit", suite, tmp_path, *more))
    text = next(str(w.message) for w in told if "going on" in str(w.message))
    for words in ("seed_everything 3, was 0", "model.optimization.lr 0.25, was 0.001", "trainer.max_steps 10, was 9"):
        assert words in text
    assert "data.root" not in text
    assert (own / "config.until_step_9.yaml").read_text() == before
    group = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.25


def test_golden_loss_of_three_steps(run):
    """Refactors must reproduce these figures; a change of arithmetic or of the data order must be meant.

    Random numbers and kernels differ a little between versions of torch, hence the tolerance.
    """
    events = EventAccumulator(str(run))
    events.Reload()
    found = {}
    for dataset in ("ade", "coco", "o365"):
        for event in events.Scalars(f"loss/{dataset}/total"):
            found[event.step] = [dataset, event.value]
    golden = json.loads((Path(__file__).parent / "golden_loss.json").read_text())["losses"]
    assert [found[step][0] for step in (1, 2, 3)] == [name for name, _ in golden]
    assert [found[step][1] for step in (1, 2, 3)] == pytest.approx([value for _, value in golden], rel=1e-3)

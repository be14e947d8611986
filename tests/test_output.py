"""What a run shows: start-up, progress, the table at the end; and its scores in loggers beside TensorBoard's."""

import json
import warnings
from importlib.util import find_spec

import pytest
import yaml
from cli_runs import SMALL, on_suite

from data_modules.mini import MiniSpec, ensure
from dataseg.cli import co_training
from dataseg.structures import UserError

STEPS = 4


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    spec = MiniSpec(seed=3, size=64, ade=(3, 2), coco=(6, 2), objects365=(6, 2))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


def run(suite, runs, *more: str):
    return co_training.run(
        [
            "fit",
            "--exp=mini_all",
            *on_suite(suite, runs),
            f"--trainer.max_steps={STEPS}",
            "--trainer.val_check_interval=2",
            "--trainer.log_every_n_steps=1",
            *SMALL,
            *more,
        ]
    )


@pytest.fixture
def at_80_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


NOISE = ("Tip", "FLOPs", "LeafSpec", "weights_only", "GPU available", "nan", "0.00/s")


@pytest.mark.usefixtures("at_80_columns")
def test_output_is_for_people(suite, tmp_path, capsys, caplog):
    with warnings.catch_warnings(record=True) as caught:
        run(suite, tmp_path)
    output = capsys.readouterr().out
    start = output.partition("\n\n")[0]
    for words in ("trains on", "ade 3 images, coco 6 images, o365 6 images", "ade 1 : coco 4 : o365 4; 8 samples a"):
        assert words in " ".join(start.split()), start
    assert "results" in start
    table = output[output.index(f"step {STEPS} (percent)") :]
    assert len([line for line in table.splitlines() if line.startswith(("│ ade", "│ coco", "│ o365"))]) == 4
    assert max(map(len, table.splitlines()[:10])) <= 80
    told = [output, *(record.getMessage() for record in caplog.records), *(str(w.message) for w in caught)]
    assert not [word for word in NOISE if any(word in text for text in told)], told

    run(suite, tmp_path, "--resume=auto", f"--trainer.max_steps={STEPS + 2}")
    assert f"{STEPS + 2}/{STEPS + 2}" in capsys.readouterr().out
    assert not list(tmp_path.glob("lightning_logs"))


def scores_of(runs) -> dict[str, float]:
    content = json.loads((runs / "mini_all" / "test" / "metrics.json").read_text())
    return {key: value for key, value in content.items() if isinstance(value, float)}


@pytest.mark.usefixtures("at_80_columns")
def test_csv_logger_beside_tensorboard(suite, tmp_path, capsys):
    cli = run(suite, tmp_path, "--trainer.logger=CSVLogger", "--trainer.enable_progress_bar=false")
    assert "it/s" not in capsys.readouterr().out
    folder = tmp_path / "mini_all" / "test"
    (csv,) = folder.rglob("metrics.csv")
    header, *rows = csv.read_text().splitlines()
    assert {f"metrics/{key}" for key in scores_of(tmp_path)} <= set(header.split(","))
    assert len(rows) >= 2
    (settings,) = folder.rglob("lightning_logs/**/hparams.yaml")
    assert f"max_steps: {STEPS}" in settings.read_text()
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]
    assert recorded["class_path"] == "lightning.pytorch.loggers.CSVLogger"
    assert recorded["init_args"]["save_dir"] == str(folder)
    assert list(folder.glob("events*"))
    assert set(scores_of(tmp_path)) <= set(cli.trainer.callback_metrics)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
@pytest.mark.usefixtures("at_80_columns")
def test_mlflow_beside_tensorboard(suite, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    options = [f"--trainer.logger.tracking_uri={uri}", f"--trainer.logger.artifact_location={tmp_path}/artifacts"]
    run(suite, tmp_path, "--trainer.logger=MLFlowLogger", *options)
    client = MlflowClient(uri)
    (done,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert done.data.metrics["metrics/score"] == pytest.approx(scores_of(tmp_path)["score"])
    assert done.data.params["max_steps"] == str(STEPS)
    assert len(client.list_artifacts(done.info.run_id, "images")) > 4


def test_no_logger_at_all_is_refused(suite, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.logger=false"):
        run(suite, tmp_path, "--trainer.logger=false")


def test_backbone_finetuning_is_refused_with_what_does_it_here(suite, tmp_path):
    with pytest.raises(UserError, match=r"model\.optimization\.frozen"):
        run(suite, tmp_path, "--trainer.callbacks+=lightning.pytorch.callbacks.BackboneFinetuning")

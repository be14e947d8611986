"""The wheel in a folder of its own: every command works in any other working directory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import ROOT, SMALL

pytestmark = pytest.mark.slow

FAST = ["--data.train_transform.image_size=64", "--data.eval_transform.size=64", "--trainer.limit_val_batches=2"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "mini_suite", "tests", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder / "site", folder / "source"], check=True)
    shutil.rmtree(folder / "source")
    return folder / "site"


@pytest.fixture(scope="module")
def dataseg(installed, tmp_path_factory):
    """The console script, in an empty working directory."""
    work = tmp_path_factory.mktemp("work")

    def run(*arguments, status: int = 0) -> str:
        ours = {"PYTHONPATH": str(installed), "COLUMNS": "80", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        command = [sys.executable, installed / "bin" / "dataseg", *map(str, arguments)]
        done = subprocess.run(command, cwd=work, env=os.environ | ours, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    run.work, run.site = work, installed
    return run


def test_it_holds_the_configuration_and_nothing_but_three_packages(installed):
    assert sorted(p.name for p in installed.iterdir() if p.is_dir() and not p.name.endswith(".dist-info")) == [
        "bin",
        "callbacks",
        "data_modules",
        "dataseg",
    ]
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*") if p.is_file()}
    assert {str(p.relative_to(installed / "dataseg")) for p in (installed / "dataseg/conf").rglob("*.*")} == ours
    assert not list(installed.rglob("conf/**/*.py"))


def test_commands_from_anywhere(dataseg):
    """The others only read what these two have: an experiment's name, data, a run."""
    dataseg("fit", "--exp", "mini_all", *SMALL, *FAST, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    checkpoint = "runs/mini_all/version_0/checkpoints/last.ckpt"
    dataseg("eval", "--exp=mini_all", "--config=conf/on/mini_all.yaml", "--ckpt_path", checkpoint, *SMALL, *FAST)
    assert "open.miou" in (dataseg.work / "runs/mini_all/version_1/metrics.json").read_text()
    dataseg("export", checkpoint, "--out", "model.safetensors")
    photos = next(dataseg.work.glob("mini_suite/**/images/validation"))
    dataseg("predict", "--model", "model.safetensors", "--dataset=ade", "--images", photos, "--out", "predictions")
    assert (dataseg.work / "predictions" / "predictions.json").is_file()
    assert "conf/exp/mini_all.yaml" in dataseg("ablation", "--suite", "scaling_mini", "--dry")


def test_an_experiment_of_one_s_own_builds_on_the_project_s(dataseg):
    own = dataseg.work / "conf" / "exp" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("extends: mini_ade.yaml\ntrainer: {max_steps: 1, val_check_interval: 1}\n")
    dataseg("fit", "--exp", "mine+ema", *SMALL, *FAST)
    assert (dataseg.work / "runs" / "mine+ema" / "version_0" / "metrics.json").is_file()
    assert "there is no such suite; choose one of: networks_mini" in dataseg("report", "--suite", "x", status=1)


def test_a_package_of_our_name_is_told(dataseg):
    (dataseg.work / "callbacks").mkdir()
    (dataseg.work / "callbacks" / "__init__.py").touch()
    dataseg("plan", "--exp", "mini_all", *SMALL)  # the console script does not look in the working directory
    program = "import sys; sys.path.insert(0, '.'); from dataseg.cli.__main__ import main; sys.exit(main(['plan']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=dataseg.work,
        env=os.environ | {"PYTHONPATH": str(dataseg.site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "another project has a package of this name" in done.stderr

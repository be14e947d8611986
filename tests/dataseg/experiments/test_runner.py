"""`dataseg ablation`: suites are run, resumed and shared out. Runs are stood in for by a script that takes no time."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from callbacks import RunRecord
from dataseg.cli.ablation import commands, main
from dataseg.experiments.cluster import OnCluster
from dataseg.experiments.jobs import Job, jobs_of
from dataseg.experiments.runner import Runner, ThisMachine, share_out
from dataseg.experiments.suite import Suite, load
from dataseg.structures import UserError

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"

SUITE = """
title: Tiny
columns: [{ metric: ade.miou, title: mIoU, trained_by: ade }]
validations: 2
tables:
  - title: Main
    baselines: { "": mini_ade@4 }
    rows:
      - { exp: mini_ade, steps: 4, paper: { ade.miou: 42.0 } }
      - { exp: mini_all, steps: 6 }
  - title: Second
    seeds: 1
    rows:
      - { exp: mini_all, steps: 6 }
      - { exp: mini_coco, steps: 2, args: [--data.batch_size=3] }
"""

STAND_IN = """
import json, pathlib, sys, time
options = dict(zip(sys.argv, sys.argv[1:]))
steps = int(next(a for a in sys.argv if a.startswith("--trainer.max_steps=")).split("=")[1])
run = pathlib.Path(options["--runs"]) / options["--exp"] / options["--run"]
with open(run.parent.parent / "log.txt", "a") as log:
    log.write(f"{run.parent.name} {run.name}\\n")
while (run.parent.parent / "wait").exists():
    time.sleep(0.05)
if "--break" in sys.argv:
    sys.exit("error: as asked for")
(run / "metrics.json").write_text(json.dumps({"ade.miou": steps, "run": {"step": steps, "max_steps": steps}}))
"""


@pytest.fixture
def suite(tmp_path) -> Suite:
    (tmp_path / "tiny.yaml").write_text(SUITE)
    return load(tmp_path / "tiny.yaml")


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(Job, "command", property(lambda job: [sys.executable, str(script), *job.arguments]))
    return script


def jobs(suite: Suite, tmp_path: Path, *extra: str, seeds: int = 2) -> list[Job]:
    return jobs_of(suite, seeds, tmp_path / "runs", extra, CONF)


def run(suite: Suite, todo: list[Job], parallel: int = 2) -> tuple[bool, str]:
    out = StringIO()
    done = Runner(suite, ThisMachine(parallel), Console(file=out, width=300)).run(todo)
    return done, out.getvalue()


def log(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "runs" / "tiny" / "log.txt").read_text().splitlines())


def test_every_suite_of_the_project_names_files_that_are_there():
    for path in sorted((CONF / "suite").glob("*.yaml")):
        suite = load(path)
        assert suite.columns
        assert jobs_of(suite, 2, Path("runs"), conf=CONF)
        for table in suite.tables:
            names = [row.name for row in table.rows]
            assert len(set(names)) == len(names)


def test_rows_that_tables_share_are_run_once(suite):
    assert [(row.name, seed) for row, seed in suite.runs(2)] == [
        ("mini_ade@4", 0), ("mini_all@6", 0), ("mini_ade@4", 1), ("mini_all@6", 1), ("mini_coco@2", 0)
    ]  # fmt: skip


def test_command_states_the_row(suite, tmp_path):
    job = jobs(suite, tmp_path, "--data.root=there")[-1]
    assert job.arguments[0] == "fit"
    assert f"--config={CONF / 'exp' / 'mini_coco.yaml'}" in job.arguments
    for word in ("--trainer.max_steps=2", "--trainer.val_check_interval=1", "--seed_everything=0", "--resume=auto"):
        assert word in job.arguments
    assert job.arguments[-2:] == ("--data.batch_size=3", "--data.root=there")  # the later one counts


def test_all_are_run_and_then_none(suite, tmp_path, stand_in):
    done, text = run(suite, jobs(suite, tmp_path))
    assert done
    assert "5 of 5 runs done, 0 failed" in text
    assert "mIoU 6.0" in text
    assert len(log(tmp_path)) == 5
    done, text = run(suite, jobs(suite, tmp_path))
    assert done
    assert "5 done before, 0 to do" in text
    assert len(log(tmp_path)) == 5


def test_a_failed_run_is_shown_and_the_others_go_on(suite, tmp_path, stand_in):
    suite.tables[0].rows[0].args.append("--break")
    done, text = run(suite, jobs(suite, tmp_path))
    assert not done
    assert "3 of 5 runs done, 2 failed" in text
    assert text.count("exit status 1, error: as asked for") == 4  # when it happened, and at the end
    suite.tables[0].rows[0].args.clear()
    assert run(suite, jobs(suite, tmp_path))[0]
    assert len(log(tmp_path)) == 7


def test_results_of_another_command_are_kept_aside(suite, tmp_path, stand_in):
    run(suite, jobs(suite, tmp_path, seeds=1))
    done, text = run(suite, jobs(suite, tmp_path, "--data.flip=0", seeds=1))
    assert done
    assert text.count("asked for otherwise before") == 3
    old = tmp_path / "runs" / "tiny" / "mini_ade@4" / "seed0.old1" / "metrics.json"
    assert json.loads(old.read_text())["ade.miou"] == 4
    assert "# 3 of them hold results of other arguments" in commands(jobs(suite, tmp_path, seeds=1), 1)


def test_another_machine_is_no_other_run(suite, tmp_path, stand_in):
    run(suite, jobs(suite, tmp_path, "--data.num_workers=2", seeds=1))
    elsewhere = jobs(suite, tmp_path, "--data.root=/elsewhere", "--config=conf/strategy/ddp.yaml", seeds=1)
    assert all(job.is_done() for job in elsewhere)


def test_runs_done_elsewhere_count(suite, tmp_path, stand_in):
    run(suite, jobs(suite, tmp_path))
    for file in (tmp_path / "runs").rglob("command.json"):
        file.unlink()
    assert all(job.is_done() for job in jobs(suite, tmp_path))
    (tmp_path / "runs/tiny/mini_ade@4/seed0/metrics.json").write_text("{")
    assert [job.name for job in jobs(suite, tmp_path) if not job.is_done()] == ["mini_ade@4 seed 0"]


def run_stand_in(script: Path, arguments: list[str]) -> int:
    return subprocess.run([sys.executable, script, *arguments], check=False).returncode


@pytest.mark.parametrize("broken", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_suite_is_handed_to_a_cluster(suite, tmp_path, stand_in, broken):
    """The stand-in for SLURM that submitit has for one machine."""
    pytest.importorskip("submitit")
    pytest.importorskip("cloudpickle").register_pickle_by_value(sys.modules[__name__])  # jobs cannot import tests
    todo = jobs(suite, tmp_path, *(["--break"] if broken else []), seeds=1)[:2]
    place = OnCluster("local", suite, tmp_path / "runs", 2, partial(run_stand_in, stand_in))
    out = StringIO()
    assert Runner(suite, place, Console(file=out, width=300)).run(todo) is not broken
    assert ("exit status 1: error: as asked for" in todo[0].last_error()) is broken
    assert ("2 of 2 runs done, 0 failed" in out.getvalue()) is not broken
    assert log(tmp_path) == ["mini_ade@4 seed0", "mini_all@6 seed0"]
    assert run(suite, todo)[0] is not broken  # the books are the same everywhere


def test_what_a_cluster_is_asked_for(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE + "cluster: { nodes: 2, gpus: 8, options: { account: vision } }\n")
    suite = load(path, ["--cluster.minutes=90", "--cluster.partition=gpu"])
    assert (suite.cluster.nodes, suite.cluster.minutes, suite.cluster.partition) == (2, 90, "gpu")
    with pytest.raises(UserError, match="need nodes >= 1"):
        load(path, ["--cluster.nodes=0"])
    with pytest.raises(UserError, match="nodez"):
        load(path, ["--cluster.nodez=2"])
    with pytest.raises(UserError, match="no effect without CLUSTER"):
        main(["--suite", str(path), "--cluster.nodes=2", "--dry"])


RUNNER = """
import sys
from pathlib import Path
from dataseg.experiments.jobs import Job, jobs_of
from dataseg.experiments.runner import Runner, ThisMachine
from dataseg.experiments.suite import load
here, script = Path(sys.argv[1]), sys.argv[2]
Job.command = property(lambda job: [sys.executable, script, *job.arguments])
suite = load(here / "tiny.yaml")
Runner(suite, ThisMachine(1)).run(jobs_of(suite, 2, here / "runs", (), Path(sys.argv[3])))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_in_the_middle_it_goes_on(suite, tmp_path, stand_in, number):
    """The run in hand outlives a SIGKILL of its runner, and is not started twice; SIGTERM stops it too."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    wait = folder / "wait"
    wait.touch()
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path), str(stand_in), str(CONF)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (folder / "log.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(runner.pid, number)
    runner.wait(60)
    wait.unlink()
    done, _ = run(suite, jobs(suite, tmp_path), parallel=1)
    assert done
    assert len(log(tmp_path)) == (5 if number == signal.SIGKILL else 6)


def test_progress_is_read_from_the_file_of_the_run(suite, tmp_path):
    job = jobs(suite, tmp_path)[0]
    assert job.steps_done() == 0
    job.folder.mkdir(parents=True)
    record = RunRecord()
    trainer = SimpleNamespace(log_dir=str(job.folder), is_global_zero=True, global_step=3)
    record.on_train_start(trainer, None)
    for trainer.global_step in (3, 4):  # the second one comes too soon
        record.on_train_batch_end(trainer, None, None, None, 0)
    assert job.steps_done() == 3
    job.clear()  # without a checkpoint it starts from the beginning
    assert job.steps_done() == 0


def test_machines_get_equal_shares(suite, tmp_path):
    todo = jobs(suite, tmp_path)
    shares = share_out(todo, 2)
    assert sorted(job.name for share in shares for job in share) == sorted(job.name for job in todo)
    assert sorted(sum(job.steps for job in share) for share in shares) == [10, 12]


def test_dry_prints_commands_and_runs_nothing(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = str(tmp_path / "tiny.yaml")
    assert main(["--suite", path, "--seeds", "1", "--dry", "--machines", "2", "--runs", str(tmp_path / "runs")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" -m dataseg.cli fit " in line for line in lines) == 3
    assert sum(line.startswith("# machine") for line in lines) == 2
    assert not (tmp_path / "runs").exists()
    assert "0 of 3" not in commands(jobs(suite, tmp_path, seeds=1), 1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("validations: 2", "validations: 5", "4 steps cannot be divided into 5"),
        ("exp: mini_coco", "exp: mini_coca", "there is no .*mini_coca.yaml"),
        ('"": mini_ade@4', '"": mini_ade', "compares all metrics with 'mini_ade', which is none of its rows"),
        ("steps: 4,", "stepz: 4,", "stepz"),
    ],
)
def test_mistakes_are_told(tmp_path, old: str, new: str, message: str):
    (tmp_path / "tiny.yaml").write_text(SUITE.replace(old, new))
    with pytest.raises(UserError, match=message):
        jobs(load(tmp_path / "tiny.yaml"), tmp_path)


def test_unknown_suite_names_the_others():
    with pytest.raises(UserError, match=r"choose one of: .*scaling_mini"):
        load(CONF / "suite" / "nothing.yaml")

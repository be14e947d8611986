"""On a real SLURM: runs that are preempted at random moments end as those that nothing disturbed, to the last bit."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
import torch
import yaml
from cli_runs import ROOT, SMALL, finish, start, start_ranks

from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.experiments.jobs import jobs_of
from dataseg.experiments.suite import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.MISSING), reason=f"SLURM is not installed: no {', '.join(slurm.MISSING)}"),
]

STEPS = 40
WARNING = ["scancel", "--signal=USR1"]
CALLBACKS = [{"class_path": f"callbacks.{name}"} for name in ("LossCurves", "Evaluation", "RunRecord")]
CALLBACKS += [{"class_path": "callbacks.Checkpoints", "init_args": {"every_n_steps": 5}}]
OPTIONS = [
    "--data.mini=null",
    "--data.train_transform.image_size=64",
    "--data.eval_transform.size=64",
    "--data.num_workers=1",
    "--data.batch_size=2",
    "--trainer.accelerator=cpu",
    "--trainer.limit_val_batches=2",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
    *SMALL,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    spec = MiniSpec(seed=3, size=64, ade=(6, 4), coco=(8, 4), objects365=(8, 6))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def preempt(cluster: dict[str, str], rng: random.Random, moments: list[str], runs: Path, warning: list[str]) -> None:
    """Preempt running jobs.

    Args:
        moments: "start" = the newest job, before it trains, or "training" = any, a while after a step was done; and
            "warning" = as SLURM warns of the time limit, or "requeue" = as it preempts.
        warning: command that sends the warning to a job.
    """
    slurm.wait_for(lambda: slurm.run(cluster, "squeue", "-h"), 120)
    left = list(moments)
    while left:
        when, how = left[0].split()
        if when == "training":
            before = progress(runs)
            slurm.wait_for(lambda: progress(runs) != before, 120)  # noqa: B023
        time.sleep(rng.random() * (1 if when == "training" else 6))
        jobs = slurm.run(cluster, "squeue", "-h", "-r", "-t", "R", "--sort=-S", "-o", "%i").split()
        if not jobs:
            assert slurm.run(cluster, "squeue", "-h"), f"all jobs have ended before {left}"
            continue
        job = jobs[0] if when == "start" else rng.choice(jobs)
        restarts = slurm.restarts(cluster, job)
        slurm.run(cluster, *(warning if how == "warning" else ["scontrol", "requeue"]), job)
        slurm.wait_for(lambda: slurm.restarts(cluster, job) != restarts, 180)  # noqa: B023
        if slurm.restarts(cluster, job) > restarts:  # else it has come to its end meanwhile
            print(f"{time.strftime('%H:%M:%S')} {how} in {when}: job {job} is in the queue again")
            left.pop(0)


def progress(runs: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in runs.rglob("progress.json")}


def result(run: Path) -> tuple[dict, dict]:
    """Recorded scores and final weights."""
    folder = RunFolder(run)
    checkpoint = torch.load(folder.checkpoints / "last.ckpt", weights_only=True)
    return json.loads(folder.metrics.read_text()), checkpoint["state_dict"]


def assert_same(a: Path, b: Path) -> None:
    (metrics, weights), (others, other_weights) = result(a), result(b)
    assert metrics["run"]["step"] == STEPS
    assert metrics == others
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_a_suite_of_four_runs_preempted_five_times(cluster, data, tmp_path):
    rows = [{"exp": exp, "steps": STEPS} for exp in ("mini_ade", "mini_coco")]
    columns = [{"metric": "ade.miou", "title": "mIoU"}]
    suite = {"title": "Tiny", "columns": columns, "tables": [{"title": "Main", "rows": rows}], "validations": 2}
    suite |= {"args": OPTIONS, "cluster": {"partition": "main", "minutes": 30, "options": {"comment": "of the suite"}}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(suite))

    undisturbed = jobs_of(load(path), 2, tmp_path / "whole", [f"--data.root={data}"], ROOT / "conf")
    for job in undisturbed:
        job.folder.mkdir(parents=True)
        assert finish(start(list(job.arguments), job.folder / "output.txt"), 300) == 0, job.last_error()

    verb = [sys.executable, "-m", "dataseg.cli", "ablation", "--seeds=2", "--parallel=2", "--cluster=slurm"]
    preempted = [*verb, f"--suite={path}", f"--runs={tmp_path / 'preempted'}", f"--data.root={data}"]
    with (tmp_path / "output").open("w") as output:
        runner = subprocess.Popen(preempted, cwd=ROOT, env=cluster, stdout=output, stderr=output)
        preempt(cluster, random.Random(5), ["start warning", "training requeue"], tmp_path / "preempted", WARNING)
        runner.terminate()  # the jobs stay in the queue
        runner.wait(60)
        runner = subprocess.Popen(preempted, cwd=ROOT, env=cluster, stdout=output, stderr=output)
        preempt(
            cluster,
            random.Random(6),
            ["training warning", "start requeue", "training warning"],
            tmp_path / "preempted",
            WARNING,
        )
        code = runner.wait(600)
    text = (tmp_path / "output").read_text()
    print(text)
    assert code == 0, text
    assert "the jobs stay in the queue" in text
    assert "4 of 4 runs done, 0 failed" in text
    arrays = {path.name.partition("_")[0] for path in (tmp_path / "preempted/tiny/jobs").glob("*_submitted.pkl")}
    assert len(arrays) == 1  # nothing was submitted twice
    for job in undisturbed:
        assert_same(job.folder, tmp_path / "preempted" / "tiny" / job.row.name / job.folder.name)


def test_one_run_of_two_nodes(cluster, data, tmp_path):
    """By the batch script of the project, DDP over both nodes."""

    options = [f"--data.root={data}", *OPTIONS, f"--trainer.max_steps={STEPS}"]
    options += [f"--trainer.val_check_interval={STEPS // 2}"]
    configs = [f"--config={ROOT / 'conf' / name}.yaml" for name in ("exp/mini_coco", "strategy/ddp")]
    undisturbed = ["fit", *configs, "--exp=mini_coco", "--run=first", f"--runs={tmp_path / 'whole'}", *options]
    ranks = start_ranks([[*undisturbed, "--trainer.devices=2"]] * 2, tmp_path / "whole.txt")
    assert [finish(rank, 300) for rank in ranks] == [0, 0]

    sizes = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20"]
    script = ["conf/strategy/slurm.sbatch", f"--runs={tmp_path / 'preempted'}", *options]
    environment = cluster | {"EXP": "mini_coco", "RUN": "first", "PYTHON": sys.executable}
    command = ["sbatch", *sizes, f"--output={tmp_path / 'preempted.txt'}", *script]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    moments = ["start warning", "training warning", "training requeue"]
    preempt(cluster, random.Random(7), moments, tmp_path / "preempted", [*WARNING, "--batch"])
    slurm.wait_for(lambda: not slurm.run(cluster, "squeue", "-h"), 300)
    print((tmp_path / "preempted.txt").read_text()[-3000:])
    runs = [tmp_path / name / "mini_coco" / "first" for name in ("whole", "preempted")]
    assert_same(*runs)

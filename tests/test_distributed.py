"""Several processes train as one does: samples, losses, gradients, figures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cli_runs
import pytest
import torch
from cli_runs import arguments, finish, free_port, read, start, start_ranks, strategy, wait_until

from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint import consolidate, files, validate
from dataseg.cli import merge_shards
from dataseg.structures import UserError

STEPS = 6
OPTIONS = ["--data.batch_size=4", f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=6"]


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    # evaluation sets that two ranks cannot share equally
    spec = MiniSpec(seed=3, size=64, ade=(6, 3), coco=(8, 3), objects365=(8, 5))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


def run_single(suite: Path, base: Path, *options: str, **network: bool) -> Path:
    process = start(arguments(suite, base / "runs", base / "trace.0", *options, **network), base / "output.0")
    assert finish(process) == 0, (base / "output.0").read_text()[-3000:]
    return base


def run_two(suite: Path, base: Path, *options: str, **network: bool) -> Path:
    args = [arguments(suite, base / "runs", base / f"trace.{rank}", *options, **network) for rank in range(2)]
    processes = start_ranks(args, base / "output")
    codes = [finish(process) for process in processes]
    assert codes == [0, 0], "\n".join((base / f"output.{rank}").read_text()[-3000:] for rank in range(2))
    return base


@pytest.fixture(scope="module")
def single(suite, tmp_path_factory) -> Path:
    return run_single(suite, tmp_path_factory.mktemp("single"), *OPTIONS)


@pytest.fixture(scope="module")
def ddp(suite, tmp_path_factory) -> Path:
    return run_two(suite, tmp_path_factory.mktemp("ddp"), *OPTIONS, *strategy("ddp"))


@pytest.fixture(scope="module")
def fsdp(suite, tmp_path_factory) -> Path:
    return run_two(suite, tmp_path_factory.mktemp("fsdp"), *OPTIONS, *strategy("fsdp"))


def steps(path: Path) -> list[dict]:
    return [entry for entry in read(path) if "batch" in entry]


def joined(base: Path) -> list[dict]:
    """What two ranks did, as if one had done it: samples one after the other, loss averaged."""
    rows = []
    for a, b in zip(steps(base / "trace.0"), steps(base / "trace.1"), strict=True):
        assert a["samples"].keys() == b["samples"].keys()
        samples = {
            k: [x + y for x, y in zip(a["samples"][k][:2], b["samples"][k][:2], strict=True)] for k in a["samples"]
        }
        pixels = {k: [a["samples"][k][2], b["samples"][k][2]] for k in a["samples"]}
        points = {k: a["points"][k] + b["points"][k] for k in a["points"]}
        loss = (float.fromhex(a["loss"]) + float.fromhex(b["loss"])) / 2
        rows.append({"samples": samples, "pixels": pixels, "points": points, "loss": loss})
    return rows


def assert_same_course(single: Path, two: Path, count: int) -> None:
    alone, together = steps(single / "trace.0"), joined(two)
    assert len(alone) == len(together) == count
    for a, b in zip(alone, together, strict=True):
        assert {k: v[:2] for k, v in a["samples"].items()} == b["samples"]
        assert {k: v[3] for k, v in a["samples"].items()} == b["pixels"]
        assert a["points"] == b["points"]
    first = float.fromhex(alone[0]["loss"])
    assert together[0]["loss"] == pytest.approx(first, rel=1e-5)
    worst = max(abs(b["loss"] / float.fromhex(a["loss"]) - 1) for a, b in zip(alone, together, strict=True))
    print(f"largest relative difference of the loss over {count} steps: {worst:.2e}")
    assert worst < 0.01


def assert_same_gradient(single: Path, two: Path) -> None:
    a, b = (torch.load(base / "trace.0.gradient") for base in (single, two))
    assert a.keys() == b.keys()
    largest = max(float(gradient.abs().max()) for gradient in a.values())
    difference = torch.cat([(a[name] - b[name]).flatten() for name in a]).norm()
    assert difference / torch.cat([gradient.flatten() for gradient in a.values()]).norm() < 1e-5
    for name, gradient in a.items():
        torch.testing.assert_close(b[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}")


def metrics(base: Path) -> dict:
    return json.loads((base / "runs" / "mini_all" / "test" / "metrics.json").read_text())


def test_ddp_takes_the_same_steps(single, ddp):
    assert_same_course(single, ddp, STEPS)


def test_ddp_has_the_same_gradient(single, ddp):
    assert_same_gradient(single, ddp)


def test_ranks_share_validation_and_agree_with_one(ddp, suite, tmp_path):
    """The trained weights differ in the last bits, so the same weights are evaluated both ways."""
    checkpoint = ddp / "runs" / "mini_all" / "test" / "checkpoints" / "last.ckpt"
    args = arguments(suite, tmp_path / "runs", tmp_path / "trace")
    process = start(["validate", *args[1:], f"--ckpt_path={checkpoint}"], tmp_path / "output")
    assert finish(process) == 0, (tmp_path / "output").read_text()[-3000:]
    alone, shared = metrics(tmp_path), metrics(ddp)
    figures = [key for key, value in alone.items() if not isinstance(value, dict | list)]
    assert len(figures) > 20
    assert {key: alone[key] for key in figures} == {key: shared[key] for key in figures}
    assert alone["per_class"] == shared["per_class"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_vectors_of_vocabularies_and_merged_predictions(suite, tmp_path, name):
    """What a step leaves out of its vocabularies, and groups that differ from rank to rank, hold nobody up."""
    overlays = ("classifier_learnt", "background_separate", "merge_predictions")
    options = [*OPTIONS, *(f"--config={cli_runs.ROOT / 'conf' / 'with' / overlay}.yaml" for overlay in overlays)]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    alone = run_single(suite, tmp_path / "one", *options)
    together = run_two(suite, tmp_path / "two", *options, *strategy(name))
    assert_same_course(alone, together, STEPS)
    assert_same_gradient(alone, together)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_encoder_only_network(suite, tmp_path, name):
    """The same queries are masked on all ranks; no drop path, which each rank draws for itself."""
    vit = "--model.network.init_args.backbone.init_args.options={embed_dim: 32, depth: 4, num_heads: 2}"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    alone = run_single(suite, tmp_path / "one", *OPTIONS, vit, encoder_only=True)
    together = run_two(suite, tmp_path / "two", *OPTIONS, vit, *strategy(name), encoder_only=True)
    assert_same_course(alone, together, STEPS)
    assert_same_gradient(alone, together)


def test_fsdp_takes_the_same_steps(single, fsdp):
    assert_same_course(single, fsdp, STEPS)


def test_fsdp_has_the_same_gradient(single, fsdp):
    assert_same_gradient(single, fsdp)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_50_steps_stay_together(suite, tmp_path, name):
    options = ["--data.batch_size=8", "--trainer.max_steps=50", "--trainer.val_check_interval=50"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run_single(suite, tmp_path / "a", *options)
    run_two(suite, tmp_path / "b", *options, *strategy(name))
    assert_same_course(tmp_path / "a", tmp_path / "b", 50)
    assert_same_gradient(tmp_path / "a", tmp_path / "b")


# ------------------------------------------------------------------------------------------- stopping and resuming


def stopped_and_resumed(suite: Path, base: Path, first: list[str], then: list[str], ranks: int) -> None:
    """Start two ranks, ask the second one alone to stop, and go on to the end otherwise."""
    args = [arguments(suite, base / "runs", base / f"trace.{rank}", *OPTIONS, *first) for rank in range(2)]
    processes = start_ranks(args, base / "output")
    assert wait_until(lambda: len(steps(base / "trace.1")) >= 2, processes[1])
    os.kill(processes[1].pid, signal.SIGTERM)
    assert [finish(process) for process in processes] == [0, 0]
    assert "stopped by" in (base / "output.0").read_text()
    assert "Traceback" not in (base / "output.1").read_text()
    assert len(steps(base / "trace.0")) < STEPS
    run = run_single if ranks == 1 else run_two
    run(suite, base, *OPTIONS, *then)


def checkpoint(base: Path) -> Path:
    return files.step_path(base / "runs" / "mini_all" / "test" / "checkpoints", STEPS)


def weights(base: Path) -> dict[str, torch.Tensor]:
    path = checkpoint(base)
    return (consolidate.consolidate(path) if path.is_dir() else torch.load(path, weights_only=True))["state_dict"]


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """As a whole: where the gradient is 0 but for rounding, as of biases before a norm, AdamW makes steps of noise."""
    assert a.keys() == b.keys()
    assert all(b[name].shape == value.shape for name, value in a.items())
    difference = torch.cat([(b[name] - value).flatten() for name, value in a.items()]).norm()
    assert difference / torch.cat([value.flatten() for value in a.values()]).norm() < 1e-4


def assert_same_optimizer(ours: dict, theirs: dict) -> None:
    a, b = (checkpoint["optimizer_states"][0] for checkpoint in (ours, theirs))
    assert a["state"].keys() == b["state"].keys()
    for key, value in b["state"].items():
        assert a["state"][key]["step"] == value["step"]
        torch.testing.assert_close(a["state"][key]["exp_avg"], value["exp_avg"], rtol=1e-3, atol=1e-4)
    assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]


def test_from_two_ranks_to_one(suite, single, tmp_path):
    stopped_and_resumed(suite, tmp_path, strategy("ddp"), ["--resume=auto"], ranks=1)
    done = len(steps(tmp_path / "trace.1"))
    rest = steps(tmp_path / "trace.0")[done:]
    expected = steps(single / "trace.0")[done:]
    assert [entry["samples"] for entry in rest] == [entry["samples"] for entry in expected]
    assert [float.fromhex(e["loss"]) for e in rest] == pytest.approx(
        [float.fromhex(e["loss"]) for e in expected], rel=1e-3
    )
    assert_same_weights(weights(single), weights(tmp_path))


@pytest.mark.slow
def test_three_ranks_then_two_then_one_take_the_same_samples(suite, tmp_path):
    """As after losing nodes: each goes on from the checkpoint of the one before."""
    options = ["--data.batch_size=6", "--trainer.limit_val_batches=0", "--resume=auto"]
    rows: list[dict] = []
    for count, ranks in enumerate([3, 2, 1], start=1):
        more = [
            *options,
            f"--trainer.max_steps={2 * count}",
            *(strategy("ddp", ranks) if ranks > 1 else []),
        ]
        traces = [tmp_path / f"trace.{ranks}.{rank}" for rank in range(ranks)]
        args = [arguments(suite, tmp_path / "runs", trace, *more) for trace in traces]
        output = tmp_path / f"output.{ranks}"
        processes = start_ranks(args, output) if ranks > 1 else [start(args[0], output)]
        assert [finish(process) for process in processes] == [0] * ranks, "".join(
            path.read_text()[-2000:] for path in tmp_path.glob(f"output.{ranks}*")
        )
        rows += [_samples(parts) for parts in zip(*map(steps, traces), strict=True)]
    (tmp_path / "whole").mkdir()
    whole = run_single(suite, tmp_path / "whole", *options, "--trainer.max_steps=6")
    assert rows == [_samples([entry]) for entry in steps(whole / "trace.0")]
    assert len(rows) == 6


def _samples(parts) -> dict[str, list]:
    """Image ids and seeds of one step by dataset, those of all ranks one after the other."""
    here = {name: [part["samples"][name] for part in parts] for name in parts[0]["samples"]}
    return {name: [[value for share in shares for value in share[i]] for i in (0, 1)] for name, shares in here.items()}


@pytest.mark.slow
def test_sharded_checkpoints_are_resumed_from(suite, single, tmp_path):
    stopped_and_resumed(suite, tmp_path, strategy("fsdp"), [*strategy("fsdp"), "--resume=auto"], ranks=2)
    assert_same_course(single, tmp_path, STEPS)
    assert_same_weights(weights(single), weights(tmp_path))


def test_a_sharded_checkpoint_made_whole_equals_that_of_one_process(single, fsdp, tmp_path):
    whole = tmp_path / "whole.ckpt"
    assert merge_shards.main([str(checkpoint(fsdp)), str(whole)]) == 0
    assert validate.problem_of(whole) is None
    ours, theirs = (torch.load(path, weights_only=True) for path in (whole, checkpoint(single)))
    assert ours.keys() == theirs.keys()
    assert_same_weights(theirs["state_dict"], ours["state_dict"])
    assert_same_optimizer(ours, theirs)


def test_a_damaged_sharded_checkpoint_is_noticed(fsdp, tmp_path):
    copy = tmp_path / "step-6.ckpt"
    shutil.copytree(checkpoint(fsdp), copy)
    assert validate.problem_of(copy) is None
    shard = next(copy.glob("__1_*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "cut short" in validate.problem_of(copy)
    shard.unlink()
    assert validate.problem_of(copy) is not None
    with pytest.raises(UserError, match=r"its index \.metadata cannot be used"):
        consolidate.consolidate(copy)


# ------------------------------------------------------------------------------------------------ one rank's fault


@pytest.mark.parametrize("name", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_what_is_not_finite_on_one_rank_stops_both(suite, tmp_path, name):
    spoil = {"step": 2, "parameter": "network.classifier.background", "rank": 1}
    extra = "--trainer.callbacks+=" + json.dumps({"class_path": "cli_runs.Spoil", "init_args": spoil})
    args = [
        [*arguments(suite, tmp_path / "runs", tmp_path / f"trace.{rank}", *OPTIONS, *strategy(name)), extra]
        for rank in range(2)
    ]
    processes = start_ranks(args, tmp_path / "output")
    assert [finish(process) for process in processes] == [1, 1]
    replays = tmp_path / "runs" / "mini_all" / "test" / "replay"
    assert {p.name for p in replays.iterdir()} == {"step-2-rank-0.pt", "step-2-rank-1.pt", "step-2-weights.pt"}
    for rank in range(2):
        assert "make replay FILE=" in (tmp_path / f"output.{rank}").read_text()


def test_an_unreadable_file_on_one_rank_ends_both(suite, single, tmp_path):
    copy = tmp_path / "mini"
    shutil.copytree(suite, copy)
    dataset, (ids, *_) = next(iter(steps(single / "trace.0")[2]["samples"].items()))
    image = next(p for p in copy.rglob("*.jpg") if ids[3] in p.stem or p.stem.endswith(ids[3].zfill(8)))
    image.write_bytes(image.read_bytes()[:200])
    args = [arguments(copy, tmp_path / "runs", tmp_path / f"trace.{r}", *OPTIONS, *strategy("ddp")) for r in range(2)]
    codes = [finish(process) for process in start_ranks(args, tmp_path / "output")]
    assert 0 not in codes
    assert any(image.name in (tmp_path / f"output.{rank}").read_text() for rank in range(2)), dataset


def test_batch_norms_that_would_drift_apart_are_refused(suite, tmp_path):
    backbone = "--model.network.init_args.backbone.init_args"
    free = [f"{backbone}.name=test_resnet", f"{backbone}.options={{}}", "--trainer.max_steps=1"]
    args = [arguments(suite, tmp_path / "runs", tmp_path / f"trace.{r}", *free, *strategy("ddp")) for r in range(2)]
    codes = [finish(process) for process in start_ranks(args, tmp_path / "output")]
    assert codes == [1, 1]
    assert "freeze_norm=true" in (tmp_path / "output.0").read_text()


# -------------------------------------------------------------------------------------------------------- launchers


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_launched_processes_stop_and_resume_together(suite, tmp_path, launcher):
    """As users start them; the signal goes to the launcher, or to the first process alone."""
    prefix = [sys.executable, "-m"]
    if launcher == "torchrun":
        prefix += ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "--"]
    options = ["--data.batch_size=4", "--trainer.max_steps=40", "--trainer.val_check_interval=40"]
    args = arguments(suite, tmp_path / "runs", tmp_path / "trace", *options, *strategy("ddp"), "--resume=auto")
    command = [*prefix, "dataseg.cli", *args]
    paths = os.pathsep.join(str(cli_runs.ROOT / part) for part in ("tests", "src", "."))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        end = time.monotonic() + 120
        while not any(entry.get("step", 0) >= 3 for entry in steps(tmp_path / "trace")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        text = (tmp_path / "output").read_text()
        assert "stopped by SIGTERM" in text
        if launcher == "lightning":
            assert code == 0, text[
                -3000:
            ]  # torchrun itself ends with an error after a signal, whatever its processes do
            assert "Traceback" not in text
        saved = max(files.step_files(tmp_path / "runs" / "mini_all" / "test" / "checkpoints"))
        assert 3 <= saved < 40
        again = subprocess.run(command, stdout=output, stderr=output, env=environment, timeout=120, check=False)
    assert again.returncode == 0, (tmp_path / "output").read_text()[-3000:]
    assert f"after step {saved}" in (tmp_path / "output").read_text()
    assert {entry["step"] for entry in steps(tmp_path / "trace")} == set(range(1, 41))


@pytest.mark.slow
def test_files_of_one_process_and_of_sharded_ones_are_alike(suite, single, tmp_path):
    sharded = [*strategy("fsdp"), "--trainer.strategy.save_distributed_checkpoint=false"]
    source = files.step_path(checkpoint(single).parent, 5)
    run_two(suite, tmp_path, *OPTIONS, *sharded, f"--resume={source}")
    rest, expected = joined(tmp_path), steps(single / "trace.0")[5:]
    assert [row["samples"] for row in rest] == [{k: v[:2] for k, v in e["samples"].items()} for e in expected]
    assert [row["loss"] for row in rest] == pytest.approx([float.fromhex(e["loss"]) for e in expected], rel=1e-4)
    assert_same_weights(weights(single), weights(tmp_path))
    assert_same_optimizer(*(torch.load(checkpoint(base), weights_only=True) for base in (tmp_path, single)))

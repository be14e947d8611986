"""A run that is killed and resumed equals one that never stopped: samples, losses, weights, figures."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from cli_runs import ROOT, arguments, finish, read, start, wait_until

from data_modules.mini import MiniSpec, ensure
from dataseg.checkpoint import files, validate
from dataseg.deployment import from_run


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    spec = MiniSpec(seed=3, size=64, ade=(6, 4), coco=(8, 4), objects365=(8, 6))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


def folder_of(runs: Path) -> Path:
    return runs / "mini_all" / "test" / "checkpoints"


def by_batch(trace: list[dict]) -> dict[int, dict]:
    """What happened at each batch; a batch that was run twice must have come out the same."""
    found: dict[int, dict] = {}
    for entry in trace:
        if "batch" in entry:
            assert found.setdefault(entry["batch"], entry) == entry
    return found


def figures(trace: list[dict]) -> dict[int, dict]:
    """The figures of each validation, likewise."""
    found: dict[int, dict] = {}
    for entry in trace:
        if "validated" in entry:
            assert found.setdefault(entry["validated"], entry["figures"]) == entry["figures"]
    return found


def state(runs: Path, step: int) -> dict:
    return torch.load(files.step_path(folder_of(runs), step), weights_only=True)


def assert_same_end(whole: Path, pieces: Path, step: int) -> None:
    """Weights, optimiser and recorded figures, to the last bit."""
    a, b = state(whole, step), state(pieces, step)
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    moments = [s["optimizer_states"][0]["state"] for s in (a, b)]
    assert moments[0].keys() == moments[1].keys()
    for key, values in moments[0].items():
        assert all(torch.equal(value, moments[1][key][name]) for name, value in values.items())
    assert a["lr_schedulers"] == b["lr_schedulers"]
    records = [json.loads((r / "mini_all" / "test" / "metrics.json").read_text()) for r in (whole, pieces)]
    assert records[0]["history"]
    assert records[0] == records[1]


def killed_and_resumed(
    suite: Path, runs: Path, options: list[str], steps: int, kills: list[str], seed: int, **network: bool
) -> list[dict]:
    """Run to the end, killed with SIGKILL in between, each time with another number of loading processes.

    Args:
        kills: moments: "step" = a while after a random number of further steps, "validation" = in the middle of the
            next one, "checkpoint" = while the next one is being written.

    Returns:
        All that was traced.
    """
    rng, trace, output = random.Random(seed), runs.parent / "trace", runs.parent / "output"
    for number, moment in enumerate([*kills, "end"]):
        workers = [0, 2, 1, 3][number % 4]
        before = read(trace)
        more = "--resume=auto", f"--data.num_workers={workers}"
        process = start(arguments(suite, runs, trace, *options, *more, **network), output)
        ahead = rng.randint(1, max(2, 2 * steps // (len(kills) + 1)))

        def reached(moment=moment, before=before, ahead=ahead) -> bool:
            if moment == "validation":
                return any("validating" in entry for entry in read(trace)[len(before) :])
            if moment == "checkpoint":
                return len(read(trace)) > len(before) + 1 and any(folder_of(runs).glob(".*.tmp"))
            return len(read(trace)) >= len(before) + ahead

        if moment == "end":
            assert finish(process) == 0, output.read_text()[-3000:]
        elif wait_until(reached, process):
            if moment == "step":
                time.sleep(rng.random() * 0.2)
            process.kill()  # not joined: its loading processes notice within seconds, the next run need not wait
    return read(trace)


OPTIONS = ["--data.batch_size=2", "--trainer.limit_val_batches=1"]


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory) -> Path:
    """A run of 12 steps that nothing disturbed."""
    base = tmp_path_factory.mktemp("whole")
    options = [*OPTIONS, "--trainer.max_steps=12", "--trainer.val_check_interval=4"]
    process = start(arguments(suite, base / "runs", base / "trace", *options, every_n_steps=3), base / "output")
    assert finish(process) == 0, (base / "output").read_text()[-3000:]
    return base


def test_killed_and_resumed_equals_undisturbed(suite, whole, tmp_path):
    options = [*OPTIONS, "--trainer.max_steps=12", "--trainer.val_check_interval=4"]
    trace = killed_and_resumed(suite, tmp_path / "runs", options, 12, ["step", "validation", "checkpoint"], seed=1)
    assert by_batch(trace) == by_batch(read(whole / "trace"))
    assert len(by_batch(trace)) == 12
    assert figures(trace) == figures(read(whole / "trace"))
    assert set(figures(trace)) == {4, 8, 12}
    assert_same_end(whole / "runs", tmp_path / "runs", 12)


@pytest.mark.slow
def test_averaged_weights_resume_alike_and_are_what_is_exported(suite, tmp_path):
    """One of two pieces ends at a step without a validation; its weights must not be the average for the other."""
    options = [*OPTIONS, "--trainer.val_check_interval=4", f"--config={ROOT / 'conf' / 'with' / 'ema.yaml'}",
               "--trainer.callbacks.decay=0.5", "--model.optimization.schedule=constant"]  # fmt: skip
    for name, lengths in {"a": [12], "b": [6, 12]}.items():
        (tmp_path / name).mkdir()
        for steps in lengths:
            more = ["--resume=auto", f"--trainer.max_steps={steps}"]
            args = arguments(suite, tmp_path / name / "runs", tmp_path / name / "trace", *options, *more)
            assert finish(start(args, tmp_path / "output")) == 0, (tmp_path / "output").read_text()[-3000:]
    whole, pieces = (tmp_path / name for name in "ab")
    assert by_batch(read(whole / "trace")) == by_batch(read(pieces / "trace"))
    assert figures(read(whole / "trace")) == figures(read(pieces / "trace"))
    assert_same_end(whole / "runs", pieces / "runs", 12)
    saved = state(whole / "runs", 12)
    average, current = saved["state_dict"], saved["current_model_state"]
    assert all(torch.equal(value, state(pieces / "runs", 12)["current_model_state"][n]) for n, value in current.items())
    assert not torch.equal(*(s["network.classifier.projection.weight"] for s in (average, current)))
    exported = from_run.model_of(files.step_path(folder_of(whole / "runs"), 12))[1].state_dict()
    assert all(torch.equal(value, average[f"network.{name}"]) for name, value in exported.items())

    args = arguments(suite, whole / "runs", whole / "trace", *OPTIONS, "--resume=auto", "--trainer.max_steps=14")
    assert finish(start(args, whole / "refused")) == 1
    assert "averages its weights: go on with WITH=ema" in (whole / "refused").read_text()


@pytest.mark.slow
def test_the_encoder_only_network_resumes_alike(suite, tmp_path):
    """Masks anneal between steps 2 and 10 of 12: which queries are masked follows from the step."""
    options = [*OPTIONS, "--trainer.max_steps=12", "--trainer.val_check_interval=6"]
    traces = {}
    for name, kills in {"a": [], "b": ["step", "step"]}.items():
        (tmp_path / name).mkdir()
        runs = tmp_path / name / "runs"
        traces[name] = killed_and_resumed(suite, runs, options, 12, kills, seed=4, encoder_only=True)
    assert len(by_batch(traces["b"])) == 12
    assert by_batch(traces["a"]) == by_batch(traces["b"])
    assert_same_end(tmp_path / "a" / "runs", tmp_path / "b" / "runs", 12)
    assert (state(tmp_path / "b" / "runs", 12)["state_dict"]["network.mask_probability"] == 0).all()


@pytest.mark.slow
def test_60_steps_of_the_encoder_only_network_killed_at_6_random_moments(suite, tmp_path):
    options = [*OPTIONS, "--trainer.max_steps=60", "--trainer.val_check_interval=30"]
    traces = {}
    for name, kills in {"a": [], "b": ["step", "validation", "step", "checkpoint", "step", "step"]}.items():
        (tmp_path / name).mkdir()
        runs = tmp_path / name / "runs"
        traces[name] = killed_and_resumed(suite, runs, options, 60, kills, seed=5, encoder_only=True)
    assert len(by_batch(traces["b"])) == 60
    assert by_batch(traces["a"]) == by_batch(traces["b"])
    assert_same_end(tmp_path / "a" / "runs", tmp_path / "b" / "runs", 60)


@pytest.mark.slow
def test_200_steps_killed_at_20_random_moments(suite, tmp_path):
    options = [*OPTIONS, "--trainer.max_steps=200", "--trainer.val_check_interval=40", "--data.batch_size=4"]
    (tmp_path / "a").mkdir()
    process = start(arguments(suite, tmp_path / "a" / "runs", tmp_path / "a" / "trace", *options), tmp_path / "output")
    assert finish(process, 900) == 0
    kills = ["step"] * 14 + ["validation"] * 3 + ["checkpoint"] * 3
    random.Random(0).shuffle(kills)
    (tmp_path / "b").mkdir()
    trace = killed_and_resumed(suite, tmp_path / "b" / "runs", options, 200, kills, seed=2)
    assert len(by_batch(trace)) == 200
    assert by_batch(trace) == by_batch(read(tmp_path / "a" / "trace"))
    assert figures(trace) == figures(read(tmp_path / "a" / "trace"))
    assert_same_end(tmp_path / "a" / "runs", tmp_path / "b" / "runs", 200)


@pytest.mark.slow
def test_accumulation_and_short_epochs_resume_alike(suite, tmp_path):
    options = [*OPTIONS, "--trainer.max_steps=12", "--trainer.accumulate_grad_batches=2"]
    options += ["--trainer.limit_train_batches=6", "--trainer.val_check_interval=8"]
    for name, kills in {"a": [], "b": ["step", "checkpoint", "step", "validation"]}.items():
        (tmp_path / name).mkdir()
        killed_and_resumed(suite, tmp_path / name / "runs", options, 24, kills, seed=3)
    traces = [read(tmp_path / name / "trace") for name in "ab"]
    # batches are counted within an epoch here
    samples = [[[e["step"], e["batch"], e["samples"], e["loss"]] for e in trace if "batch" in e] for trace in traces]
    assert len(samples[0]) == 24
    assert all(entry in samples[0] for entry in samples[1])
    assert all(entry in samples[1] for entry in samples[0])
    assert_same_end(tmp_path / "a" / "runs", tmp_path / "b" / "runs", 12)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_request_to_stop_saves_and_ends_cleanly(suite, whole, tmp_path, number):
    options = [*OPTIONS, "--trainer.max_steps=12", "--trainer.val_check_interval=4"]
    where = "validating" if number == signal.SIGTERM else "batch"
    trace, output = tmp_path / "trace", tmp_path / "output"
    args = arguments(suite, tmp_path / "runs", trace, *options, "--resume=auto", every_n_steps=100)
    process = start(args, output)
    assert wait_until(lambda: any(where in entry for entry in read(trace)), process)
    os.kill(process.pid, number)
    assert finish(process) == 0
    text = output.read_text()
    assert f"stopped by {signal.Signals(number).name}" in text
    assert "Traceback" not in text
    assert max(by_batch(read(trace))) < 11
    assert finish(start(args, output)) == 0
    assert "resuming run test after step" in output.read_text()
    assert by_batch(read(trace)) == by_batch(read(whole / "trace"))
    assert_same_end(whole / "runs", tmp_path / "runs", 12)


def test_other_callbacks_see_no_checkpoint_between_step_and_validation(whole):
    assert sorted(files.step_files(folder_of(whole / "runs"))) == [9, 11, 12]
    assert os.readlink(folder_of(whole / "runs") / "last.ckpt") == "step-12.ckpt"
    assert validate.problem_of(folder_of(whole / "runs") / "best.ckpt") is None

"""Two real processes that want the same run, text vectors or mini suite."""

import json
import multiprocessing
import os
import signal

import pytest
from cli_runs import arguments, finish, read, start, start_ranks, strategy, wait_until
from tiny_model import PETS, HashText

from data_modules.mini import MiniSpec, ensure, suite
from dataseg.text.embeddings import TextEmbeddings

CONTEXT = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    spec = MiniSpec(seed=3, size=64, ade=(6, 4), coco=(8, 4), objects365=(8, 6))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


def options(mini, tmp_path, name, *more):
    few = ["--data.batch_size=2", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=30"]
    return arguments(mini, tmp_path / "runs", tmp_path / name, *few, "--trainer.max_steps=30", *more, every_n_steps=100)


def test_a_run_belongs_to_one_process(mini, tmp_path):
    """Also before its first checkpoint; the second one changes nothing."""
    endless = "--trainer.max_steps=100000", "--trainer.val_check_interval=100000"
    first = start([*options(mini, tmp_path, "a"), *endless], tmp_path / "output")
    folder = tmp_path / "runs" / "mini_all" / "test"
    assert wait_until(lambda: (folder / "config.yaml").exists() and read(tmp_path / "a"), first)
    before = (folder / "config.yaml").read_bytes()
    assert (
        finish(start(options(mini, tmp_path, "b", "--resume=auto", "--seed_everything=9"), tmp_path / "refused")) == 1
    )
    text = (tmp_path / "refused").read_text()
    assert f"run {folder} is in use by process {first.pid} on " in text
    assert "take another RUN" in text
    assert "Traceback" not in text
    assert not read(tmp_path / "b")
    os.kill(first.pid, signal.SIGTERM)
    assert finish(first) == 0
    assert (folder / "config.yaml").read_bytes() == before
    assert not (folder / ".lock").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()


def test_runs_without_a_name_get_folders_of_their_own(mini, tmp_path):
    few = "--run=null", "--trainer.max_steps=2", "--trainer.val_check_interval=2"
    runs = [start(options(mini, tmp_path, name, *few), tmp_path / f"{name}.output") for name in "ab"]
    assert [finish(run) for run in runs] == [0, 0]
    for number in (0, 1):
        folder = tmp_path / "runs" / "mini_all" / f"version_{number}"
        assert json.loads((folder / "metrics.json").read_text())["run"]["step"] == 2


def test_ranks_write_to_the_folder_that_the_first_one_has_chosen(mini, tmp_path):
    """Also where a rank begins when that folder is there already, or an earlier run's."""
    experiment = tmp_path / "runs" / "mini_all"
    (experiment / "version_3").mkdir(parents=True)
    few = ["--run=null", "--trainer.max_steps=2", "--trainer.val_check_interval=2", *strategy("ddp")]
    ranks = start_ranks([options(mini, tmp_path, f"trace.{rank}", *few) for rank in range(2)], tmp_path / "output")
    assert [finish(rank) for rank in ranks] == [0, 0], [p.read_text()[-2000:] for p in tmp_path.glob("output.*")]
    assert [path.name for path in experiment.iterdir() if any(path.iterdir())] == ["version_4"]
    assert json.loads((experiment / "version_4" / "metrics.json").read_text())["run"]["step"] == 2
    assert (experiment / "version_4" / "checkpoints" / "last.ckpt").exists()


def _together(work, *args):
    """Run a function in two processes that start at once; what they put into the queue."""
    barrier, results = CONTEXT.Barrier(2), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=work, args=(barrier, results, *args)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def _embed(barrier, results, path):
    encoder = HashText()
    barrier.wait()
    vectors = TextEmbeddings(encoder, path)(PETS)
    results.put((len(encoder.asked), float(vectors.vectors.sum())))


def test_text_vectors_are_made_once(tmp_path):
    (asked_a, sum_a), (asked_b, sum_b) = _together(_embed, tmp_path / "t.safetensors")
    assert 0 in (asked_a, asked_b)
    assert asked_a + asked_b > 0
    assert sum_a == sum_b


def _make(barrier, results, root, spec):
    made = []
    write = suite._write
    suite._write = lambda *args: (made.append(1), write(*args))
    barrier.wait()
    ensure(root, spec, progress=False)
    results.put(len(made))


def test_a_mini_suite_is_made_once(tmp_path):
    spec = MiniSpec(size=32, ade=(2, 1), coco=(2, 1), objects365=(2, 1), open=1)
    assert sorted(_together(_make, tmp_path / "mini", spec)) == [0, 1]
    assert suite.is_complete(tmp_path / "mini", spec)

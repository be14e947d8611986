"""Accumulated batches are one large batch: the same samples, the same loss, the same gradient."""

import pytest
import torch
from cli_runs import arguments, finish, read, start

from data_modules.mini import MiniSpec, ensure


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    spec = MiniSpec(seed=3, size=64, ade=(6, 4), coco=(8, 4), objects365=(8, 6))
    return ensure(tmp_path_factory.mktemp("data") / "mini", spec, progress=False)


def first_step(suite, folder, parts, *options):
    """Losses of the batches of the first optimisation step, and its gradient."""
    folder.mkdir()
    few = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--trainer.accumulate_grad_batches={parts}"]
    args = arguments(suite, folder / "runs", folder / "trace", *few, *options, every_n_steps=100)
    assert finish(start(args, folder / "output")) == 0, (folder / "output").read_text()[-3000:]
    entries = [entry for entry in read(folder / "trace") if "batch" in entry]
    assert len(entries) == parts
    terms = [value for entry in entries for of in entry["terms"].values() for value in of.values()]
    return sum(terms) / parts, torch.load(folder / "trace.gradient", weights_only=True)


@pytest.mark.parametrize(
    ("options", "parts"),
    [(["--data.batch_size=4"], 4), (["--data.batch_size=18", "--data.mixed=true"], 2)],
    ids=["one dataset", "mixed"],
)
@pytest.mark.parametrize("merge", ["targets", pytest.param("predictions", marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_one_large_batch(suite, tmp_path, options, parts, merge):
    options = [*options, f"--model.merge={merge}"]
    loss, gradient = first_step(suite, tmp_path / "whole", 1, *options)
    other, accumulated = first_step(suite, tmp_path / "parts", parts, *options)
    assert other == pytest.approx(loss, rel=1e-6)
    largest = max(float(expected.abs().max()) for expected in gradient.values())
    for name, expected in gradient.items():
        assert (accumulated[name] - expected).abs().max() < 1e-5 * largest, name

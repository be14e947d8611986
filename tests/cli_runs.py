"""Runs of the command line in processes of their own, which a test may kill, and what they did step by step.

Processes are forked from a server that has imported everything already, so that a run starts within a second.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
import zlib
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from dataseg.losses.criterion import LOSS_STREAM, MATCHING_STREAM
from dataseg.losses.points import uniform_points

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cli_runs", "dataseg.cli", "data_modules", "callbacks"])

SMALL = [
    "--model.network.init_args.backbone.init_args.name=test_convnext",
    "--model.network.init_args.backbone.init_args.options={}",
    "--model.network.init_args.hidden_dim=32",
    "--model.network.init_args.num_queries=8",
    "--model.network.init_args.decoder_layers=2",
    "--model.network.init_args.pixel_decoder_layers=1",
    "--model.network.init_args.feedforward_dim=32",
    "--model.network.init_args.pixel_decoder_feedforward_dim=32",
    "--model.criterion.init_args.num_points=64",
    "--model.optimization.warmup_steps=5",
]
SMALL_ENCODER_ONLY = [
    "--model.network.init_args.backbone.init_args.options={embed_dim: 32, depth: 4, num_heads: 2, drop_path_rate: 0.2}",
    "--model.network.init_args.backbone.init_args.checkpointing=true",
    "--model.network.init_args.num_queries=8",
    "--model.criterion.init_args.num_points=64",
    "--model.optimization.warmup_steps=3",
    "--model.optimization.backbone_warmup_steps=3",
]


NO_PICTURES = "--trainer.callbacks=[{class_path: callbacks.Evaluation}, {class_path: callbacks.RunRecord}]"
"""They take longer than an evaluation of a few images."""


def on_suite(suite: Path, runs: Path) -> list[str]:
    """Arguments of a run "test" below ``runs`` on a mini suite that is there already, in small, on the CPU."""
    return [
        "--run=test",
        f"--runs={runs}",
        f"--data.root={suite}",
        "--data.mini=null",
        "--data.train_transform.image_size=64",
        "--data.eval_transform.size=64",
        "--trainer.accelerator=cpu",
    ]


class Trace(pl.Callback):
    """Appends a line for every batch and every validation; what one rank did can be read while it is running."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _write(self, **entry) -> None:
        with Path(self.path).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        here = {k: b for k, b in batch.items() if b is not None}
        samples = {k: [b.image_ids, b.seeds, *_halves(b.images)] for k, b in here.items()}
        # Lightning divides by the number of accumulated batches; the terms are as computed
        terms = {d: {n: float(v) for n, v in t.items()} for d, t in outputs["terms"].items()}
        loss = float(outputs["loss"]).hex()
        points = {k: [_points(seed) for seed in b.seeds] for k, b in here.items()}
        self._write(batch=batch_idx, step=trainer.global_step, samples=samples, points=points, loss=loss, terms=terms)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            grads = {name: p.grad for name, p in pl_module.named_parameters()}
            full = {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in grads.items()}
            torch.save({name: g.detach().clone() for name, g in full.items()}, f"{self.path}.gradient")

    def on_validation_start(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self._write(validating=trainer.global_step)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            figures = {k: float(v).hex() for k, v in trainer.callback_metrics.items() if k != "loss"}
            self._write(validated=trainer.global_step, figures=figures)


class Spoil(pl.Callback):
    """Makes a parameter infinite, or what it is told, before a step, on one rank."""

    def __init__(self, step: int, parameter: str, rank: int = 0, value: str = "inf") -> None:
        self.step, self.parameter, self.rank, self.value = step, parameter, rank, float(value)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            pl_module.get_parameter(self.parameter).data.fill_(self.value)


def _halves(images: torch.Tensor) -> list:
    """Digest of a batch's pixels, and of its halves."""
    return [_digest(images), [_digest(half) for half in images.chunk(2)]]


def _points(seed: int) -> int:
    """Digest of the points at which a sample's masks are compared."""
    points = [uniform_points(seed, stream, (2, 64), torch.device("cpu")) for stream in (MATCHING_STREAM, LOSS_STREAM)]
    return _digest(torch.stack(points))


def _digest(tensor) -> int:
    return zlib.crc32(tensor.numpy().tobytes())


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def arguments(
    suite: Path,
    runs: Path,
    trace: Path,
    *more: str,
    run: str = "test",
    every_n_steps: int = 5,
    encoder_only: bool = False,
) -> list[str]:
    """Command line of a small `mini_all`, or `mini_eomt_all`, with the callbacks that a run's course depends on."""
    callbacks: list[dict] = [{"class_path": f"callbacks.{name}"} for name in ("LossCurves", "Evaluation", "RunRecord")]
    callbacks += [{"class_path": "callbacks.NonFiniteGuard"}]
    callbacks += [{"class_path": "callbacks.Checkpoints", "init_args": {"every_n_steps": every_n_steps}}]
    callbacks += [{"class_path": "cli_runs.Trace", "init_args": {"path": str(trace)}}]
    return [
        "fit",
        f"--config={ROOT / 'conf' / 'exp' / ('mini_eomt_all' if encoder_only else 'mini_all')}.yaml",
        "--exp=mini_all",
        f"--run={run}",
        f"--runs={runs}",
        f"--data.root={suite}",
        "--data.mini=null",
        "--data.train_transform.image_size=64",
        "--data.eval_transform.size=64",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
        f"--trainer.callbacks={json.dumps(callbacks)}",
        *(SMALL_ENCODER_ONLY if encoder_only else SMALL),
        *more,
    ]


def own_experiment(name: str, conf: Path, root: Path) -> list[str]:
    """Arguments of a command on an experiment that `dataseg own-data` wrote into ``conf``; data, runs in ``root``."""
    return [
        f"--config={conf / 'exp' / name}.yaml",
        f"--exp={name}",
        f"--runs={root / 'runs'}",
        "--run=test",
        f"--data.root={root}",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
    ]


def _run(args: list[str], output: str, environment: dict[str, str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loading processes, as in a run from the command line
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # Lightning reads it when it is imported
    stream = open(output, "a", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = sys.stderr = stream
    torch.set_num_threads(1)
    from dataseg.cli.__main__ import main

    try:
        status = main(args)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 70
    os._exit(status)


def start(args: list[str], output: Path, environment: dict[str, str] | None = None):
    """Start a run; its exit status is 0, 1 (a message) or 70 (a traceback); its output is appended to a file."""
    process = CONTEXT.Process(target=_run, args=(args, str(output), environment or {}))
    process.start()
    return process


def finish(process, seconds: float = 120) -> int:
    """Wait for the end of a run.

    Raises:
        AssertionError: it takes longer: it hangs.
    """
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"a run was still going after {seconds} s")
    return process.exitcode


def wait_until(condition, process, seconds: float = 120) -> bool:
    """Poll until the condition holds (True) or the process has ended (False)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if not process.is_alive():
            return False
        time.sleep(0.002)
    process.kill()
    raise AssertionError(f"nothing happened for {seconds} s")


def start_ranks(args: list[list[str]], output: Path) -> list:
    """Start one process a rank, with the environment that torchrun gives them."""
    port = free_port()
    common = {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(args)),
        "LOCAL_WORLD_SIZE": str(len(args)),
        "GROUP_RANK": "0",
    }
    return [
        start(own, output.with_suffix(f".{rank}"), common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, own in enumerate(args)
    ]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def strategy(name: str, ranks: int = 2) -> list[str]:
    """Options that run a strategy of conf/strategy on several CPU processes."""
    return [f"--config={ROOT / 'conf' / 'strategy' / name}.yaml", f"--trainer.devices={ranks}"]

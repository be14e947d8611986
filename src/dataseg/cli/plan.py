"""Plan a run before GPUs are rented: memory, time, disk and cores. Needs no GPU, no data and no network.

``dataseg plan --exp r50_all --gpus 8 --gpu h100-80 [overrides of the configuration]``
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from rich.table import Table

from dataseg.cli.co_training import CoTrainingCLI
from dataseg.config.instantiate import instantiate, without_downloads
from dataseg.experiments import plan
from dataseg.network import SegmentationNetwork
from dataseg.structures import UserError
from dataseg.training.module import CoTrainedSegmenter

PRECISIONS = ("bf16-mixed", "32-true")


class Planned(CoTrainingCLI):
    """The command line of training; nothing is built."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--gpus", type=int, default=8, help="number of GPUs, on all machines")
        parser.add_argument("--gpu", type=str, default="h100-80", help=f"kind: {', '.join(plan.GPUS)}")
        parser.add_argument("--segments", type=int, default=20, help="segments of an image, on average")
        parser.add_argument("--utilisation", type=float, default=0.5, help="share of the GPUs' peaks that is reached")

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def _run(config: Namespace, data: Any) -> plan.Run:
    kept = [c.init_args.keep_last for c in config.trainer.callbacks if c.class_path == "callbacks.Checkpoints"]
    if config.trainer.max_steps <= 0:
        raise UserError("trainer.max_steps must be set: the length of a run is counted in steps")
    return plan.Run(
        batch=data.batch_size,
        steps=config.trainer.max_steps,
        accumulate=config.trainer.accumulate_grad_batches,
        image_size=data.train_transform.image_size,
        checkpoints=sum(kept) + 1,  # the best
    )


def _network(section: dict[str, Any], checkpointing: str | None = None) -> SegmentationNetwork:
    """On the meta device: without memory for weights, and without weights."""
    section = copy.deepcopy(section)
    if checkpointing is not None:
        section.setdefault("init_args", {})["activation_checkpointing"] = checkpointing
    with torch.device("meta"):
        network: SegmentationNetwork = instantiate(SegmentationNetwork, section, "model.network")
    return network


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan.

    Raises:
        UserError: a GPU that is not known, or a number out of range.
    """
    cli = Planned(
        CoTrainedSegmenter,
        LightningDataModule,
        subclass_mode_data=True,
        run=False,
        args=None if arguments is None else list(arguments),
        seed_everything_default=0,
        save_config_callback=None,
    )
    config = cli.config
    gpu = plan.gpu_of(config.gpu)
    if config.gpus < 1 or config.segments < 1 or not 0 < config.utilisation <= 1:
        raise UserError(
            "need gpus >= 1, segments >= 1 and utilisation in (0, 1], got"
            f" {config.gpus}, {config.segments} and {config.utilisation}"
        )
    data = cli.build_data()
    run = _run(config, data)
    classes = max(len(spec.vocabulary) for spec in data.specs.values())
    section = without_downloads(config.model.network.as_dict())
    text_dim = section.get("init_args", section).get("text_dim", 768)  # of CLIP ViT-L/14
    planned = _network(section)
    count, trainable = plan.parameters(planned)
    choices = planned.checkpointing if len(planned.checkpointing) > 1 else (None,)
    names = ("precision", "checkpointing", "strategy", "GiB", "fits", "images", "most", "days", "cores")
    table = Table(*names, box=None, padding=(0, 2, 0, 0))  # 80 columns hold it
    for precision, chosen in product(PRECISIONS, choices):
        cost = plan.step_cost(_network(section, chosen), run.image_size, classes, text_dim, config.segments, precision)
        for strategy in ("ddp", "fsdp") if config.gpus > 1 else ("one GPU",):
            found = plan.plan(
                cost,
                trainable,
                count - trainable,
                run,
                gpu,
                config.gpus,
                strategy == "fsdp",
                precision != "32-true",
                config.utilisation,
            )
            table.add_row(
                precision,
                chosen or "-",
                strategy,
                f"{found.memory / plan.GIB:.1f}",
                "yes" if found.fits else "no",
                str(found.images),
                str(found.most),
                f"{found.days:.2f}",
                str(found.cores),
            )
    console = Console()
    console.print(f"{config.exp}: {count:,} parameters, {trainable:,} of them trained")
    console.print(f"  weights, gradients and optimiser {found.total / plan.GIB:.2f} GiB", highlight=False)
    console.print(f"  step: {run.batch} images of {run.image_size} px, {run.batch * cost.flops / 1e12:.1f} TFLOP")
    console.print(f"  disk: {run.checkpoints} checkpoints, {found.disk / plan.GIB:.1f} GiB")
    console.print(table)
    console.print("GiB, images at a time and the most that fit: of each GPU; checkpointing: activation_checkpointing")
    console.print(_assumptions(config), highlight=False, soft_wrap=True)
    return 0


def _assumptions(config: Namespace) -> str:
    gpu = plan.gpu_of(config.gpu)
    speeds = f"{gpu.half:g} TFLOP/s in bfloat16, {gpu.single:g} in float32, {gpu.bandwidth:g} TB/s"
    return "\n".join(
        [
            "assumed:",
            f"- {config.gpus} x {config.gpu}: {gpu.memory:g} GiB, {speeds} (data sheet)",
            f"- {plan.USABLE:.0%} of the memory holds tensors; {config.utilisation:.0%} of the speeds is reached"
            f" (--utilisation); {1e6 * plan.LAUNCH:g} us to launch an operation",
            "- days and cores: of the network's two passes; loss, optimiser, communication and evaluation not counted",
            "- memory: AdamW in float32; activations at the fullest moment of the network's two passes; matched masks"
            f" of {config.segments} segments an image in the loss (--segments); not the block that fsdp gathers",
            f"- cores: {plan.IMAGES_PER_CORE:g} images a second on one at {plan.CORE_SIZE} px, by area"
            " (benchmarks/results/data.json)",
        ]
    )

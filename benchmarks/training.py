"""Loss and training step against transformers' Mask2Former, of the same network and the same loss.

    python benchmarks/training.py                       # needs: pip install transformers
    python benchmarks/training.py --device cuda --size 640 --batch 8
    python benchmarks/training.py --size 96 --points 256 --repeats 1 --dry-run

Loss: matching, losses and their gradients for given predictions. Step: network over a ResNet-50 whose normalisation is
frozen on both sides, loss, and gradients of every weight; no optimiser. Ours starts from segment maps, transformers
from a dense mask of each segment, as its image processor makes them; making them is not in its time. Both draw random
points of their own, so that losses differ a little: more than ``TOLERANCE`` apart, and the run stops.

Memory is the peak above what was there before the first run, in a process of its own for each: of the whole process
on the CPU, of tensors on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import torch
from _common import Report, peak_memory, ratio, side_by_side
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from dataseg.checkpoint.state_dict_adapter import HUGGING_FACE, translate
from dataseg.losses import Criterion
from dataseg.network import LinearClassifier, MaskClassificationNetwork, TimmBackbone
from dataseg.structures import Batch, ClassEmbeddings, Proposals, SegmentMap, Target, Task

CLASSES, QUERIES, LAYERS = 133, 100, 10  # layers that predict
SEGMENTS = 14  # an image
TOLERANCE = 0.03
WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
STAGES = ["stage1", "stage2", "stage3", "stage4"]

Run = Callable[[], float]
"""Does the work once, and gives the loss."""


@dataclass(frozen=True)
class Settings:
    """Square images of ``size`` pixels, ``batch`` of them; ``points`` a mask."""

    device: str
    size: int
    batch: int
    points: int


def make_batch(settings: Settings) -> Batch:
    """Noise; its targets are tessellations by nearest seed."""
    generator = torch.Generator().manual_seed(0)
    size, count = settings.size, settings.batch
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1).float()
    targets: list[Target] = []
    for _ in range(count):
        seeds = size * torch.rand(SEGMENTS, 2, generator=generator)
        ids = torch.cdist(grid.view(-1, 2), seeds).argmin(1).view(size, size)
        labels = torch.randperm(CLASSES, generator=generator)[:SEGMENTS]
        present, ids = ids.unique(return_inverse=True)
        targets.append(SegmentMap(ids.to(torch.int16), labels[present]))
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    sizes = [(size, size)] * count
    batch = Batch("bench", Task.PANOPTIC, images, sizes, targets, [str(i) for i in range(count)], sizes,
                  list(range(count)), [False] * count)  # fmt: skip
    return batch.to(torch.device(settings.device))


def dense(targets: list[Target]) -> tuple[list[Tensor], list[Tensor]]:
    """Masks ``[K, H, W]``, float, and labels, as transformers takes them."""
    masks = []
    for target in targets:
        assert isinstance(target, SegmentMap)
        masks.append(torch.stack([target.ids == k for k in range(len(target))]).float())
    return masks, [t.labels for t in targets]


def config_of_theirs(points: int) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        backbone_config=ResNetConfig(out_features=STAGES),
        num_labels=CLASSES,
        num_queries=QUERIES,
        decoder_layers=LAYERS,
        train_num_points=points,
    )


def finished(loss: Tensor, settings: Settings) -> float:
    """Gradients, and the loss once the device is done."""
    loss.backward()
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return float(loss.detach())


# ----------------------------------------------------------------------------------------------------------- loss


def loss_contender(name: str, settings: Settings) -> Run:
    batch = make_batch(settings)
    generator = torch.Generator().manual_seed(1)
    grid = settings.size // 4
    shapes = (settings.batch, QUERIES, CLASSES + 1), (settings.batch, QUERIES, grid, grid)
    layers = [
        [torch.randn(*shape, generator=generator).to(settings.device).requires_grad_() for shape in shapes]
        for _ in range(LAYERS)
    ]

    def clear() -> None:
        for pair in layers:
            for logits in pair:
                logits.grad = None

    if name == "ours":
        criterion = Criterion(num_points=settings.points)
        proposals = [Proposals(class_logits=c, mask_logits=m) for c, m in layers]

        def run() -> float:
            clear()
            return finished(sum(criterion(proposals, batch).values(), torch.tensor(0.0)), settings)

        return run

    official = Mask2FormerLoss(config_of_theirs(settings.points), {}).to(settings.device)
    masks, labels = dense(batch.targets)
    auxiliary = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in layers[1:]]

    def run_theirs() -> float:
        clear()
        losses = official(layers[0][1], layers[0][0], masks, labels, auxiliary)
        weighted = [next(w for key, w in WEIGHTS.items() if n.startswith(key)) * v for n, v in losses.items()]
        return finished(torch.stack(weighted).sum(), settings)

    return run_theirs


# ----------------------------------------------------------------------------------------------------------- step


def step_contender(name: str, settings: Settings) -> Run:
    batch = make_batch(settings)
    torch.manual_seed(0)
    theirs = Mask2FormerForUniversalSegmentation(config_of_theirs(settings.points)).train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)
    if name == "ours":
        backbone = TimmBackbone("resnet50", pretrained=False)
        ours = MaskClassificationNetwork(backbone, classifier=LinearClassifier(256, CLASSES)).train()
        ours.load_state_dict(translate(theirs.state_dict(), HUGGING_FACE).tensors, strict=False)
        del theirs
        ours.to(settings.device)
        classes = ClassEmbeddings(torch.zeros(CLASSES, 1), torch.arange(CLASSES)).to(torch.device(settings.device))
        criterion = Criterion(num_points=settings.points)

        def run() -> float:
            ours.zero_grad()
            losses = criterion(ours(batch.images, classes), batch)
            return finished(sum(losses.values(), torch.tensor(0.0)), settings)

        return run

    theirs.to(settings.device)
    masks, labels = dense(batch.targets)
    mean = 255 * torch.tensor([0.485, 0.456, 0.406], device=settings.device).view(3, 1, 1)
    std = 255 * torch.tensor([0.229, 0.224, 0.225], device=settings.device).view(3, 1, 1)

    def run_theirs() -> float:
        theirs.zero_grad()
        return finished(theirs((batch.images - mean) / std, mask_labels=masks, class_labels=labels).loss, settings)

    return run_theirs


# --------------------------------------------------------------------------------------------------------- report

CONTENDERS = {"loss": loss_contender, "step": step_contender}


def memory(part: str, name: str, settings: Settings) -> float:
    """Peak of two runs above what was there before them, MB; for a process of its own."""
    return peak_memory(CONTENDERS[part](name, settings), settings.device)


def bench(report: Report, part: str, settings: Settings, repeats: int) -> None:
    contenders = {name: CONTENDERS[part](name, settings) for name in ("ours", "transformers")}
    losses = {name: statistics.median(run() for _ in range(3)) for name, run in contenders.items()}
    if abs(losses["ours"] / losses["transformers"] - 1) > TOLERANCE:
        raise SystemExit(f"{part}: the losses are {losses}: not the same task")
    seconds = side_by_side(contenders, repeats)
    report.add_medians(f"{part}, seconds", seconds)
    value = ratio(seconds["transformers"], seconds["ours"])
    report.add(f"{part}_vs_transformers", value, f"transformers' time / ours, {part}")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks = {name: [pool.submit(memory, part, name, settings).result()] for name in contenders}
    report.add_medians(f"{part}, peak MB", peaks)
    value = peaks["transformers"][0] / peaks["ours"][0]
    report.add(f"{part}_memory_vs_transformers", value, f"transformers' peak memory / ours, {part}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", type=int, default=384, help="pixels, rows and columns")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--points", type=int, default=12544)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=sorted(CONTENDERS), default=None)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    settings = Settings(options.device, options.size, options.batch, options.points)
    described = asdict(settings) | {
        "repeats": options.repeats, "classes": CLASSES, "queries": QUERIES, "layers": LAYERS, "segments": SEGMENTS,
    }  # fmt: skip
    report = Report("training" if options.device == "cpu" else "training_cuda", described, ("transformers", "timm"))
    for part in CONTENDERS if options.only is None else [options.only]:
        bench(report, part, settings, options.repeats)
    report.finish(write=not options.dry_run)


if __name__ == "__main__":
    main()

"""What a training step needs, found without a GPU or data: fake tensors run through the network and back.

A fake tensor has a shape, a type and a device but no content, so a step of any size takes seconds and no memory. The
tensors are fake CPU tensors: autograd and autocast do on them what they do on a GPU, which fake CUDA tensors do only
where there is one.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dataseg.structures import ClassEmbeddings, Proposals, UserError

GIB = 2**30
USABLE = 0.9
"""Share of a GPU's memory that tensors can take; the rest is CUDA's, and lost between blocks."""

IMAGES_PER_CORE = 216.0
"""Training images a second that one core prepares, at `CORE_SIZE` (benchmarks/results/data.json, "ours")."""
CORE_SIZE = 640

STATE_BYTES = 16
"""Of a trainable parameter: weight, gradient and AdamW's two moments, float32."""
CHECKPOINT_BYTES = 12
"""Of a trainable parameter on disk: weight and AdamW's two moments."""


@dataclass(frozen=True)
class Gpu:
    """What the vendor's data sheet states.

    Attributes:
        memory: GiB.
        half: peak of dense matrix products in bfloat16, accumulated in float32, TFLOP/s.
        single: in float32, by TF32, TFLOP/s.
        bandwidth: of its memory, TB/s.
    """

    memory: float
    half: float
    single: float
    bandwidth: float


GPUS = {
    "a100-40": Gpu(40, 312, 156, 1.56),
    "a100-80": Gpu(80, 312, 156, 2.04),
    "h100-80": Gpu(80, 989, 495, 3.35),
    "h200-141": Gpu(141, 989, 495, 4.8),
    "l40s-48": Gpu(48, 362, 183, 0.86),
    "rtx4090-24": Gpu(24, 165, 83, 1.01),
}

LAUNCH = 1e-5
"""Seconds that the host takes to start one operation."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations cost; bytes of the storages that they make, as long as they live.

    torch's own FlopCounterMode, whose formulas these are, keeps what checkpointed layers compute again.

    Attributes:
        live: now.
        peak: the most that lived at one time.
        moved: that operations read and wrote; views move nothing.
        operations: that moved any.
        flops: of matrix products and convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.moved = self.operations = self.flops = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        if made and not getattr(func, "is_view", False):  # the others ask for a device or a size
            self.operations += 1
            self.moved += sum(t.numel() * t.element_size() for t in (*given, *made))
            for tensor in made:
                if all(tensor.untyped_storage() is not other.untyped_storage() for other in given):
                    self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _tensors(value: Any) -> list[Tensor]:
    """Those in an operation's arguments or result."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@dataclass(frozen=True)
class StepCost:
    """Of one image in one training step; all but ``operations`` grows with the number of images.

    Attributes:
        saved: bytes that the forward pass leaves for the backward pass.
        peak: bytes at the fullest moment of both passes, gradients of weights not among them; the loss is.
        flops: of both passes; a multiplication and an addition are two. Matrix products and convolutions alone.
        moved: bytes that the operations of both passes read and write.
        operations: of both passes, without those of loss and optimiser.
    """

    saved: int
    peak: int
    flops: int
    moved: int
    operations: int


def parameters(network: nn.Module) -> tuple[int, int]:
    """Numbers of all and of trainable parameters; a network on the meta device will do."""
    all_ = list(network.parameters())
    return sum(p.numel() for p in all_), sum(p.numel() for p in all_ if p.requires_grad)


def step_cost(network: nn.Module, size: int, classes: int, text_dim: int, segments: int, precision: str) -> StepCost:
    """Measure a training step of one square image, network and loss.

    Args:
        network: as `MaskClassificationNetwork` is called; on the meta device. It is fake afterwards.
        size: side of the image, pixels.
        classes: of the vocabulary.
        text_dim: width of the class vectors.
        segments: matched with the image's queries, in the loss.
        precision: of Lightning; those that start with "bf16" and "16" compute in 16 bits where autocast does.
    """
    is_half = precision.startswith(("bf16", "16"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu").train()
        image = torch.empty(1, 3, size, size, dtype=torch.uint8)
        vectors = ClassEmbeddings(torch.empty(classes, text_dim), torch.arange(classes), classes, "")
        with _Counter() as counter:
            with torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
                proposals = network(image, vectors)
            saved = counter.live
        held = _loss_bytes(proposals, segments)
        with counter:
            # gradients of every logit, of its own type, as a loss gives them; gradients of weights are let go at once
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
            logits = [t for p in proposals for t in (p.mask_logits, p.class_logits)]
            gradients = [torch.empty_like(t) for t in logits]
            counter.peak = counter.live + held
            torch.autograd.backward(logits, gradients)
            peak = counter.peak
    return StepCost(saved, peak, counter.flops, counter.moved, counter.operations)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _loss_bytes(proposals: list[Proposals], segments: int) -> int:
    """What the loss holds: float32 logits of the matched masks of every layer, and their gradient."""
    return sum(2 * 4 * segments * math.prod(p.mask_logits.shape[-2:]) for p in proposals)


@dataclass(frozen=True)
class Run:
    """What is planned.

    Attributes:
        batch: images of an optimisation step, over all GPUs and accumulated batches.
        steps: optimisation steps.
        accumulate: batches that are accumulated for a step.
        image_size: side of a training image, pixels.
        checkpoints: kept on disk.
    """

    batch: int
    steps: int
    accumulate: int
    image_size: int
    checkpoints: int


@dataclass(frozen=True)
class Plan:
    """What a run needs on given GPUs.

    Attributes:
        total: bytes of the whole model's state (weights, gradients, optimiser).
        images: that one GPU has at a time.
        memory: bytes on each GPU.
        most: images that a GPU could have at a time; 0 = the state alone does not fit.
        fits: whether ``memory`` does.
        seconds: of an optimisation step.
        days: of the run, without evaluation.
        cores: that prepare the images in that time, over all machines.
        disk: bytes of the checkpoints.
    """

    total: int
    images: int
    memory: int
    most: int
    fits: bool
    seconds: float
    days: float
    cores: int
    disk: int


def plan(
    cost: StepCost, trainable: int, frozen: int, run: Run, gpu: Gpu, gpus: int, sharded: bool, half: bool, used: float
) -> Plan:
    """Add up a run.

    An image takes a GPU the time of its arithmetic and of its memory traffic, one after the other, as in eager mode;
    a pass takes at least as long as its operations take to launch.

    Args:
        cost: of one image.
        trainable: parameters.
        frozen: parameters that take no gradient.
        gpus: number of them.
        sharded: the state is spread over the GPUs (``STRATEGY=fsdp``).
        half: 16-bit arithmetic.
        used: share of the GPUs' peaks, of arithmetic and of memory traffic, that is reached; in (0, 1].
    """
    state = STATE_BYTES * trainable + 4 * frozen
    own = -(-state // gpus) if sharded else state
    images = -(-run.batch // (gpus * run.accumulate))
    room = USABLE * gpu.memory * GIB - own
    speed = gpu.half if half else gpu.single
    image_seconds = (cost.flops / speed + cost.moved / gpu.bandwidth) / (1e12 * used)
    seconds = run.accumulate * max(images * image_seconds, cost.operations * LAUNCH)
    per_core = IMAGES_PER_CORE * (CORE_SIZE / run.image_size) ** 2
    memory = own + images * cost.peak
    return Plan(
        total=state,
        images=images,
        memory=memory,
        most=max(0, int(room // cost.peak)),
        fits=memory <= USABLE * gpu.memory * GIB,
        seconds=seconds,
        days=run.steps * seconds / 86400,
        cores=math.ceil(run.batch / seconds / per_core),
        disk=run.checkpoints * (CHECKPOINT_BYTES * trainable + 4 * frozen),
    )


def gpu_of(name: str) -> Gpu:
    """A GPU by its name and memory.

    Raises:
        UserError: not in the list.
    """
    if name not in GPUS:
        raise UserError(f"GPU={name} is not known; choose one of {', '.join(GPUS)}")
    return GPUS[name]

"""The network traced for use without our code: `torch.export` and ONNX, for any batch and image size.

A traced network has one vocabulary built in. It takes RGB images of any size and pads them itself, as evaluation does.

Shape legend: B = batch, H, W = image rows, columns, h, w = 8 * ceil(H / 32), 8 * ceil(W / 32), Q = queries,
C = classes of the vocabulary.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dataseg.network import SegmentationNetwork
from dataseg.structures import ClassEmbeddings, UserError, Vocabulary
from dataseg.structures.geometry import DIVISOR

log = logging.getLogger(__name__)

INSTALL = "pip install onnx onnxscript onnxruntime, which are the extra dataseg[onnx]"

INPUT, OUTPUTS = "images", ("class_logits", "mask_logits")
OPSET = 18
"""The first in which scattering can take a maximum (a class's best name); deformable attention's grid sampling is in
since 16."""

TRACED = (2, 3, 288, 352)
"""Shape of the images that the network is traced with."""
CHECKED = ((1, 3, 288, 352), (3, 3, 257, 415), (2, 3, 321, 290))
"""Shapes that a traced network is compared with the network on; odd sizes are rounded up where it asks for that."""
MIN_BLOCKS, MAX_BLOCKS = 8, 256
"""Bounds of ceil(H / 32) and ceil(W / 32): Swin computes otherwise where a map is one window wide."""
TOLERANCE = 1e-3
"""Largest mean difference between a traced network's logits and the network's.

Not the largest difference: where a mask logit is 0 but for rounding, masked attention sees a pixel in one of them and
not in the other, and a whole query may differ by more than rounding.
"""


class FixedVocabulary(nn.Module):
    """The network with its last layer's result alone and one vocabulary.

    Args:
        network: in evaluation mode.
        classes: text vectors of the vocabulary.
        any_size: whether it pads images itself; else it takes multiples of 32, padded by the caller.
    """

    vectors: Tensor
    class_index: Tensor

    def __init__(self, network: SegmentationNetwork, classes: ClassEmbeddings, any_size: bool = True) -> None:
        super().__init__()
        self.network = network
        self.num_classes, self.vocabulary = classes.num_classes, classes.vocabulary
        self.any_size = any_size
        self.register_buffer("vectors", classes.vectors)
        self.register_buffer("class_index", classes.class_index)

    @property
    def padding_rgb(self) -> tuple[float, ...]:
        """Colour that is exactly 0 once normalised, as float32."""
        return tuple(self.network.pixel_mean.flatten().tolist())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Propose.

        Args:
            images: float32 ``[B, 3, H, W]``, RGB, values 0 to 255.

        Returns:
            Class logits ``[B, Q, C + 1]``, the background last, and mask logits ``[B, Q, h, w]`` of the image padded
            to multiples of 32 at the bottom and right.
        """
        normalized = self.network.normalize(images)
        if self.any_size:
            # in this form the exporter sees that the padded sides are multiples
            rows, columns = ((n + DIVISOR - 1) // DIVISOR * DIVISOR for n in images.shape[2:])
            normalized = F.pad(normalized, (0, columns - images.shape[3], 0, rows - images.shape[2]))
        classes = ClassEmbeddings(self.vectors, self.class_index, self.num_classes, self.vocabulary)
        (proposals,) = self.network.classify(self.network.decode(normalized)[-1:], classes)
        return proposals.class_logits, proposals.mask_logits


@dataclass(frozen=True)
class Difference:
    """How far a traced network's logits are from the network's.

    Attributes:
        shape: of the images.
        largest: absolute difference of class logits and of mask logits.
        mean: likewise.
    """

    shape: tuple[int, ...]
    largest: tuple[float, float]
    mean: tuple[float, float]

    def __str__(self) -> str:
        size = " x ".join(map(str, self.shape))
        texts = [
            f"{what} logits differ by {mean:.1e} on average, {most:.1e} at most"
            for what, mean, most in zip(("class", "mask"), self.mean, self.largest, strict=True)
        ]
        return f"images {size}: {', '.join(texts)}"


@dataclass(frozen=True)
class TracedNetwork:
    """A network traced for any batch and size.

    Attributes:
        program: what torch.export made.
        model: what was traced.
    """

    program: ExportedProgram
    model: FixedVocabulary

    @property
    def images(self) -> str:
        """What it takes, for people."""
        sides = f"{DIVISOR * (MIN_BLOCKS - 1) + 1} to {DIVISOR * MAX_BLOCKS} pixels"
        if not self.model.any_size:
            colour = f"RGB {self.model.padding_rgb} at the bottom and right, which is 0 once normalised"
            sides = f"multiples of {DIVISOR} from {DIVISOR * MIN_BLOCKS} pixels, padded with {colour}"
        return f"float32 [B, 3, H, W], RGB, 0 to 255; sides: {sides}"


@torch.no_grad()
def trace(network: SegmentationNetwork, classes: ClassEmbeddings) -> TracedNetwork:
    """Trace for any batch and size; for multiples of 32 where the backbone allows the exporter no more (Swin).

    Args:
        network: on the CPU.
        classes: text vectors of the vocabulary to build in.
    """
    network = network.eval()
    model = FixedVocabulary(network, classes).eval()
    try:
        low, high = DIVISOR * (MIN_BLOCKS - 1) + 1, DIVISOR * MAX_BLOCKS
        return TracedNetwork(_export(model, *(Dim(name, min=low, max=high) for name in ("rows", "columns"))), model)
    except (RuntimeError, ValueError) as error:  # the exporter cannot prove that one graph serves all sizes
        log.info("not exported for any size (%s): for multiples of %d", str(error).split("\n")[0], DIVISOR)
    model = FixedVocabulary(network, classes, any_size=False).eval()
    blocks = (Dim(name, min=MIN_BLOCKS, max=MAX_BLOCKS) for name in ("rows", "columns"))
    return TracedNetwork(_export(model, *(DIVISOR * block for block in blocks)), model)


def _export(model: FixedVocabulary, rows: Any, columns: Any) -> ExportedProgram:
    sizes = {0: Dim("batch", min=1, max=1024), 2: rows, 3: columns}
    return torch.export.export(model, (_images(TRACED),), dynamic_shapes={INPUT: sizes})


def save_program(network: TracedNetwork, path: Path, vocabulary: Vocabulary) -> None:
    """Write ``.pt2``; extra files: ``vocabulary.json``, and ``images.txt`` on what it takes."""
    files = {"vocabulary.json": json.dumps(vocabulary.to_json()), "images.txt": network.images}
    torch.export.save(network.program, path, extra_files=files)


def save_onnx(network: TracedNetwork, path: Path, vocabulary: Vocabulary) -> None:
    """Write an ONNX file, with ``vocabulary`` (JSON) and ``images`` (what it takes) in its metadata.

    Raises:
        UserError: the packages for it are missing.
    """
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise UserError(f"ONNX needs further packages ({error}): {INSTALL}") from error
    with _quiet():
        onnx = torch.onnx.export(
            network.program,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert onnx is not None
    onnx.model.metadata_props.update(vocabulary=json.dumps(vocabulary.to_json()), images=network.images)
    onnx.save(path)


def onnx_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The ONNX file as a function, run by onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"checking an ONNX file needs onnxruntime: {INSTALL}") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        class_logits, mask_logits = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        return torch.from_numpy(np.asarray(class_logits)), torch.from_numpy(np.asarray(mask_logits))

    return run


@torch.no_grad()
def compare(model: FixedVocabulary, traced: Callable[[Tensor], Any], source: str) -> list[Difference]:
    """Compare a traced network, as it was read back from a file, with the network on images of several sizes.

    Raises:
        UserError: they differ by more than `TOLERANCE` on average; what was traced must not be used.
    """
    results = []
    for shape in CHECKED:
        images = _images(shape if model.any_size else (*shape[:2], *(-(-n // DIVISOR) * DIVISOR for n in shape[2:])))
        ours, theirs = model(images), traced(images)
        for a, b in zip(ours, theirs, strict=True):
            if a.shape != b.shape:
                raise UserError(f"{source}: gives {list(b.shape)} in place of {list(a.shape)}")
        differences = [(a - b).abs() for a, b in zip(ours, theirs, strict=True)]
        largest, mean = (tuple(float(f(d)) for d in differences) for f in (torch.max, torch.mean))
        results.append(Difference(tuple(images.shape), largest, mean))  # type: ignore[arg-type]
        if not max(mean) <= TOLERANCE:
            raise UserError(f"{source}: is not equal to the network, do not use it ({results[-1]})")
    return results


def _images(shape: tuple[int, ...]) -> Tensor:
    """Random, the same every time; smooth in part, as pictures are."""
    generator = torch.Generator().manual_seed(sum(shape))
    coarse = torch.rand(shape[0], 3, 9, 11, generator=generator) * 255
    smooth = F.interpolate(coarse, shape[2:], mode="bilinear")
    return (0.8 * smooth + 0.2 * 255 * torch.rand(shape, generator=generator)).round()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's notes on operators it passes over."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

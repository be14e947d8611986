"""What every network is: images and a vocabulary's vectors in, (mask, class) proposals out.

Shape legend: B = batch, Q = queries, D = hidden channels, C = classes, H, W = image rows, columns, h, w = H / 4,
W / 4 rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dataseg.network.classifiers.text import Classifier
from dataseg.structures import ClassEmbeddings, Proposals


@dataclass
class Queries:
    """One decoder layer's result, before any vocabulary is applied.

    Attributes:
        embeddings: ``[B, Q, D]``, what the classifier reads.
        mask_logits: ``[B, Q, h, w]``.
    """

    embeddings: Tensor
    mask_logits: Tensor


class SegmentationNetwork(nn.Module):
    """Images -> N (mask, class) proposals. It knows no dataset and no task; a vocabulary's text embeddings come in.

    Subclasses implement `decode`, and set ``backbone`` and ``classifier``.

    Args:
        mean: RGB of the images that the backbone was trained on, of values in [0, 1].
        std: likewise.
    """

    checkpointing: ClassVar[tuple[str, ...]] = ("none",)
    """What the argument ``activation_checkpointing`` takes, where a network has one."""

    backbone: nn.Module
    classifier: Classifier
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Buffers, so that a checkpoint carries the normalisation its weights were trained with
        self.register_buffer("pixel_mean", 255 * torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(std).view(3, 1, 1))
        self._compiled: Callable[..., list[Queries]] | None = None

    def forward(
        self, images: Tensor, classes: ClassEmbeddings, sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Proposals]:
        """Propose.

        Args:
            images: ``[B, 3, H, W]``, RGB, uint8 or float, values 0 to 255; any size.
            classes: the vocabulary's text embeddings, on the device of the images.
            sizes: (rows, columns) of each that are image; the rest is padding, whatever stands there. None = all.

        Returns:
            What `decode` gives, classified; the last item is the result.
        """
        normalized = self.normalize(images, sizes)
        if self.training and self._compiled is not None:
            return self.classify(self._compiled(self, normalized), classes)
        return self.classify(self.decode(normalized), classes)

    def compile_training(self) -> None:
        """Let torch.compile make one program of `decode` for each size of batch; in training mode alone.

        Images to evaluate are of any size: there it would be made again and again.
        """
        self._compiled = torch.compile(type(self).decode)  # unbound: a copy of the network runs its own weights

    def normalize(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> Tensor:
        """Images as in `forward` -> float, of mean 0 and standard deviation 1 on the backbone's training images.

        Padding beyond ``sizes`` (as in `forward`) is exactly 0, as where backbones pad.
        """
        normalized = (images - self.pixel_mean) / self.pixel_std
        for i, (rows, columns) in enumerate(sizes or ()):
            normalized[i, :, rows:] = 0
            normalized[i, :, :, columns:] = 0
        return normalized

    def decode(self, normalized: Tensor) -> list[Queries]:
        """The part of `forward` between `normalize` and `classify`, which is independent of the vocabulary."""
        raise NotImplementedError

    def classify(self, queries: Sequence[Queries], classes: ClassEmbeddings) -> list[Proposals]:
        """Apply a vocabulary to decoded queries; cheap beside `decode`.

        Returns:
            One `Proposals` per item of ``queries``; class logits ``[B, Q, C + 1]`` in float32, mask logits
            ``[B, Q, h, w]`` in the precision they were computed in (bfloat16 under autocast).
        """
        class_logits = self.classifier(torch.stack([q.embeddings for q in queries]), classes)
        return [
            Proposals(class_logits=logits, mask_logits=q.mask_logits)
            for logits, q in zip(class_logits, queries, strict=True)
        ]

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is gathered and freed at a time in sharded training."""
        raise NotImplementedError

    def start_step(self, seed: int, step: int, total_steps: int) -> None:
        """Be told the optimisation step, before its first pass; for what changes in the course of training.

        Args:
            seed: of the run.
            step: optimisation steps done.
            total_steps: of the run.
        """


def mask_head(dim: int, activation: type[nn.Module]) -> nn.Sequential:
    """``[..., D]`` -> ``[..., D]``: three layers that turn a query into what is multiplied with the mask features."""
    return nn.Sequential(nn.Linear(dim, dim), activation(), nn.Linear(dim, dim), activation(), nn.Linear(dim, dim))

"""Mask annealing (EoMT, arXiv 2503.19108, section 3.3): masked attention fades out in the course of training.

What is drawn follows from the seed, the step and the block alone: a resumed run draws the same, and so do all ranks,
for all images of a step. Q = queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

POWER = 0.9


def published_intervals(num_blocks: int) -> list[tuple[float, float]]:
    """Start and end of each block's annealing as fractions of the run, earliest block first.

    A sixth of the run each, from the first sixth to the last, evenly spread: they follow each other for four blocks,
    and leave gaps for three.
    """
    stride = 1 / (2 * max(1, num_blocks - 1))
    return [(1 / 6 + block * stride, 1 / 3 + block * stride) for block in range(num_blocks)]


def mask_probability(progress: float, interval: Sequence[float]) -> float:
    """P with which a block masks a query: 1 before its interval, (1 - share of it that is over) ** 0.9 within, then 0.

    Args:
        progress: steps done / steps of the run.
        interval: start and end, of the same kind.
    """
    start, end = interval
    return float((1 - min(1.0, max(0.0, (progress - start) / (end - start)))) ** POWER)


def masked_queries(seed: int, step: int, block: int, num_queries: int, probability: float) -> Tensor:
    """Which queries are masked, each with the probability given; bool ``[Q]``, on the CPU."""
    digest = hashlib.sha256(repr(("mask annealing", seed, step, block)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.rand(num_queries, generator=generator) < probability

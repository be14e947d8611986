"""The order of the data as pure functions of (seed, step).

No sampler or worker keeps a state: resuming is asking for the next step, and neither the number of workers nor, at
the same global batch, the number of ranks changes a sample. Only raw generator output and SHA-256 are used, both of
which are the same on every platform and with every NumPy.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dataseg.structures import UserError

MAX_BLOCK = 10_000


def blocks(ratios: Mapping[str, float]) -> dict[str, int]:
    """Sampling ratios as the smallest whole numbers: steps of each dataset in one block, by name in sorted order.

    Args:
        ratios: positive numbers, read as the decimals they are written as: 0.1 is one tenth.

    Raises:
        UserError: a ratio that is not positive and finite, or a block of more than `MAX_BLOCK` steps.
    """
    if not ratios:
        raise UserError("no dataset has a sampling ratio above 0")
    _check(ratios)
    exact = {name: Fraction(str(ratios[name])) for name in sorted(ratios)}
    scale = math.lcm(*(f.denominator for f in exact.values()))
    whole = {name: int(f * scale) for name, f in exact.items()}
    divisor = math.gcd(*whole.values())
    quotas = {name: n // divisor for name, n in whole.items()}
    if sum(quotas.values()) > MAX_BLOCK:
        raise UserError(
            f"sampling ratios {dict(ratios)} only come out even after {sum(quotas.values()):,} steps "
            f"(limit {MAX_BLOCK:,}): use rounder numbers"
        )
    return quotas


def _check(ratios: Mapping[str, float]) -> None:
    for name, ratio in ratios.items():
        if not (math.isfinite(ratio) and ratio > 0):
            raise UserError(f"sampling ratio of {name!r} must be a positive number, got {ratio}")


def tempered(ratios: Mapping[str, float], exponent: float) -> dict[str, float]:
    """Sampling ratios to the power of ``exponent``, which is 1 / sampling temperature: 0 makes all equal.

    They are relative to the smallest then, and rounded to two decimals, so that blocks of steps stay short: nothing
    changes by more than half a hundredth of the smallest. 1 leaves them as they are.

    Raises:
        UserError: a ratio that is not positive and finite, an exponent that is negative or not finite, or too large.
    """
    _check(ratios)
    if exponent == 1:
        return dict(ratios)
    if not (math.isfinite(exponent) and exponent >= 0):
        raise UserError(f"data.ratio_exponent must be a number from 0 (all ratios equal) on, got {exponent}")
    least = min(ratios.values())
    try:
        return {name: round((ratio / least) ** exponent, 2) for name, ratio in ratios.items()}
    except OverflowError:
        raise UserError(f"sampling ratios {dict(ratios)} to the power of {exponent} are too large") from None


def dataset_of(seed: int, step: int, ratios: Mapping[str, float]) -> tuple[str, int]:
    """Which dataset optimisation step ``step`` (from 0) takes, and how many steps of it came before.

    Each block of steps is a seeded shuffle of the ratios in whole numbers, so quotas are exact after every block.
    """
    quotas = _quotas(tuple(sorted(ratios.items())))
    names = list(quotas)
    block, offset = divmod(step, sum(quotas.values()))
    order = _block_order(seed, block, tuple(quotas.items()))
    which = int(order[offset])
    return names[which], block * quotas[names[which]] + int((order[:offset] == which).sum())


def position_at(seed: int, step: int, ratios: Mapping[str, float], dataset: str) -> int:
    """How many of the steps before ``step`` were ``dataset``'s."""
    quotas = _quotas(tuple(sorted(ratios.items())))
    block, offset = divmod(step, sum(quotas.values()))
    order = _block_order(seed, block, tuple(quotas.items()))
    return block * quotas[dataset] + int((order[:offset] == list(quotas).index(dataset)).sum())


def sample_of(seed: int, dataset: str, position: int, n: int) -> tuple[int, int]:
    """Sample at ``position`` (from 0) of a dataset of ``n`` images: its index, and the seed of all its random choices.

    Each run of ``n`` positions is a seeded permutation: every image once an epoch. The seed is in ``[0, 2**63)``.
    """
    if n < 1:
        raise UserError(f"dataset {dataset!r} has no image")
    epoch, offset = divmod(position, n)
    index = int(_permutation(seed, dataset, epoch, n)[offset])
    return index, _number("sample", seed, dataset, position) >> 1


def _number(*words: object) -> int:
    """64 bits that depend on all words."""
    digest = hashlib.sha256("\x1f".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _shuffled(key: int, n: int) -> NDArray[np.int64]:
    # Philox's raw stream is frozen by NumPy's compatibility policy; Generator.permutation is not.
    raw = np.random.Philox(key=key).random_raw(n)
    return np.argsort(raw, kind="stable")


@lru_cache(maxsize=64)
def _quotas(ratios: tuple[tuple[str, float], ...]) -> dict[str, int]:
    return blocks(dict(ratios))


@lru_cache(maxsize=256)
def _block_order(seed: int, block: int, quotas: tuple[tuple[str, int], ...]) -> NDArray[np.int16]:
    """Position in ``quotas`` of the dataset of each step of one block."""
    steps = np.repeat(np.arange(len(quotas), dtype=np.int16), [n for _, n in quotas])
    names = [name for name, _ in quotas]
    return steps[_shuffled(_number("block", seed, block, *names), len(steps))]


@lru_cache(maxsize=16)  # an epoch of 1.7 million images takes 7 MB
def _permutation(seed: int, dataset: str, epoch: int, n: int) -> NDArray[np.int32]:
    return _shuffled(_number("epoch", seed, dataset, epoch), n).astype(np.int32)


MAX_RAISE = 8
"""Largest factor by which mixed batches may be raised unasked."""


@dataclass(frozen=True)
class Schedule:
    """Which samples each micro-batch of each rank takes: pure arithmetic over `data_modules.sampling`.

    Attributes:
        seed: of the whole order.
        ratios: sampling ratios above 0.
        batch_size: samples per optimisation step, over all ranks and accumulated micro-batches. With ``mixed`` it is
            raised to the next number that the ratios come out even at on every rank and micro-batch.
        world_size: ranks.
        rank: this one.
        accumulate: micro-batches per optimisation step.
        mixed: every batch holds all datasets.
        shares: samples of an optimisation step by dataset.
    """

    seed: int
    ratios: dict[str, float]
    batch_size: int
    world_size: int = 1
    rank: int = 0
    accumulate: int = 1
    mixed: bool = False
    shares: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        parts = self.world_size * self.accumulate
        if self.batch_size < 1:
            raise UserError(f"batch_size must be positive, got {self.batch_size}")
        if not self.mixed:
            if self.batch_size % parts:
                raise UserError(
                    f"batch_size={self.batch_size} must be a multiple of {parts} = {self.world_size} ranks x "
                    f"{self.accumulate} accumulated batches; it counts the samples of one optimisation step"
                )
            object.__setattr__(self, "shares", dict.fromkeys(self.ratios, self.batch_size))
            return
        quotas = blocks(self.ratios)
        unit = sum(quotas.values()) * parts
        rounds = max(1, math.ceil(self.batch_size / unit))
        if rounds * unit > MAX_RAISE * self.batch_size:
            raise UserError(
                f"mixed batches of the ratios {quotas} on {self.world_size} ranks x {self.accumulate} accumulated "
                f"batches hold a multiple of {unit} samples, but batch_size={self.batch_size}: set that, use rounder "
                "ratios or accumulate less"
            )
        object.__setattr__(self, "batch_size", rounds * unit)
        object.__setattr__(self, "shares", {name: rounds * parts * quotas[name] for name in self.ratios})

    def micro_batch_size(self, dataset: str) -> int:
        """Samples of one batch on one rank."""
        return self.shares[dataset] // (self.world_size * self.accumulate)

    def is_on(self, dataset: str, micro_step: int) -> bool:
        """Whether the dataset has a batch at this micro-step."""
        return self.mixed or dataset_of(self.seed, micro_step // self.accumulate, self.ratios)[0] == dataset

    def batches(self, dataset: str, n: int, micro_step: int) -> Iterator[list[tuple[int, int]]]:
        """This rank's batches of ``n`` images from ``micro_step`` on, each as (index, sample seed) pairs; endless."""
        size = self.micro_batch_size(dataset)
        step, micro = divmod(micro_step, self.accumulate)
        first = step if self.mixed else position_at(self.seed, step, self.ratios, dataset)
        if not self.is_on(dataset, micro_step):
            micro = 0  # its next batch is the first of a later step
        for visit in itertools.count(first):
            for part in range(micro, self.accumulate):
                start = visit * self.shares[dataset] + (part * self.world_size + self.rank) * size
                yield [sample_of(self.seed, dataset, p, n) for p in range(start, start + size)]
            micro = 0


def share_out(num_workers: int, ratios: dict[str, float]) -> dict[str, int]:
    """Loading processes of each dataset, in proportion to its ratio, at least one each; 0 stays 0 for all."""
    if num_workers <= 0:
        return dict.fromkeys(ratios, 0)
    total = sum(ratios.values())
    exact = {name: num_workers * ratio / total for name, ratio in ratios.items()}
    shares = {name: max(1, math.floor(value)) for name, value in exact.items()}
    by_remainder = sorted(ratios, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: max(0, num_workers - sum(shares.values()))]:
        shares[name] += 1
    return shares

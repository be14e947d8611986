"""Classes that have the same or nearly the same name: a report, nothing is joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from dataseg.structures import ClassEmbeddings, Vocabulary
from dataseg.text.embeddings import TextEmbeddings


@dataclass(frozen=True)
class NearNames:
    """Two classes of different vocabularies whose names are equal or nearly so.

    Attributes:
        first, second: (vocabulary, class name).
        cosine: of their nearest prompts, in [-1, 1].
        shared: whether they have a prompt in common, letter case aside.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    cosine: float
    shared: bool

    def __str__(self) -> str:
        how = "the same name" if self.shared else f"cosine {self.cosine:.2f}"
        return f"{self.first[0]}: {self.first[1]!r} ~ {self.second[0]}: {self.second[1]!r} ({how})"


def report_shared_names(
    vocabularies: Sequence[Vocabulary], text: TextEmbeddings, threshold: float = 0.9
) -> list[NearNames]:
    """Which classes of different vocabularies have the same or nearly the same name, nearest first.

    A report only: nothing is ever joined (the synonyms of one dataset are traps in another).

    Args:
        threshold: smallest cosine that counts as near.
    """
    embedded = [text(v) for v in vocabularies]
    found = []
    for (a, classes_a), (b, classes_b) in combinations(zip(vocabularies, embedded, strict=True), 2):
        cosine_CC = _class_cosines(classes_a, classes_b)
        prompts_a, prompts_b = ([{p.casefold() for p in c.prompts} for c in v.classes] for v in (a, b))
        for i, j in torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b))).tolist():
            shared, cosine = bool(prompts_a[i] & prompts_b[j]), float(cosine_CC[i, j])
            if shared or cosine > threshold:
                found.append(NearNames((a.name, a.names[i]), (b.name, b.names[j]), cosine, shared))
    return sorted(found, key=lambda pair: (-pair.shared, -pair.cosine))


def by_vocabularies(pairs: Iterable[NearNames]) -> dict[tuple[str, str], list[NearNames]]:
    """The pairs by the names of their two vocabularies, in their order."""
    groups: dict[tuple[str, str], list[NearNames]] = {}
    for pair in pairs:
        groups.setdefault((pair.first[0], pair.second[0]), []).append(pair)
    return groups


def shared_within(vocabulary: Vocabulary) -> list[tuple[str, list[str]]]:
    """Prompts that several classes of one vocabulary have, letter case aside: a text classifier cannot tell them apart.

    Returns:
        Each such prompt with the names of its classes.
    """
    owners: dict[str, list[str]] = {}
    for spec in vocabulary.classes:
        for prompt in sorted({p.casefold() for p in spec.prompts}):
            owners.setdefault(prompt, []).append(spec.name)
    return [(prompt, names) for prompt, names in owners.items() if len(names) > 1]


def _class_cosines(a: ClassEmbeddings, b: ClassEmbeddings) -> Tensor:
    """``[C_a, C_b]``: the largest cosine among the prompts of two classes."""
    cosines_SS = a.vectors @ b.vectors.T
    rows_CS = torch.stack([cosines_SS[a.class_index == c].amax(0) for c in range(a.num_classes)])
    return torch.stack([rows_CS[:, b.class_index == c].amax(1) for c in range(b.num_classes)], dim=1)

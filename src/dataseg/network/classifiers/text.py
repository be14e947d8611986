"""Classifiers: what turns a query into class logits.

Shape legend: Q = queries, D = hidden channels, T = width of the text space, S = class names, C = classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dataseg.structures import ClassEmbeddings, UserError


class Classifier(nn.Module):
    """Query embeddings and a vocabulary's embeddings in, class logits out; one for all datasets."""

    def forward(self, queries: Tensor, classes: ClassEmbeddings) -> Tensor:
        """``[..., Q, D]`` -> ``[..., Q, C + 1]``, float32; the last column is the background."""
        raise NotImplementedError


class TextClassifier(Classifier):
    """Cosine similarity of projected queries and text embeddings, over a learnt temperature (method: network).

    A class with several names takes the best of them. The background is one learnt vector, the same for every
    vocabulary. Two ablations give vocabularies vectors of their own, by their names: `learn_classes` and
    `separate_backgrounds`. What is never trained keeps its start: random classes, and the shared background's.

    Args:
        hidden_dim: channels of the queries.
        text_dim: width of the text embeddings.
        temperature: to start from (CLIP's; arXiv 2103.00020, section 2.5).
        max_scale: bound of 1 / temperature, as CLIP has it.
    """

    def __init__(self, hidden_dim: int, text_dim: int, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_dim, text_dim)
        self.background = nn.Parameter(torch.randn(text_dim) / math.sqrt(text_dim))
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))  # not a scalar: FSDP cannot shard one
        self.max_log_scale = math.log(max_scale)
        self.text_dim = text_dim
        self.class_vectors = nn.ModuleDict()  # embeddings: no weight decay
        self.backgrounds = nn.ParameterDict()

    def learn_classes(self, vocabularies: Mapping[str, int]) -> None:
        """Put a learnt vector per class in the place of the text embeddings.

        Args:
            vocabularies: number of classes by name; no other vocabulary can be classified any more.
        """
        for name, count in vocabularies.items():
            vectors = nn.Embedding(count, self.text_dim)
            nn.init.normal_(vectors.weight, std=1 / math.sqrt(self.text_dim))
            self.class_vectors[name] = vectors

    def separate_backgrounds(self, vocabularies: Iterable[str]) -> None:
        """Put a learnt background per vocabulary in the place of the shared one; all start as that one.

        Args:
            vocabularies: names; others take the mean of theirs.
        """
        start = self.background
        self.backgrounds.update({name: nn.Parameter(start.detach().clone()) for name in vocabularies})
        self.register_parameter("background", None)

    def adopt(self, state: Mapping[str, Tensor]) -> None:
        """Have vectors of the vocabularies that a classifier's state dict has vectors of; values are not read."""
        learnt = [name.split(".") for name in state if name.startswith("class_vectors.")]
        self.learn_classes({parts[1]: len(state[".".join(parts)]) for parts in learnt})
        backgrounds = [name.split(".")[1] for name in state if name.startswith("backgrounds.")]
        if backgrounds:
            self.separate_backgrounds(backgrounds)

    def align(self, state: dict[str, Tensor], prefix: str) -> list[str]:
        """Make a state dict fit, in place, where it differs in its vocabularies alone.

        What it has of others is dropped; vectors that it lacks are those that stand here.

        Args:
            state: whole tensors by name.
            prefix: of this classifier's names in it.

        Returns:
            Names of the vocabularies that it lacks.
        """
        lacking: set[str] = set()
        for kind in ("class_vectors.", "backgrounds."):
            own = {prefix + name: value for name, value in self.state_dict().items() if name.startswith(kind)}
            theirs = {name for name in state if name.startswith(prefix + kind)}
            if not (own and theirs):
                continue  # another kind of classifier: loading says what is missing or left over
            for name in theirs - set(own):
                del state[name]
            missing = {name: value for name, value in own.items() if name not in theirs}
            state.update(missing)
            lacking |= {name.removeprefix(prefix).split(".")[1] for name in missing}
        return sorted(lacking)

    @property
    def scale(self) -> Tensor:
        """1 / temperature, in the range that is used; ``[1]``."""
        excess = (self.log_scale - self.max_log_scale).clamp(min=0).detach()  # its gradient may lead back below
        return (self.log_scale - excess).exp()

    def forward(self, queries: Tensor, classes: ClassEmbeddings) -> Tensor:
        """Classify.

        Args:
            queries: ``[..., Q, D]``.
            classes: vectors of the width ``text_dim``, on the device of the queries.

        Returns:
            ``[..., Q, C + 1]``, float32 also under autocast: bfloat16 would round a logit of 10 to multiples of 1/16.

        Raises:
            UserError: the text embeddings have another width, or classes are learnt and the vocabulary is not known.
        """
        dtype = torch.promote_types(queries.dtype, torch.float32)
        with torch.autocast(queries.device.type, enabled=False):
            weight, bias = self.projection.weight.to(dtype), self.projection.bias.to(dtype)
            embedded = F.normalize(F.linear(queries.to(dtype), weight, bias), dim=-1)
            background = F.normalize(self._background(classes.vocabulary).to(dtype), dim=0)
            known = self._classes(classes)
            vectors = torch.cat([known.vectors.to(dtype), background[None]])
            similarity = F.linear(embedded, vectors) * self.scale.to(dtype)
            if self.training and (self.class_vectors or self.backgrounds):
                similarity = similarity + self._of_others(classes.vocabulary)
            return _best_name(similarity, known)

    def _background(self, vocabulary: str) -> Tensor:
        if not self.backgrounds:
            return self.background
        own: dict[str, Tensor] = dict(self.backgrounds.items())
        return own[vocabulary] if vocabulary in own else torch.stack(list(own.values())).mean(0)

    def _classes(self, classes: ClassEmbeddings) -> ClassEmbeddings:
        """The text embeddings, or what is learnt in their place: one vector a class, normalised."""
        if not self.class_vectors:
            if classes.vectors.shape[1] != self.text_dim:
                raise UserError(
                    f"the classifier expects text embeddings of width {self.text_dim} (text_dim), but the"
                    f" vocabulary's have {classes.vectors.shape[1]}: set text_dim to that of the text encoder"
                )
            return classes
        name, count = classes.vocabulary, classes.num_classes
        known = {v: cast(nn.Embedding, vectors) for v, vectors in self.class_vectors.items()}
        if name not in known or known[name].num_embeddings != count:
            own = ", ".join(f"{v} ({vectors.num_embeddings} classes)" for v, vectors in known.items())
            raise UserError(
                f"the vocabulary {name!r} of {count} classes cannot be classified: this classifier learnt a vector for"
                f" each class of {own}, and knows no other names"
            )
        vectors = F.normalize(known[name].weight, dim=1)
        return ClassEmbeddings(vectors, torch.arange(count, device=vectors.device), count, name)

    def _of_others(self, vocabulary: str) -> Tensor:
        """0 that hangs on the other vocabularies' vectors: every step's graph has the same parameters (DDP).

        The optimiser sees a gradient of 0 for them, so that they go on by its momentum, as all else that a step leaves.
        """
        classes = [cast(nn.Embedding, v).weight[0, 0] for name, v in self.class_vectors.items() if name != vocabulary]
        backgrounds = [vector[0] for name, vector in self.backgrounds.items() if name != vocabulary]
        return 0.0 * sum([*classes, *backgrounds], start=self.log_scale[0])


def _best_name(similarity: Tensor, classes: ClassEmbeddings) -> Tensor:
    """``[..., S + 1]`` -> ``[..., C + 1]``: the maximum over the names of a class; the last column stays."""
    num_names = len(classes.class_index)
    if num_names == classes.num_classes:
        return similarity
    background = classes.class_index.new_full((1,), classes.num_classes)
    index = torch.cat([classes.class_index, background]).expand(similarity.shape)
    lowest = similarity.new_full((*similarity.shape[:-1], classes.num_classes + 1), -torch.inf)
    return lowest.scatter_reduce(-1, index, similarity, "amax")

"""Classifiers: what turns a query into class logits.

Shape legend: Q = queries, D = hidden channels, T = width of the text space, S = class names, C = classes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dataseg.structures import ClassEmbeddings, UserError


class Classifier(nn.Module):
    """Query embeddings and a vocabulary's embeddings in, class logits out; one for all datasets."""

    def forward(self, queries: Tensor, classes: ClassEmbeddings) -> Tensor:
        """``[..., Q, D]`` -> ``[..., Q, C + 1]``, float32; the last column is the background."""
        raise NotImplementedError

    @property
    def reads_text(self) -> bool:
        """Whether it looks at the vectors of `ClassEmbeddings`, not only at the vocabulary's name and size."""
        return False


class TextClassifier(Classifier):
    """Cosine similarity of projected queries and text embeddings, over a learnt temperature (method: network).

    A class with several names takes the best of them. The background is one learnt vector, the same for every
    vocabulary.

    Attributes:
        center: ``[T]``, see `center_on`; None = vectors are taken as they are.

    Args:
        hidden_dim: channels of the queries.
        text_dim: width of the text embeddings.
        temperature: to start from (CLIP's; arXiv 2103.00020, section 2.5).
        max_scale: bound of 1 / temperature, as CLIP has it.
    """

    center: Tensor | None

    def __init__(self, hidden_dim: int, text_dim: int, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_dim, text_dim)
        self.background = nn.Parameter(torch.randn(text_dim) / math.sqrt(text_dim))
        # not a scalar, which could not be sharded
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / temperature)]))
        self.max_log_scale = math.log(max_scale)
        self.text_dim = text_dim
        self.register_buffer("center", None)

    def center_on(self, vectors: Tensor) -> None:
        """Have the mean of ``[S, T]`` subtracted from every name's vector, which is then normalised again.

        Vectors of one template lie close together: what they have in common tells no class from another.
        """
        self.register_buffer("center", vectors.mean(0))

    @property
    def reads_text(self) -> bool:
        return True

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
            UserError: the text embeddings have another width.
        """
        dtype = torch.promote_types(queries.dtype, torch.float32)
        with torch.autocast(queries.device.type, enabled=False):
            weight, bias = self.projection.weight.to(dtype), self.projection.bias.to(dtype)
            embedded = F.normalize(F.linear(queries.to(dtype), weight, bias), dim=-1)
            background = F.normalize(self.background_of(classes.vocabulary).to(dtype), dim=0)
            known = self.embeddings(classes)
            vectors = torch.cat([known.vectors.to(dtype), background[None]])
            return _best_name(F.linear(embedded, vectors) * self.scale.to(dtype), known)

    def embeddings(self, classes: ClassEmbeddings) -> ClassEmbeddings:
        """The vectors that stand for a vocabulary's classes.

        Raises:
            UserError: as `forward`.
        """
        if classes.vectors.shape[1] != self.text_dim:
            raise UserError(
                f"the classifier expects text embeddings of width {self.text_dim} (text_dim), but the"
                f" vocabulary's have {classes.vectors.shape[1]}: set text_dim to that of the text encoder"
            )
        if self.center is None:
            return classes
        return replace(classes, vectors=F.normalize(classes.vectors - self.center, dim=-1))

    def background_of(self, vocabulary: str) -> Tensor:
        """The background's vector for a vocabulary, ``[T]``."""
        return self.background


def _best_name(similarity: Tensor, classes: ClassEmbeddings) -> Tensor:
    """``[..., S + 1]`` -> ``[..., C + 1]``: the maximum over the names of a class; the last column stays."""
    num_names = len(classes.class_index)
    if num_names == classes.num_classes:
        return similarity
    background = classes.class_index.new_full((1,), classes.num_classes)
    index = torch.cat([classes.class_index, background]).expand(similarity.shape)
    lowest = similarity.new_full((*similarity.shape[:-1], classes.num_classes + 1), -torch.inf)
    return lowest.scatter_reduce(-1, index, similarity, "amax")

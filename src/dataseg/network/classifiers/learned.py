"""Two ablations of the text classifier: vectors that are learnt for each vocabulary by itself.

Shape legend: T = width of the text space, C = classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dataseg.network.classifiers.text import TextClassifier
from dataseg.structures import ClassEmbeddings, UserError

CLASSES, BACKGROUNDS = "class_vectors", "backgrounds"
"""Start of their names in the state dict; the vocabulary's name follows."""


class PerVocabularyClassifier(TextClassifier):
    """A text classifier with parameters of each vocabulary, by its name: class vectors, a background vector, or both.

    What is never trained keeps its initial value: random for classes, the shared background's for backgrounds.

    Args:
        text: whose other parameters it takes over.
        classes: number of classes by vocabulary: each gets a learnt vector in place of its text embeddings, and no
            other vocabulary can be classified. Empty = text embeddings.
        backgrounds: vocabularies with a background vector of their own; others take the mean of these. Empty = the
            shared one.
    """

    def __init__(self, text: TextClassifier, classes: Mapping[str, int], backgrounds: Collection[str]) -> None:
        nn.Module.__init__(self)
        self.register_parameter("background", None if backgrounds else text.background)
        self.projection, self.log_scale = text.projection, text.log_scale
        self.max_log_scale, self.text_dim = text.max_log_scale, text.text_dim
        self.register_buffer("center", None if classes else text.center)
        self.class_vectors = nn.ModuleDict()  # embeddings: no weight decay
        for name, count in classes.items():
            vectors = nn.Embedding(count, self.text_dim)
            nn.init.normal_(vectors.weight, std=1 / math.sqrt(self.text_dim))
            self.class_vectors[name] = vectors
        self.backgrounds = nn.ParameterDict(
            {name: nn.Parameter(text.background.detach().clone()) for name in backgrounds}
        )

    def forward(self, queries: Tensor, classes: ClassEmbeddings) -> Tensor:
        """See `TextClassifier.forward`.

        Raises:
            UserError: the vocabulary has no class vectors, or the text embeddings have another width.
        """
        logits = super().forward(queries, classes)
        return logits + self._zero_of_others(classes.vocabulary) if self.training else logits

    def background_of(self, vocabulary: str) -> Tensor:
        """See `TextClassifier.background_of`."""
        if not self.backgrounds:
            return self.background
        own: dict[str, Tensor] = dict(self.backgrounds.items())
        return own[vocabulary] if vocabulary in own else torch.stack(list(own.values())).mean(0)

    def embeddings(self, classes: ClassEmbeddings) -> ClassEmbeddings:
        """See `TextClassifier.embeddings`; learnt ones are one a class, normalised."""
        if not self.class_vectors:
            return super().embeddings(classes)
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

    def _zero_of_others(self, vocabulary: str) -> Tensor:
        """0, connected to the other vocabularies' vectors: every step's graph has the same parameters, as DDP needs.

        The optimiser sees a gradient of 0 for them, as for all that does not take part in a step.
        """
        classes = [cast(nn.Embedding, v).weight[0, 0] for name, v in self.class_vectors.items() if name != vocabulary]
        backgrounds = [vector[0] for name, vector in self.backgrounds.items() if name != vocabulary]
        return 0.0 * sum([*classes, *backgrounds], start=self.log_scale[0])

    @property
    def reads_text(self) -> bool:
        return not self.class_vectors

    def align(self, state: dict[str, Tensor], prefix: str, to_train: bool = False) -> list[str]:
        """Make a state dict fit, in place, where it differs in its vocabularies alone.

        What it has of others is dropped; parameters that it lacks are taken from here.

        Args:
            state: whole tensors by name.
            prefix: of this classifier's names in it.
            to_train: accept that of a classifier that learnt no class vectors: all of them are taken from here.

        Returns:
            Names of the vocabularies that it lacks.
        """
        lacking: set[str] = set()
        for kind in (f"{CLASSES}.", f"{BACKGROUNDS}."):
            own = {prefix + name: value for name, value in self.state_dict().items() if name.startswith(kind)}
            theirs = {name for name in state if name.startswith(prefix + kind)}
            if not own or not (theirs or (to_train and kind == f"{CLASSES}.")):
                continue  # another kind of classifier: loading says what is missing or left over
            for name in theirs - set(own):
                del state[name]
            missing = {name: value for name, value in own.items() if name not in theirs}
            state.update(missing)
            if kind == f"{CLASSES}.":
                state.pop(f"{prefix}center", None)  # of text vectors, which these take the place of
            lacking |= {name.removeprefix(prefix).split(".")[1] for name in missing}
        return sorted(lacking)


def classifier_for(text: TextClassifier, state: Mapping[str, Tensor]) -> TextClassifier:
    """The classifier that a state dict is of: ``text``, or one with parameters of the same vocabularies.

    Args:
        text: gives the initial values; ``state`` is not loaded. Centred if ``state`` is.
        state: of the classifier alone.
    """
    if "center" in state:
        text.center_on(torch.zeros(1, text.text_dim))
    parts = {name: name.split(".") for name in state}
    classes = {own[1]: len(state[name]) for name, own in parts.items() if own[0] == CLASSES}
    backgrounds = [own[1] for own in parts.values() if own[0] == BACKGROUNDS]
    return PerVocabularyClassifier(text, classes, backgrounds) if classes or backgrounds else text

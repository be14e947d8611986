"""The class head of published models: a linear layer over a fixed list of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dataseg.network.classifiers.text import Classifier
from dataseg.structures import ClassEmbeddings, UserError


class LinearClassifier(Classifier):
    """Mask2Former's own head, for one vocabulary: evaluates a published model as published.

    Args:
        hidden_dim: channels of the queries.
        num_classes: as the checkpoint or the vocabulary says; the background is not counted.
    """

    def __init__(self, hidden_dim: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(hidden_dim, num_classes + 1)

    def forward(self, queries: Tensor, classes: ClassEmbeddings) -> Tensor:
        """Classify; of the vocabulary only the number of classes is looked at.

        Returns:
            ``[..., Q, C + 1]``, float32.

        Raises:
            UserError: the vocabulary has another number of classes.
        """
        if classes.num_classes != self.num_classes:
            raise UserError(
                f"the linear classifier knows {self.num_classes} classes, but the vocabulary has"
                f" {classes.num_classes}: a linear classifier serves only the dataset that it was trained on"
            )
        logits: Tensor = self.linear(queries)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

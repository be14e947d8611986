"""The network: one for every dataset and task (DaTaSeg; Mask2Former, arXiv 2112.01527, with a text classifier).

Shape legend: B = batch, Q = queries, D = hidden channels, C = classes, H, W = image rows, columns, h, w = H / 4,
W / 4 rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataseg.network.backbones.base import Backbone
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.pixel_decoder import NORM_GROUPS, DeformablePixelDecoder, PixelDecoder
from dataseg.network.transformer_decoder import TransformerDecoder
from dataseg.structures import ClassEmbeddings, Proposals, UserError


@dataclass
class Queries:
    """One decoder layer's result, before any vocabulary is applied.

    Attributes:
        embeddings: ``[B, Q, D]``, what the classifier reads.
        mask_logits: ``[B, Q, h, w]``.
    """

    embeddings: Tensor
    mask_logits: Tensor


class MaskClassificationNetwork(nn.Module):
    """Images -> N (mask, class) proposals. It knows no dataset and no task; a vocabulary's text embeddings come in.

    Args:
        backbone: gives the maps of strides 4 to 32.
        hidden_dim: channels of both decoders; a multiple of 32 and of ``num_heads``.
        num_queries: N, proposals an image.
        decoder_layers: of the transformer decoder.
        pixel_decoder_layers: deformable attention layers of the pixel decoder.
        num_heads: attention heads of both decoders.
        feedforward_dim: hidden width of the transformer decoder's feed-forward networks.
        pixel_decoder_feedforward_dim: likewise of the pixel decoder's.
        text_dim: width of the text embeddings (768: CLIP ViT-L/14).
        classifier: in place of a `TextClassifier` of ``text_dim``.
        pixel_decoder: in place of a `DeformablePixelDecoder` of the arguments above.

    Raises:
        UserError: ``hidden_dim`` does not divide as needed.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        hidden_dim: int = 256,
        num_queries: int = 100,
        decoder_layers: int = 9,
        pixel_decoder_layers: int = 6,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        pixel_decoder_feedforward_dim: int = 1024,
        text_dim: int = 768,
        classifier: Classifier | None = None,
        pixel_decoder: PixelDecoder | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim % NORM_GROUPS or hidden_dim % num_heads:
            raise UserError(f"hidden_dim {hidden_dim} must be a multiple of {NORM_GROUPS} and of num_heads {num_heads}")
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder or DeformablePixelDecoder(
            backbone.channels, hidden_dim, pixel_decoder_layers, num_heads, pixel_decoder_feedforward_dim
        )
        self.transformer_decoder = TransformerDecoder(
            hidden_dim, num_queries, decoder_layers, num_heads, feedforward_dim
        )
        self.classifier = classifier or TextClassifier(hidden_dim, text_dim)
        # Buffers, so that a checkpoint carries the normalisation its weights were trained with
        self.register_buffer("pixel_mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(backbone.std).view(3, 1, 1))

    def forward(self, images: Tensor, classes: ClassEmbeddings) -> list[Proposals]:
        """Propose.

        Args:
            images: ``[B, 3, H, W]``, RGB, uint8 or float, values 0 to 255; any size.
            classes: the vocabulary's text embeddings, on the device of the images.

        Returns:
            Proposals before the first decoder layer and after each (deep supervision): ``decoder_layers + 1`` items,
            the last one being the result.
        """
        return self.classify(self.decode(images), classes)

    def decode(self, images: Tensor) -> list[Queries]:
        """The part of `forward` that is independent of the vocabulary: all of it but the classifier."""
        mask_features, maps = self.features(images)
        return [Queries(*prediction) for prediction in self.transformer_decoder(mask_features, maps)]

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mask features ``[B, D, h, w]`` and the maps ``[B, D, ., .]`` of strides 32, 16, 8; images as in `forward`."""
        mask_features, maps = self.pixel_decoder(self.backbone((images - self.pixel_mean) / self.pixel_std))
        return mask_features, maps

    def fsdp_blocks(self) -> list[nn.Module]:
        """What is gathered and freed at a time in sharded training: the backbone's blocks and the decoders' layers."""
        return [
            *self.backbone.fsdp_blocks(),
            *self.pixel_decoder.fsdp_blocks(),
            *self.transformer_decoder.layers,
        ]

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

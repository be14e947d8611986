"""The network: one for every dataset and task (DaTaSeg; Mask2Former, arXiv 2112.01527, with a text classifier).

Shape legend: B = batch, Q = queries, D = hidden channels, C = classes, H, W = image rows, columns, h, w = H / 4,
W / 4 rounded up.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dataseg.network.backbones.base import Backbone
from dataseg.network.base import Queries, SegmentationNetwork
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.pixel_decoder import NORM_GROUPS, DeformablePixelDecoder, PixelDecoder
from dataseg.network.transformer_decoder import TransformerDecoder
from dataseg.structures import UserError


class MaskClassificationNetwork(SegmentationNetwork):
    """Backbone, pixel decoder, transformer decoder with masked attention, classifier.

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
        activation_checkpointing: what is computed again in the backward pass, to save memory: the deformable attention
            of the pixel decoder, where most of it goes, or all parts' layers.

    Raises:
        UserError: ``hidden_dim`` does not divide as needed, or a part cannot compute its activations again.
    """

    checkpointing = ("none", "deformable", "all")

    backbone: Backbone

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
        activation_checkpointing: Literal["none", "deformable", "all"] = "none",
    ) -> None:
        super().__init__(backbone.mean, backbone.std)
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
        if activation_checkpointing != "none":
            self.pixel_decoder.checkpoint_activations()
        if activation_checkpointing == "all":
            self.backbone.checkpoint_activations()
            self.transformer_decoder.checkpoint_activations()

    def decode(self, normalized: Tensor) -> list[Queries]:
        """See `SegmentationNetwork.decode`.

        Returns:
            Queries before the first decoder layer and after each (deep supervision): ``decoder_layers + 1`` items.
        """
        mask_features, maps = self.features(normalized)
        return [Queries(*prediction) for prediction in self.transformer_decoder(mask_features, maps)]

    def features(self, normalized: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Mask features ``[B, D, h, w]`` and the maps ``[B, D, ., .]`` of strides 32, 16, 8; from `normalize`."""
        mask_features, maps = self.pixel_decoder(self.backbone(normalized))
        return mask_features, maps

    def fsdp_blocks(self) -> list[nn.Module]:
        """See `SegmentationNetwork.fsdp_blocks`: the backbone's blocks and the decoders' layers."""
        return [
            *self.backbone.fsdp_blocks(),
            *self.pixel_decoder.fsdp_blocks(),
            *self.transformer_decoder.layers,
        ]

"""Networks small enough for tests, one of each kind of backbone."""

from collections.abc import Callable

import torch
from torch import nn

from dataseg.network import (
    EncoderOnlyNetwork,
    MaskClassificationNetwork,
    PlainViT,
    SegmentationNetwork,
    TimmBackbone,
    ViTDet,
)

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: TimmBackbone("test_resnet", pretrained=False),
    "convnext": lambda: TimmBackbone("test_convnext", pretrained=False),
    "vitdet": lambda: ViTDet(
        "vit_tiny_patch16_224", pretrained=False, options={"embed_dim": 32, "depth": 4, "num_heads": 2}
    ),
    "swin": lambda: TimmBackbone(
        "swin_tiny_patch4_window7_224",
        pretrained=False,
        options={"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2]},
    ),
}
OPTIONS = {
    "hidden_dim": 32,
    "num_queries": 6,
    "decoder_layers": 3,  # masked attention to each of the three strides
    "pixel_decoder_layers": 1,
    "num_heads": 2,
    "feedforward_dim": 16,
    "pixel_decoder_feedforward_dim": 16,
    "text_dim": 8,
}


ENCODER_ONLY = "encoder_only"


def network(backbone: str | nn.Module = "convnext", **options) -> SegmentationNetwork:
    """A network of `OPTIONS` with one of `BACKBONES` or one's own, or an encoder-only one, in evaluation mode."""
    torch.manual_seed(0)
    if backbone == ENCODER_ONLY:
        vit = PlainViT(
            "vit_small_patch14_reg4_dinov2",
            False,
            options={"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64},
        )
        own = {"num_queries": OPTIONS["num_queries"], "text_dim": OPTIONS["text_dim"]}
        return EncoderOnlyNetwork(vit, num_blocks=2, **own | options).eval()
    model = BACKBONES[backbone]() if isinstance(backbone, str) else backbone
    return MaskClassificationNetwork(model, **OPTIONS | options).eval()

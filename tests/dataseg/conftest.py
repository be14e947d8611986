"""Small networks of ours and of transformers with the same architecture."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from dataseg.network import (
    EncoderOnlyNetwork,
    LinearClassifier,
    MaskClassificationNetwork,
    PlainViT,
    SegmentationNetwork,
    TimmBackbone,
)

NUM_CLASSES = 7
STAGES = ["stage1", "stage2", "stage3", "stage4"]

THEIR_BACKBONES = {
    "resnet": lambda: ResNetConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 2, 1, 1], out_features=STAGES),
    "swin": lambda: SwinConfig(embed_dim=16, depths=[1, 2, 1, 2], num_heads=[1, 2, 2, 4], out_features=STAGES),
}
OUR_BACKBONES = {
    "resnet": lambda freeze_norm: TimmBackbone(
        "resnet50",
        pretrained=False,
        freeze_norm=freeze_norm,
        options={"layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]},
    ),
    "swin": lambda freeze_norm: TimmBackbone(
        "swin_tiny_patch4_window7_224",
        pretrained=False,
        freeze_norm=freeze_norm,
        output_norm=True,
        options={"embed_dim": 16, "depths": [1, 2, 1, 2], "num_heads": [1, 2, 2, 4]},
    ),
}


@dataclass
class Pair:
    """transformers' network with random weights, and a maker of ours of the same architecture."""

    name: str
    theirs: nn.Module
    make_ours: Callable[..., SegmentationNetwork]


def _randomize(model: nn.Module) -> None:
    """Move every tensor away from its special initial value (zeros, ones), so that none can be mixed up unnoticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.5 * torch.rand_like(buffer))


def _make_ours(backbone: str, classifier: nn.Module | None = None, freeze_norm: bool = True):
    return MaskClassificationNetwork(
        OUR_BACKBONES[backbone](freeze_norm),
        hidden_dim=64,
        num_queries=20,
        decoder_layers=4,
        pixel_decoder_layers=2,
        num_heads=4,
        feedforward_dim=80,
        pixel_decoder_feedforward_dim=96,
        text_dim=24,
        classifier=classifier or LinearClassifier(64, NUM_CLASSES),
    ).eval()


@pytest.fixture(params=["resnet", "swin"])
def mask2former_pair(request) -> Pair:
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=THEIR_BACKBONES[request.param](),
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_layers=2,
        encoder_feedforward_dim=96,
        decoder_layers=5,  # theirs counts the prediction before the first layer
        dim_feedforward=80,
        num_attention_heads=4,
        num_queries=20,
        num_labels=NUM_CLASSES,
    )
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    _randomize(theirs)
    return Pair(request.param, theirs, lambda backbone=request.param, **options: _make_ours(backbone, **options))


EOMT = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 64}
EOMT |= {"num_blocks": 3, "num_queries": 7, "num_labels": NUM_CLASSES}
THEIR_EOMTS = {
    "dinov2": lambda: EomtForUniversalSegmentation(EomtConfig(**EOMT)),
    "dinov3": lambda: EomtDinov3ForUniversalSegmentation(
        EomtDinov3Config(**EOMT, intermediate_size=128, layer_norm_eps=1e-5, pos_embed_rescale=None)
    ),
}
OUR_VITS = {"dinov2": "vit_small_patch14_reg4_dinov2", "dinov3": "vit_small_patch16_dinov3_qkvb"}


def _make_eomt(vit: str, classifier: nn.Module | None = None) -> EncoderOnlyNetwork:
    options = {"embed_dim": 32, "depth": 5, "num_heads": 2, "img_size": 64}
    backbone = PlainViT(OUR_VITS[vit], pretrained=False, options=options)
    classifier = classifier or LinearClassifier(32, NUM_CLASSES)
    return EncoderOnlyNetwork(backbone, num_queries=7, num_blocks=3, classifier=classifier).eval()


@pytest.fixture(params=["dinov2", "dinov3"])
def eomt_pair(request) -> Pair:
    torch.manual_seed(0)
    theirs = THEIR_EOMTS[request.param]().eval()
    _randomize(theirs)
    return Pair(request.param, theirs, lambda vit=request.param, **options: _make_eomt(vit, **options))

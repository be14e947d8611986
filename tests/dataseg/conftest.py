"""Small networks of ours and of transformers with the same architecture."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from dataseg.network import LinearClassifier, MaskClassificationNetwork, TimmBackbone

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
    """transformers' Mask2Former with random weights, and a maker of our network of the same architecture."""

    name: str
    theirs: Mask2FormerForUniversalSegmentation
    make_ours: Callable[..., MaskClassificationNetwork]


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

"""The network is traced once for any batch and image size."""

import pytest
import torch
from torch import nn

from dataseg.network import MaskClassificationNetwork, TimmBackbone, ViTDet
from dataseg.structures import ClassEmbeddings

BACKBONES = {
    "resnet": lambda: TimmBackbone("test_resnet", pretrained=False),
    "convnext": lambda: TimmBackbone("test_convnext", pretrained=False),
    "swin": lambda: TimmBackbone(
        "swin_tiny_patch4_window7_224",
        pretrained=False,
        options={"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 1, 2, 2]},
    ),
    "vitdet": lambda: ViTDet(
        "vit_tiny_patch16_224", pretrained=False, options={"embed_dim": 32, "depth": 4, "num_heads": 2}
    ),
}


class WithVocabulary(nn.Module):
    def __init__(self, network, classes):
        super().__init__()
        self.network = network
        self.num_classes = classes.num_classes
        self.register_buffer("vectors", classes.vectors)
        self.register_buffer("class_index", classes.class_index)

    def forward(self, images):
        result = self.network(images, ClassEmbeddings(self.vectors, self.class_index, self.num_classes))[-1]
        return result.class_logits, result.mask_logits


@pytest.mark.parametrize(
    "backbone", [name if name == "resnet" else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
)
@torch.no_grad()
def test_export_with_dynamic_batch_and_size(backbone):
    network = MaskClassificationNetwork(
        BACKBONES[backbone](),
        hidden_dim=32,
        num_queries=5,
        decoder_layers=1,
        pixel_decoder_layers=1,
        num_heads=2,
        feedforward_dim=16,
        pixel_decoder_feedforward_dim=16,
        text_dim=8,
    )
    classes = ClassEmbeddings(torch.randn(5, 8), torch.tensor([0, 0, 1, 2, 2]))
    eager = WithVocabulary(network, classes).eval()
    # a map that is one window wide is another program to the exporter: Swin's last map needs 8 x 8 pixels of 32
    batch, rows, columns = (torch.export.Dim(name, min=low, max=64) for name, low in (("b", 1), ("h", 8), ("w", 8)))
    exported = torch.export.export(
        eager, (torch.rand(2, 3, 288, 320) * 255,), dynamic_shapes=({0: batch, 2: 32 * rows, 3: 32 * columns},)
    ).module()
    images = torch.rand(3, 3, 320, 256) * 255
    for a, b in zip(eager(images), exported(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

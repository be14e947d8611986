"""The network is traced once for any batch and image size."""

import pytest
import tiny
import torch
from torch import nn

from dataseg.structures import ClassEmbeddings


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


@pytest.mark.slow  # fast: of the same network, with all that makes a model of it, deployment/test_traced.py
@pytest.mark.parametrize("backbone", tiny.BACKBONES)
@torch.no_grad()
def test_export_with_dynamic_batch_and_size(backbone):
    network = tiny.network(backbone, decoder_layers=1)
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

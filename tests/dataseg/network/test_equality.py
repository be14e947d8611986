"""Our network computes what transformers' Mask2Former computes."""

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from dataseg.checkpoint.state_dict_adapter import HUGGING_FACE, translate
from dataseg.network import LinearClassifier, MaskClassificationNetwork, TimmBackbone
from dataseg.structures import ClassEmbeddings

CLASSES = ClassEmbeddings(torch.zeros(7, 1), torch.arange(7))


def load(ours, theirs):
    """Every tensor of theirs is used, every tensor of ours is set."""
    translation = translate(theirs.state_dict(), HUGGING_FACE)
    assert translation.unknown == []
    result = ours.load_state_dict(translation.tensors, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) <= {"pixel_mean", "pixel_std"}
    return ours


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("size", [(96, 64), (97, 131), (33, 61)], ids=str)
@torch.no_grad()
def test_equals_transformers(mask2former_pair, size, dtype, tolerance):
    theirs = mask2former_pair.theirs.to(dtype)
    ours = load(mask2former_pair.make_ours(), theirs).to(dtype)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    normalized = (images - ours.pixel_mean) / ours.pixel_std
    expected = theirs(normalized, output_hidden_states=True, output_auxiliary_logits=True)

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)

    for feature, expected_feature in zip(ours.backbone(normalized), expected.encoder_hidden_states, strict=True):
        same(feature, expected_feature)
    mask_features, maps = ours.features(ours.normalize(images))
    same(mask_features, expected.pixel_decoder_last_hidden_state)
    for level, expected_level in zip(maps, expected.pixel_decoder_hidden_states, strict=True):
        same(level, expected_level)

    queries = ours.decode(ours.normalize(images))
    hidden = expected.transformer_decoder_hidden_states  # before the norm, [Q, B, D]
    for query, expected_hidden in zip(queries, hidden, strict=True):
        same(query.embeddings, ours.transformer_decoder.norm(expected_hidden.transpose(0, 1)))

    proposals = ours(images, CLASSES)
    last = {
        "masks_queries_logits": expected.masks_queries_logits,
        "class_queries_logits": expected.class_queries_logits,
    }
    for proposal, layer in zip(proposals, [*expected.auxiliary_logits, last], strict=True):
        same(proposal.mask_logits, layer["masks_queries_logits"])
        same(proposal.class_logits, layer["class_queries_logits"])


def test_gradients_equal_those_of_transformers(mask2former_pair):
    theirs = mask2former_pair.theirs.double()
    ours = load(mask2former_pair.make_ours(), theirs).double()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64) * 255
    expected = theirs((images - ours.pixel_mean) / ours.pixel_std)
    weight = torch.randn_like(expected.masks_queries_logits)
    (weight * expected.masks_queries_logits).sum().backward()
    (weight * ours.decode(ours.normalize(images))[-1].mask_logits).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    translated = translate(gradients, HUGGING_FACE).tensors
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None and name in translated:
            torch.testing.assert_close(parameter.grad, translated[name], rtol=1e-8, atol=1e-9)
            compared += 1
    assert compared > 150


@pytest.mark.slow
@pytest.mark.parametrize("name", ["microsoft/swin-tiny", "microsoft/swin-base"])
@torch.no_grad()
def test_published_size_equals_transformers(name):
    """The sizes of the published Swin-T and Swin-B (window 12) models, with random weights."""
    tiny = name.endswith("tiny")
    swin = SwinConfig(
        embed_dim=96 if tiny else 128,
        depths=[2, 2, 6, 2] if tiny else [2, 2, 18, 2],
        num_heads=[3, 6, 12, 24] if tiny else [4, 8, 16, 32],
        window_size=7 if tiny else 12,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=7)).eval()
    model = "swin_tiny_patch4_window7_224" if tiny else "swin_base_patch4_window12_384"
    backbone = TimmBackbone(model, pretrained=False, output_norm=True)
    ours = load(MaskClassificationNetwork(backbone, classifier=LinearClassifier(256, 7)).eval(), theirs)
    images = torch.randint(0, 256, (1, 3, 251, 333), dtype=torch.uint8)
    expected = theirs((images - ours.pixel_mean) / ours.pixel_std)
    proposals = ours(images, CLASSES)
    torch.testing.assert_close(proposals[-1].mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(proposals[-1].class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)

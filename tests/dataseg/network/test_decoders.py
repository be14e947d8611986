import copy
import itertools

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.models.mask2former import modeling_mask2former as reference

from dataseg.network import Backbone, PixelDecoder
from dataseg.network.pixel_decoder import MultiScaleDeformableAttention
from dataseg.network.position_encoding import sine_position_encoding
from dataseg.network.transformer_decoder import Attention, visible_pixels
from dataseg.structures import ClassEmbeddings

CLASSES = ClassEmbeddings(
    functional.normalize(torch.arange(15.0).reshape(5, 3).sin(), dim=1), torch.tensor([0, 0, 1, 2, 2])
)


class TinyBackbone(Backbone):
    """Four strided convolutions."""

    channels = (8, 12, 16, 20)

    def __init__(self):
        super().__init__()
        sizes = (3, *self.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=4 if i == 0 else 2, padding=1)
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )

    def forward(self, images):
        maps = []
        for conv in self.convs:
            images = conv(images).relu()
            maps.append(images)
        return maps


def network(**options):
    return tiny.network(TinyBackbone(), **{"text_dim": 3} | options)


class TinyPixelDecoder(PixelDecoder):
    """One convolution a map."""

    def __init__(self, in_channels, dim):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in in_channels)

    def forward(self, features):
        finest, *rest = (conv(feature) for conv, feature in zip(self.convs, features, strict=True))
        return finest, rest[::-1]


def test_a_pixel_decoder_of_ones_own():
    model = network(pixel_decoder=TinyPixelDecoder(TinyBackbone.channels, 32))
    assert model(torch.rand(2, 3, 64, 96) * 255, CLASSES)[-1].mask_logits.shape == (2, 6, 16, 24)
    assert model.fsdp_blocks() == list(model.transformer_decoder.layers)


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_fsdp_blocks_share_no_parameter(backbone):
    blocks = [{id(p) for p in block.parameters()} for block in tiny.network(backbone).fsdp_blocks()]
    assert len(blocks) >= 8  # four stages or blocks of the backbone, one and three layers of the decoders
    assert all(blocks)
    assert sum(map(len, blocks)) == len(set().union(*blocks))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(64, 96), (65, 33), (1, 40)])
def test_documented_shapes(dtype, size):
    images = torch.randint(0, 256, (2, 3, *size)).to(dtype)
    h, w = -(-size[0] // 4), -(-size[1] // 4)
    model = network()
    mask_features, maps = model.features(model.normalize(images))
    assert mask_features.shape == (2, 32, h, w)
    assert [m.shape[:2] for m in maps] == [(2, 32)] * 3
    assert maps[2].shape[2:] == (-(-h // 2), -(-w // 2))
    queries = model.decode(model.normalize(images))
    proposals = model(images, CLASSES)
    assert len(queries) == len(proposals) == 4
    for query, proposal in zip(queries, proposals, strict=True):
        assert query.embeddings.shape == (2, 6, 32)
        assert proposal.mask_logits.shape == query.mask_logits.shape == (2, 6, h, w)
        assert proposal.class_logits.shape == (2, 6, 4)


def test_padding_is_zero_after_normalisation():
    """Whatever stands there, as if the normalised image had been padded."""
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), [(40, 96), (64, 33)]
    model = network()
    normalized = model.normalize(images, sizes)
    for i, (rows, columns) in enumerate(sizes):
        alone = (images[i, :, :rows, :columns].float() - model.pixel_mean) / model.pixel_std
        wanted = functional.pad(alone, (0, 96 - columns, 0, 64 - rows))
        assert torch.equal(normalized[i], wanted)
    before = model(images, CLASSES, sizes)[-1].mask_logits
    images[0, :, 40:], images[1, :, :, 33:] = 7, 200
    assert torch.equal(model(images, CLASSES, sizes)[-1].mask_logits, before)


def test_uint8_and_float_images_mean_the_same():
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    model = network()
    torch.testing.assert_close(model(images, CLASSES)[-1].mask_logits, model(images.float(), CLASSES)[-1].mask_logits)


def test_a_vocabulary_applies_to_decoded_queries():
    images = torch.rand(1, 3, 64, 64) * 255
    model = network()
    other = ClassEmbeddings(functional.normalize(torch.randn(9, 3), dim=1), torch.arange(9))
    queries = model.decode(model.normalize(images))
    for classes in (CLASSES, other):
        torch.testing.assert_close(
            model.classify(queries, classes)[-1].class_logits, model(images, classes)[-1].class_logits
        )


def test_images_of_a_batch_do_not_influence_each_other():
    images = torch.rand(3, 3, 64, 64) * 255
    model = network().eval()
    batched = model(images, CLASSES)[-1]
    single = model(images[1:2], CLASSES)[-1]
    torch.testing.assert_close(batched.mask_logits[1:2], single.mask_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batched.class_logits[1:2], single.class_logits, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    model = network()
    for module in model.modules():  # these start at zero, which keeps the level embedding out for one step
        if isinstance(module, MultiScaleDeformableAttention):
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    proposals = model(torch.rand(2, 3, 64, 64) * 255, CLASSES)
    torch.stack([p.mask_logits.sin().sum() + p.class_logits.sin().sum() for p in proposals]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the keys' biases move all logits of a softmax alike: their gradient is zero, but they must be in the graph
    assert all(name.endswith("k_proj.bias") for name in without), without
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_autocast_stays_near_float32():
    model = network().eval()
    images = torch.rand(2, 3, 96, 96) * 255
    expected = model(images, CLASSES)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        proposals = model(images, CLASSES)
        torch.stack([p.mask_logits.float().mean() + p.class_logits.mean() for p in proposals]).sum().backward()
    assert all(p.class_logits.dtype == torch.float32 for p in proposals)
    assert all(p.mask_logits.isfinite().all() and p.class_logits.isfinite().all() for p in proposals)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    error = (proposals[0].mask_logits.float() - expected.mask_logits).abs().mean() / expected.mask_logits.abs().mean()
    assert error < 0.05


def test_hidden_dim_must_divide():
    with pytest.raises(ValueError, match="hidden_dim 40 must be a multiple of 32"):
        network(hidden_dim=40)


# ------------------------------------------------------------------------------------------------ masked attention


def test_visible_pixels_are_the_mask_or_everything():
    logits = torch.full((1, 3, 8, 8), -1.0)
    logits[0, 0, :4] = 1.0  # the upper half
    logits[0, 1] = 1.0
    visible = visible_pixels(logits, (4, 4))
    assert visible.shape == (1, 3, 16)
    assert visible[0, 0].tolist() == [True] * 8 + [False] * 8
    assert visible[0, 1].all()
    assert visible[0, 2].all(), "a mask that would hide every pixel hides none"


def test_attention_ignores_hidden_pixels_and_never_yields_nan():
    attention = Attention(16, 4)
    query, key = torch.randn(1, 2, 16), torch.randn(1, 10, 16)
    visible = torch.zeros(1, 2, 10, dtype=torch.bool)
    visible[:, :, :3] = True
    changed = key.clone()
    changed[:, 3:] = torch.randn(1, 7, 16)
    torch.testing.assert_close(
        attention(query, key, key, visible), attention(query, changed, changed, visible), rtol=0, atol=1e-6
    )
    nothing_covered = torch.full((1, 2, 4, 4), -5.0)
    keys = torch.randn(1, 4, 16)
    assert attention(query, keys, keys, visible_pixels(nothing_covered, (2, 2))).isfinite().all()


def test_attention_starts_like_torchs():
    torch.manual_seed(0)
    ours = torch.stack([Attention(64, 4).k_proj.weight.std() for _ in range(10)]).mean()
    theirs = torch.stack([nn.MultiheadAttention(64, 4).in_proj_weight.std() for _ in range(10)]).mean()
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)


# -------------------------------------------------------------------------------------- deformable attention, position


def test_deformable_offsets_start_as_published(mask2former_pair):
    config = copy.deepcopy(mask2former_pair.theirs.config)
    fresh = type(mask2former_pair.theirs)(config)
    theirs = fresh.model.pixel_level_module.decoder.encoder.layers[0].self_attn
    ours = MultiScaleDeformableAttention(64, 4)
    assert not ours.sampling_offsets.weight.any()
    torch.testing.assert_close(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), quarter=st.integers(1, 8))
def test_position_encoding_equals_transformers(height, width, quarter):
    dim = 4 * quarter
    ours = sine_position_encoding(height, width, dim, like=torch.zeros(()))
    assert ours.shape == (height * width, dim)
    theirs = reference.Mask2FormerSinePositionEmbedding(dim // 2, normalize=True)(
        (1, dim, height, width), torch.device("cpu"), torch.float32
    )
    torch.testing.assert_close(ours, theirs[0].flatten(1).T, rtol=0, atol=1e-5)


def test_position_encoding_is_at_least_float32():
    assert sine_position_encoding(2, 2, 8, like=torch.zeros((), dtype=torch.bfloat16)).dtype == torch.float32

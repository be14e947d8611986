"""The encoder-only network computes what transformers' EoMT computes; mask annealing; what a ViT must have."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from dataseg.checkpoint.mask2former import load_published
from dataseg.network import EncoderOnlyNetwork, LinearClassifier, PlainViT
from dataseg.network.mask_annealing import mask_probability, masked_queries, published_intervals
from dataseg.structures import ClassEmbeddings, UserError

CLASSES = ClassEmbeddings(torch.zeros(7, 1), torch.arange(7))
TINY = {"embed_dim": 32, "depth": 4, "num_heads": 2}


def tiny(name: str = "vit_tiny_patch16_224", num_queries: int = 6, options: dict = TINY, **changes):
    torch.manual_seed(0)
    backbone = PlainViT(name, pretrained=False, options=options)
    arguments = {"num_blocks": 2, "classifier": LinearClassifier(backbone.width, 7)} | changes
    return EncoderOnlyNetwork(backbone, num_queries, **arguments)


def predictions(theirs: nn.Module, pixels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mask and class logits of every prediction of theirs, which gives the last alone."""
    found, predict = [], theirs.predict
    theirs.predict = lambda logits: found.append(predict(logits)) or found[-1]
    theirs(pixels)
    theirs.predict = predict
    return found


def compare(ours: EncoderOnlyNetwork, theirs: nn.Module, size: tuple[int, int], count: int) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    expected = predictions(theirs, ours.normalize(images))
    proposals = ours(images, CLASSES)
    assert len(proposals) == len(expected) == count
    for proposal, (mask_logits, class_logits) in zip(proposals, expected, strict=True):
        torch.testing.assert_close(proposal.mask_logits, mask_logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(proposal.class_logits, class_logits, rtol=0, atol=1e-4)


def loaded(pair, tmp_path) -> EncoderOnlyNetwork:
    pair.theirs.save_pretrained(tmp_path)
    ours = pair.make_ours()
    load_published(ours, tmp_path, class_head="linear")
    return ours


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0], ids=["masked", "annealing", "annealed"])
@torch.no_grad()
def test_training_equals_transformers(eomt_pair, tmp_path, progress, monkeypatch):
    """Every prediction, with the queries masked that we draw."""
    theirs, ours, step = eomt_pair.theirs.train(), loaded(eomt_pair, tmp_path).train(), round(1000 * progress)
    ours.start_step(seed=3, step=step, total_steps=1000)
    theirs.attn_mask_probs.copy_(ours.mask_probability)
    blocks = iter(range(3))

    def disable(mask, prob, num_query_tokens, encoder_start_tokens, device):
        free = ~masked_queries(3, step, next(blocks), num_query_tokens, float(prob))
        mask[:, :num_query_tokens, encoder_start_tokens:][:, free] = True
        return mask

    monkeypatch.setattr(theirs, "_disable_attention_mask", disable)
    compare(ours, theirs, (64, 64), count=4)


@pytest.mark.parametrize("annealed", [False, True])
@torch.no_grad()
def test_masks_are_transformers_own(eomt_pair, tmp_path, annealed):
    """With theirs unchanged, where nothing is drawn: all queries masked, or none."""
    theirs, ours = eomt_pair.theirs.train(), loaded(eomt_pair, tmp_path).train()
    ours.start_step(seed=0, step=int(annealed), total_steps=1)
    theirs.attn_mask_probs.copy_(ours.mask_probability)
    compare(ours, theirs, (64, 64), count=4)


@torch.no_grad()
def test_evaluation_equals_transformers_without_masks(eomt_pair, tmp_path):
    eomt_pair.theirs.attn_mask_probs.zero_()
    compare(loaded(eomt_pair, tmp_path), eomt_pair.theirs, (64, 64), count=1)


@pytest.mark.parametrize("size", [(96, 160), (48, 32), (112, 64)])
@torch.no_grad()
def test_other_sizes_equal_transformers_with_positions_resampled_by_pillow(eomt_pair, tmp_path, size):
    ours, theirs = loaded(eomt_pair, tmp_path).train(), eomt_pair.theirs.train()
    h, w = size[0] // 16, size[1] // 16
    theirs.grid_size = h, w
    if eomt_pair.name == "dinov2":
        planes = theirs.embeddings.position_embeddings.weight.T.unflatten(1, (4, 4)).numpy()
        resized = [np.asarray(Image.fromarray(plane).resize((w, h), Image.BICUBIC)) for plane in planes]
        positions = torch.from_numpy(np.stack(resized, -1)).flatten(0, 1)
        theirs.embeddings.position_embeddings = nn.Embedding.from_pretrained(positions)
        theirs.embeddings.position_ids = torch.arange(h * w)[None]
    compare(ours, theirs, size, count=4)


@torch.no_grad()
def test_any_image_size_is_padded_with_the_mean_colour():
    network = tiny().eval()
    images = torch.randint(0, 256, (1, 3, 50, 69), dtype=torch.uint8).float()
    padded = functional.pad(images - network.pixel_mean, (0, 11, 0, 14)) + network.pixel_mean
    masks, expected = network(images, CLASSES)[-1].mask_logits, network(padded, CLASSES)[-1].mask_logits
    assert masks.shape[-2:] == (13, 18)
    torch.testing.assert_close(masks, expected[..., :13, :18], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ annealing


def test_intervals_are_those_of_the_published_configurations():
    """COCO panoptic, 12 epochs of 7392 steps at batch size 16: S and B, and L."""
    steps = [[14782, 29564], [36955, 51737], [59128, 73910]]
    assert np.allclose(published_intervals(3), np.array(steps) / 88692, atol=1e-9)
    steps = [[14782, 29564], [29564, 44346], [44346, 59128], [59128, 73910]]
    assert np.allclose(published_intervals(4), np.array(steps) / 88692, atol=1e-9)


def test_probability_falls_from_one_to_zero():
    values = [mask_probability(progress, (0.2, 0.6)) for progress in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert values == [1.0, 1.0, pytest.approx(0.5**0.9), 0.0, 0.0]


def test_masked_queries_follow_from_seed_step_and_block():
    drawn = masked_queries(1, 2, 3, 10000, 0.3)
    assert torch.equal(drawn, masked_queries(1, 2, 3, 10000, 0.3))
    assert drawn.float().mean() == pytest.approx(0.3, abs=0.02)
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(drawn, masked_queries(*other, 10000, 0.3))
    assert masked_queries(1, 2, 3, 50, 1.0).all()
    assert not masked_queries(1, 2, 3, 50, 0.0).any()


def test_probabilities_are_in_the_checkpoint_and_no_random_state_is_touched():
    network = tiny().train()
    state = torch.get_rng_state()
    network.start_step(seed=0, step=30, total_steps=100)
    network(torch.zeros(1, 3, 32, 32), CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    expected = [mask_probability(0.3, interval) for interval in published_intervals(2)]
    assert network.state_dict()["mask_probability"].tolist() == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------- any ViT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch14_reg4_dinov2", TINY),
        ("vit_small_patch16_dinov3", TINY),
        ("vit_base_patch16_224.mae", TINY),
        ("vit_base_patch16_siglip_256", TINY),  # no prefix token; a pooling head, which is left out
        ("vit_base_patch16_siglip_gap_256", TINY),
        ("eva02_tiny_patch14_224", TINY),
        ("deit3_small_patch16_224", TINY),
        ("vit_small_patch16_rope_mixed_224", TINY),
        ("test_vit3", {"depth": 3}),  # qk norm, no layer scale
    ],
)
def test_every_parameter_of_any_vit_has_a_gradient(name, options):
    network = tiny(name, options=options).train()
    proposals = network(torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8), CLASSES)
    assert [tuple(p.mask_logits.shape) for p in proposals] == [(1, 6, 10, 9)] * 3
    sum(p.class_logits.square().sum() + p.mask_logits.square().sum() for p in proposals).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {}, "is a ResNet, no plain vision transformer"),
        ("vit_relpos_small_patch16_224", {}, "is a VisionTransformerRelPos"),
        ("vit_tiny_patch16_224", {"patch_size": 8}, r"patches of \(8, 8\) pixels, but masks of stride 4 need 16"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.1}, "every patch is needed"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False, "final_norm": False}, "has no final norm"),
        ("vit_tiny_patch16_224", {"nonsense": 1}, "does not take the options"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": False}, "does not take images of any size"),
    ],
)
def test_what_a_model_lacks_is_said_at_construction(name, options, message):
    with pytest.raises(UserError, match=message):
        PlainViT(name, pretrained=False, options=options)


def test_blocks_and_intervals_must_fit():
    with pytest.raises(UserError, match="num_blocks must be 1 to 4"):
        tiny(num_blocks=5)
    with pytest.raises(UserError, match="for each of 2 blocks"):
        tiny(annealing=[(0.1, 0.2)])
    with pytest.raises(UserError, match="a later end"):
        tiny(annealing=[(0.1, 0.2), (0.3, 0.3)])


def test_layer_wise_decay():
    backbone = PlainViT("vit_tiny_patch16_224", pretrained=False, lr_decay=0.5, options=TINY)
    scale = {name: backbone.lr_scale(name) for name, _ in backbone.named_parameters()}
    assert scale["vit.blocks.3.mlp.fc1.weight"] == scale["vit.norm.weight"] == 1.0
    assert scale["vit.blocks.1.norm1.bias"] == 0.25
    assert scale["vit.blocks.0.norm1.bias"] == scale["vit.pos_embed"] == scale["vit.patch_embed.proj.weight"] == 0.125

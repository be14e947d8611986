import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from transformers import VitDetBackbone, VitDetConfig

from dataseg.network import STRIDES, ViTDet
from dataseg.structures import UserError

TINY = {"embed_dim": 32, "depth": 8, "num_heads": 2, "img_size": 64}


def tiny(**arguments):
    arguments["options"] = TINY | arguments.get("options", {})
    return ViTDet("vit_tiny_patch16_224", pretrained=False, out_channels=16, **arguments).eval()


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (16, 33), (250, 240)])
def test_four_maps_of_any_image(size):
    maps = tiny()(torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 16, -(-size[0] // s), -(-size[1] // s)) for s in STRIDES]


def randomize(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (112, 80)])
@torch.no_grad()
def test_blocks_equal_transformers_vitdet(size):
    """Windows, global blocks and the resampled position embedding are those of transformers' ViTDet."""
    ours = randomize(tiny(window=3)).double()
    config = VitDetConfig(
        hidden_size=32,
        num_hidden_layers=8,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        window_block_indices=[0, 2, 4, 6],
        window_size=3,
        use_absolute_position_embeddings=True,
    )
    theirs = VitDetBackbone(config).double().eval()
    state = {"embeddings.position_embeddings": functional.pad(ours.pos_embed.flatten(2).mT, (0, 0, 1, 0))}
    for name, tensor in ours.state_dict().items():
        if name.startswith("blocks."):
            state[name.replace("blocks.", "encoder.layer.").replace(".attn.", ".attention.")] = tensor
        elif name.startswith("patch_embed."):
            state[name.replace("patch_embed", "embeddings.projection")] = tensor
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(ours.encode(images), theirs(images).feature_maps[-1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_one_window_is_timms_plain_vit():
    """Global attention everywhere, at the size of the position embedding: timm's own blocks."""
    ours = tiny(global_blocks=8)
    theirs = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **TINY).eval()
    state = {name: tensor for name, tensor in ours.state_dict().items() if name.startswith("blocks.")}
    state |= {f"patch_embed.proj.{kind}": ours.state_dict()[f"patch_embed.{kind}"] for kind in ("weight", "bias")}
    state["pos_embed"] = ours.pos_embed.flatten(2).mT
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[-1]
    torch.testing.assert_close(ours.encode(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "depth"), [("vit_base_patch16_224", 12), ("vit_large_patch16_224", 24)])
def test_global_attention_every_quarter_of_the_depth(name, depth):
    with torch.device("meta"):
        backbone = ViTDet(name, pretrained=False)
    windows = [block.window for block in backbone.blocks]
    assert len(windows) == depth
    assert [i for i, window in enumerate(windows) if window is None] == [depth * q // 4 - 1 for q in (1, 2, 3, 4)]
    assert {window for window in windows if window is not None} == {14}


# ViT-B/16 and ViT-L/16 as published, without their heads, in millions (arXiv 2010.11929 rounds to 86, and 307 with one)
@pytest.mark.parametrize(
    ("name", "published"), [("vit_base_patch16_224.mae", 85.8), ("vit_large_patch16_224.mae", 303.3)]
)
def test_parameter_counts(name, published, capsys):
    with torch.device("meta"):
        backbone = ViTDet(name, pretrained=False)
    vit = sum(p.numel() for part, p in backbone.named_parameters() if not part.startswith("pyramid.")) / 1e6
    pyramid = sum(p.numel() for p in backbone.pyramid.parameters()) / 1e6
    with capsys.disabled():
        print(f"\n{name}: {vit:.1f}M parameters (published {published}M) + {pyramid:.1f}M of the feature pyramid")
    assert vit == pytest.approx(published, abs=0.05)  # the class token and the final norm are left out


def test_far_tokens_meet_only_in_global_blocks():
    images = torch.randn(1, 3, 128, 128, requires_grad=True)

    def reach(backbone):
        (gradient,) = torch.autograd.grad(backbone.encode(images)[0, :, 0, 0].sum(), images)
        return gradient.abs().sum((0, 1)) > 0

    backbone = tiny(window=4)
    assert reach(backbone).all()
    for block in backbone.blocks:
        block.window = 4
    reached = reach(backbone)
    assert reached[:64, :64].all()
    assert not reached[64:].any()
    assert not reached[:, 64:].any()


def test_checkpointing_changes_nothing():
    images = torch.randn(1, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = tiny(checkpointing=checkpointing).train()
        torch.stack([m.square().mean() for m in backbone(images)]).sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_layer_wise_learning_rates():
    backbone = tiny(lr_decay=0.5)
    names = [name for name, _ in backbone.named_parameters()]
    assert backbone.lr_scale("patch_embed.weight") == backbone.lr_scale("pos_embed") == 0.5**9
    assert backbone.lr_scale("blocks.0.attn.qkv.weight") == 0.5**8
    assert backbone.lr_scale("blocks.7.mlp.fc2.bias") == 0.5
    assert {backbone.lr_scale(name) for name in names if name.startswith("pyramid.")} == {1.0}
    assert {backbone.lr_scale(name) for name in names} == {0.5**i for i in range(10)}
    assert backbone.no_weight_decay() <= set(names)


def test_clear_errors():
    with pytest.raises(UserError, match=r"'resnet18' is no plain vision transformer.*TimmBackbone"):
        ViTDet("resnet18", pretrained=False)
    with pytest.raises(UserError, match=r"patches of \(14, 14\) pixels.*patch_size: 16"):
        ViTDet("vit_small_patch14_dinov2", pretrained=False)
    with pytest.raises(UserError, match=r"has 6 blocks, which 4"):
        ViTDet("vit_tiny_patch16_224", pretrained=False, options=TINY | {"depth": 6})
    with pytest.raises(UserError, match=r"is not a timm model"):
        ViTDet("vit_base_patch16_2244", pretrained=False)


def test_register_tokens_and_other_patch_sizes():
    backbone = ViTDet(
        "vit_small_patch14_reg4_dinov2", pretrained=False, options={"patch_size": 16, "depth": 4, "img_size": 64}
    ).eval()
    assert backbone.pos_embed.shape == (1, 384, 4, 4)
    assert backbone(torch.randn(1, 3, 80, 64))[2].shape == (1, 256, 5, 4)


@pytest.mark.slow
def test_vitdet_base_forward_and_backward_at_1024():
    backbone = ViTDet(pretrained=False, options={"drop_path_rate": 0.1}).train()
    maps = backbone(torch.randn(1, 3, 1024, 1024))
    assert [tuple(m.shape) for m in maps] == [(1, 256, 1024 // s, 1024 // s) for s in STRIDES]
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())

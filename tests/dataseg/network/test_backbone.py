import copy

import pytest
import timm
import torch
from torch import nn

from dataseg.network import STRIDES, TimmBackbone
from dataseg.network.backbones import timm_backbone

NAMES = [
    "resnet18",
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_nfnet",
    "test_mambaout",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "pvt_v2_b0",
    "hrnet_w18_small",  # these five fail, or lose a row, at sizes that are not multiples of 32
    "dla34",
    "sam2_hiera_tiny",
    "vgg11",
    "poolformer_s12",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 31)])
def test_four_maps_of_any_image(name, size):
    backbone = TimmBackbone(name, pretrained=False).eval()
    maps = backbone(torch.randn(1, 3, *size))
    expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.channels, STRIDES, strict=True)]
    assert [tuple(m.shape) for m in maps] == expected


@pytest.mark.parametrize("name", ["resnet18", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_models_that_take_any_size_are_not_given_more(name):
    assert TimmBackbone(name, pretrained=False)._divisor == (4 if name.startswith("swin") else 1)


def test_channels_are_what_timm_reports():
    backbone = TimmBackbone("resnet50", pretrained=False)
    assert backbone.channels == (256, 512, 1024, 2048)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert TimmBackbone("test_convnext", pretrained=False).mean == (0.5, 0.5, 0.5)


def test_options_reach_the_model():
    backbone = TimmBackbone("resnet18", pretrained=False, options={"norm_layer": "groupnorm"})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in backbone.modules())


def test_frozen_norms_do_not_move():
    backbone = TimmBackbone("resnet18", pretrained=False, freeze_norm=True).train()
    norms = {k: v.clone() for k, v in backbone.state_dict().items() if "bn" in k or "downsample.1" in k}
    assert len(norms) > 10
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert not trained & set(norms)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    torch.stack([m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64))]).sum().backward()
    optimizer.step()
    assert all(torch.equal(backbone.state_dict()[name], value) for name, value in norms.items())


def test_frozen_norms_compute_what_batch_norm_computes_in_evaluation():
    frozen = TimmBackbone("resnet18", pretrained=False, freeze_norm=True).train()
    plain = TimmBackbone("resnet18", pretrained=False, freeze_norm=False).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    frozen.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(frozen(images), plain(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_convolutions_compute_the_frozen_norms_after_them(name, monkeypatch):
    folded = TimmBackbone(name, pretrained=False).double().train()
    monkeypatch.setattr(timm_backbone, "fold", lambda model, convolutions: None)
    plain = TimmBackbone(name, pretrained=False).double().train()
    for module in plain.modules():
        if hasattr(module, "running_var"):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    folded.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for backbone in (folded, copy.deepcopy(folded), plain):
        maps = backbone(images)
        torch.stack([m.square().mean() for m in maps]).sum().backward()
        for own, other in zip(maps, plain(images), strict=True):
            torch.testing.assert_close(own, other)
    for own, other in zip(folded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_stages_are_checkpointed_in_training_mode_alone():
    backbone = TimmBackbone("resnet18", pretrained=False)
    backbone.checkpoint_activations()
    assert backbone.train().model.grad_checkpointing
    assert not backbone.eval().model.grad_checkpointing


def test_other_norms_are_trained():
    backbone = TimmBackbone("test_convnext", pretrained=False, freeze_norm=True)
    norms = [m for m in backbone.modules() if isinstance(m, nn.LayerNorm)]
    assert norms
    assert all(p.requires_grad for m in norms for p in m.parameters())


def test_output_norm():
    backbone = TimmBackbone("test_convnext", pretrained=False, output_norm=True)
    for feature in backbone(torch.randn(2, 3, 64, 64)):
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), rtol=0, atol=1e-4)


def test_swin_pads_before_it_shifts():
    """Where windows divide every map, ours is timm's Swin."""
    ours = TimmBackbone("swin_tiny_patch4_window7_224", pretrained=False, options={"depths": [2, 2, 2, 2]}).eval()
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        depths=[2, 2, 2, 2],
        strict_img_size=False,
        always_partition=True,
    ).eval()
    theirs.load_state_dict(ours.model.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for a, b in zip(ours(images), theirs(images), strict=True):
            torch.testing.assert_close(a, b.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "twins_pcpvt_small"])
def test_timm_says_what_takes_no_weight_decay(name):
    backbone = TimmBackbone(name, pretrained=False)
    names = backbone.no_weight_decay()
    assert len(names) == len(timm.create_model(name, pretrained=False).no_weight_decay()) > 0
    assert names <= {name for name, _ in backbone.named_parameters()}


def test_learning_rate_is_one_for_all():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", pretrained=False)
    assert backbone.lr_scale("model.patch_embed.proj.weight") == 1.0


def test_clear_errors(monkeypatch):
    with pytest.raises(ValueError, match=r"'resnet5O' is not a timm model"):
        TimmBackbone("resnet5O", pretrained=False)
    with pytest.raises(ValueError, match=r"'resnet18' does not take the options .*depth"):
        TimmBackbone("resnet18", pretrained=False, options={"depth": 3})
    with pytest.raises(ValueError, match=r"'test_vit' offers features at strides \[16\], but \[4, 8, 32\].*ViTDet"):
        TimmBackbone("test_vit", pretrained=False)

    for name in ("test_maxvit", "coatnet_0_rw_224", "hiera_tiny_224", "efficientformerv2_s0"):
        with pytest.raises(ValueError, match=f"'{name}' takes images of one size only: 96 x 128 fails"):
            TimmBackbone(name, pretrained=False)
    with pytest.raises(ValueError, match=r"'inception_v3' leaves out the border"):
        TimmBackbone("inception_v3", pretrained=False)

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"pretrained weights of backbone 'resnet18' .*no route.*pretrained: false"):
        TimmBackbone("resnet18")

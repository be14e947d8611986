"""Published EoMT weights: transformers' folders and the authors' Lightning state dicts."""

import re

import pytest
import torch

from dataseg.checkpoint.mask2former import load_published
from dataseg.network import TextClassifier
from dataseg.structures import ClassEmbeddings, UserError

CLASSES = ClassEmbeddings(torch.zeros(7, 1), torch.arange(7))
HEAD = (
    (r"query\.", "network.q."),
    (r"mask_head\.fc(\d)", lambda m: f"network.mask_head.{2 * int(m[1]) - 2}"),
    (r"upscale_block\.block\.(\d)\.layernorm2d", r"network.upscale.\1.norm"),
    (r"upscale_block\.block\.", "network.upscale."),
    (r"class_predictor", "network.class_head"),
    (r"attn_mask_probs", "network.attn_mask_probs"),
)
TO_AUTHORS = {
    "dinov2": (
        (r"embeddings\.position_embeddings\.weight", "pos_embed"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"layers\.(\d+)\.attention\.out_proj", r"blocks.\1.attn.proj"),
        (r"layers\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
        (r"layers\.", "blocks."),
        (r"layernorm", "norm"),
    ),
    "dinov3": ((r"embeddings", "patch_embed"), (r"layers\.", "blocks."), (r"layernorm", "norm")),
}


def authors(pair) -> dict[str, torch.Tensor]:
    """Their state dict as the authors' code names and lays it out."""
    state = {"network.encoder.pixel_mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)}
    state["network.encoder.pixel_std"] = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    joined: dict[str, list[torch.Tensor]] = {}
    for theirs, tensor in pair.theirs.state_dict().items():
        name = theirs
        for pattern, target in HEAD:
            name = re.sub(rf"^{pattern}", target, name)
        if not name.startswith(("network.", "criterion.")):
            for pattern, target in TO_AUTHORS[pair.name]:
                name = re.sub(rf"^{pattern}", target, name)
            name = f"network.encoder.backbone.{name}"
        part = re.match(r"(.+\.)attention\.([qkv])_proj\.(.+)", name)
        if part and pair.name == "dinov2":  # in the order query, key, value
            joined.setdefault(f"{part[1]}attn.qkv.{part[3]}", [None] * 3)["qkv".index(part[2])] = tensor
        else:
            state[name] = tensor[None] if name.endswith("pos_embed") else tensor
    return state | {name: torch.cat(parts) for name, parts in joined.items()}


@pytest.fixture(params=["transformers", "authors"])
def published(request, eomt_pair, tmp_path):
    if request.param == "transformers":
        eomt_pair.theirs.save_pretrained(tmp_path)
        return tmp_path
    torch.save({"state_dict": authors(eomt_pair), "epoch": 1}, tmp_path / "model.bin")
    return tmp_path / "model.bin"


@torch.no_grad()
def test_every_tensor_is_loaded_and_outputs_are_equal(eomt_pair, published):
    ours = eomt_pair.make_ours()
    report = load_published(ours, published, class_head="linear")
    assert report.untouched == []
    assert report.loaded == len(ours.state_dict())
    assert set(report.dropped.values()) <= {"a constant of the loss"}
    torch.testing.assert_close(ours.pixel_std.flatten(), 255 * torch.tensor([0.229, 0.224, 0.225]))
    eomt_pair.theirs.attn_mask_probs.zero_()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = eomt_pair.theirs(ours.normalize(images))
    proposals = ours(images, CLASSES)[-1]
    torch.testing.assert_close(proposals.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(proposals.class_logits, expected.class_queries_logits, rtol=0, atol=1e-4)


def test_the_text_classifier_stays(eomt_pair, published):
    ours = eomt_pair.make_ours(classifier=TextClassifier(32, 8))
    before = ours.classifier.projection.weight.clone()
    report = load_published(ours, published)
    assert torch.equal(ours.classifier.projection.weight, before)
    assert sum(reason == "class head" for reason in report.dropped.values()) == 2
    assert all(name.startswith("classifier.") for name in report.untouched)


def refused(pair, state, path, message):
    torch.save(state, path)
    ours = pair.make_ours()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_published(ours, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_what_does_not_fit_is_an_error(eomt_pair, tmp_path):
    path, state = tmp_path / "model.bin", authors(eomt_pair)
    refused(eomt_pair, state | {"network.more": torch.zeros(1)}, path, "no such tensors: network.more")
    surplus = state | {"network.encoder.backbone.mask_token": torch.zeros(1)}
    refused(eomt_pair, surplus, path, r"1 left over \(backbone.vit.mask_token\)")
    lacking = {name: tensor for name, tensor in state.items() if "blocks.1.norm1" not in name}
    refused(eomt_pair, lacking, path, r"2 missing \(backbone.vit.blocks.1.norm1.bias")
    longer = state | {"network.q.weight": torch.zeros(9, 32)}
    refused(eomt_pair, longer, path, r"num_queries 9 \(network: 7\)")
    fewer = state | {"network.attn_mask_probs": torch.zeros(2)}
    refused(eomt_pair, fewer, path, r"blocks_with_queries 2 \(network: 3\)")


def test_differences_to_dinov3_are_no_weights(eomt_pair, tmp_path):
    """As the authors publish them: zero where nothing was trained, -1 where masks were annealed from 1 to 0."""
    state = authors(eomt_pair) | {"network.attn_mask_probs": -torch.ones(3)}
    refused(eomt_pair, state, tmp_path / "model.bin", "differences to DINOv3's weights")


def test_positions_of_another_image_size_are_named(eomt_pair, tmp_path):
    if eomt_pair.name == "dinov2":
        state = authors(eomt_pair) | {"network.encoder.backbone.pos_embed": torch.zeros(1, 25, 32)}
        refused(eomt_pair, state, tmp_path / "model.bin", r"positions 25 \(network: 16\)")


def test_other_networks_are_told_apart(eomt_pair, mask2former_pair, tmp_path):
    eomt_pair.theirs.save_pretrained(tmp_path / "eomt")
    mask2former_pair.theirs.save_pretrained(tmp_path / "mask2former")
    with pytest.raises(UserError, match=r"of an EoMT, which does not fit .* class MaskClassificationNetwork"):
        load_published(mask2former_pair.make_ours(), tmp_path / "eomt")
    with pytest.raises(UserError, match=r"of a Mask2Former, which does not fit .* class EncoderOnlyNetwork"):
        load_published(eomt_pair.make_ours(), tmp_path / "mask2former")

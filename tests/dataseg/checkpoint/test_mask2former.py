import collections
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataseg.checkpoint.mask2former import load_published
from dataseg.checkpoint.safe_reader import read_tensors
from dataseg.network import LinearClassifier, MaskClassificationNetwork, TextClassifier, ViTDet
from dataseg.structures import ClassEmbeddings, UserError

CLASSES = ClassEmbeddings(torch.zeros(7, 1), torch.arange(7))

# transformers' name -> the official one; written down from the official code, not derived from ours
RENAMES = [
    (r"model\.pixel_level_module\.encoder\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"model\.pixel_level_module\.encoder\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    *(
        rule
        for s in range(4)
        for rule in (
            *(
                rule
                for c in range(3)
                for rule in (
                    (
                        rf".*encoder\.stages\.{s}\.layers\.(\d)\.layer\.{c}\.convolution",
                        rf"backbone.res{s + 2}.\1.conv{c + 1}",
                    ),
                    (
                        rf".*encoder\.stages\.{s}\.layers\.(\d)\.layer\.{c}\.normalization",
                        rf"backbone.res{s + 2}.\1.conv{c + 1}.norm",
                    ),
                )
            ),
            (rf".*encoder\.stages\.{s}\.layers\.(\d)\.shortcut\.convolution", rf"backbone.res{s + 2}.\1.shortcut"),
            (
                rf".*encoder\.stages\.{s}\.layers\.(\d)\.shortcut\.normalization",
                rf"backbone.res{s + 2}.\1.shortcut.norm",
            ),
            (rf".*hidden_states_norms\.stage{s + 1}", f"backbone.norm{s}"),
        )
    ),
    (r".*swin\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r".*swin\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r".*swin\.encoder\.layers\.(\d)\.downsample\.", r"backbone.layers.\1.downsample."),
    (
        r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.attention\.relative_position_bias\.",
        r"backbone.layers.\1.blocks.\2.attn.",
    ),
    (r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.attention\.o_proj", r"backbone.layers.\1.blocks.\2.attn.proj"),
    (r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.attention\.", r"backbone.layers.\1.blocks.\2.attn."),
    (r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.layernorm_before", r"backbone.layers.\1.blocks.\2.norm1"),
    (r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.layernorm_after", r"backbone.layers.\1.blocks.\2.norm2"),
    (r".*swin\.encoder\.layers\.(\d)\.blocks\.(\d)\.mlp\.", r"backbone.layers.\1.blocks.\2.mlp."),
    (r"model\.pixel_level_module\.decoder\.input_projections\.", "sem_seg_head.pixel_decoder.input_proj."),
    (r"model\.pixel_level_module\.decoder\.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (r"model\.pixel_level_module\.decoder\.(adapter|layer)_1\.0", r"sem_seg_head.pixel_decoder.\1_1"),
    (r"model\.pixel_level_module\.decoder\.(adapter|layer)_1\.1", r"sem_seg_head.pixel_decoder.\1_1.norm"),
    (r"model\.pixel_level_module\.decoder\.mask_projection", "sem_seg_head.pixel_decoder.mask_features"),
    *(
        (
            rf"model\.pixel_level_module\.decoder\.encoder\.layers\.(\d)\.{theirs}\.",
            rf"sem_seg_head.pixel_decoder.transformer.encoder.layers.\1.{official}.",
        )
        for theirs, official in {
            "self_attn": "self_attn",
            "self_attn_layer_norm": "norm1",
            "fc1": "linear1",
            "fc2": "linear2",
            "final_layer_norm": "norm2",
        }.items()
    ),
    *(
        (rf"model\.transformer_module\.decoder\.layers\.(\d)\.{theirs}\.", rf"sem_seg_head.predictor.{official}.")
        for theirs, official in {
            "self_attn": r"transformer_self_attention_layers.\1.self_attn",
            "self_attn_layer_norm": r"transformer_self_attention_layers.\1.norm",
            "cross_attn": r"transformer_cross_attention_layers.\1.multihead_attn",
            "cross_attn_layer_norm": r"transformer_cross_attention_layers.\1.norm",
            "fc1": r"transformer_ffn_layers.\1.linear1",
            "fc2": r"transformer_ffn_layers.\1.linear2",
            "final_layer_norm": r"transformer_ffn_layers.\1.norm",
        }.items()
    ),
    (r"model\.transformer_module\.decoder\.layernorm", "sem_seg_head.predictor.decoder_norm"),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0",
        r"sem_seg_head.predictor.mask_embed.layers.\1",
    ),
    (r"model\.transformer_module\.queries_embedder", "sem_seg_head.predictor.query_embed"),
    (r"model\.transformer_module\.queries_features", "sem_seg_head.predictor.query_feat"),
    (r"model\.transformer_module\.level_embed", "sem_seg_head.predictor.level_embed"),
    (r"class_predictor", "sem_seg_head.predictor.class_embed"),
]


def official_state(theirs):
    """transformers' state dict under the official names: joint projections, buffers and all."""
    state = collections.OrderedDict()
    joint = collections.defaultdict(dict)
    for name, tensor in theirs.state_dict().items():
        if "swin.layernorm" in name or "num_batches_tracked" in name:
            continue
        renamed = [re.sub(f"^{pattern}", new, name) for pattern, new in RENAMES if re.match(pattern, name)]
        official = renamed[0] if renamed else name
        part = re.fullmatch(r"(.+)\.([qkv])_proj\.(weight|bias)", official)
        if part:
            prefix, letter, kind = part.groups()
            target = f"{prefix}.in_proj_{kind}" if "self_attn" in prefix else f"{prefix}.qkv.{kind}"
            joint[target][letter] = tensor
        else:
            state[official] = tensor
    for name, parts in joint.items():
        state[name] = torch.cat([parts[letter] for letter in "qkv"])
    if "backbone.patch_embed.proj.weight" in state:
        state["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    foreign = [name for name in state if not name.startswith(("backbone.", "sem_seg_head.", "criterion."))]
    assert not foreign, foreign
    return state


def pickled(state, path, protocol=2):
    content = {"model": {name: tensor.numpy() for name, tensor in state.items()}, "__author__": "someone"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@torch.no_grad()
def assert_equal_outputs(ours, theirs):
    images = torch.randint(0, 256, (1, 3, 75, 101), dtype=torch.uint8)
    normalized = (images - ours.pixel_mean) / ours.pixel_std
    expected = theirs(normalized, output_auxiliary_logits=True)
    proposals = ours(images, CLASSES)
    last = {
        "masks_queries_logits": expected.masks_queries_logits,
        "class_queries_logits": expected.class_queries_logits,
    }
    for proposal, layer in zip(proposals, [*expected.auxiliary_logits, last], strict=True):
        torch.testing.assert_close(proposal.mask_logits, layer["masks_queries_logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(proposal.class_logits, layer["class_queries_logits"], rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("shards", [1, 3])
def test_hugging_face_folder(mask2former_pair, tmp_path, shards):
    theirs = mask2former_pair.theirs
    theirs.save_pretrained(tmp_path, max_shard_size="10GB" if shards == 1 else "400KB")
    assert (tmp_path / "model.safetensors").exists() == (shards == 1)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "rescale_factor": 1 / 255})
    )
    ours = mask2former_pair.make_ours(classifier=TextClassifier(64, 24))
    report = load_published(ours, tmp_path, class_head="linear")
    assert isinstance(ours.classifier, LinearClassifier)
    assert report.untouched == []
    torch.testing.assert_close(ours.pixel_mean.flatten(), torch.tensor([127.5, 102.0, 76.5]))
    assert_equal_outputs(ours, theirs)


def test_hugging_face_names_of_the_live_model(mask2former_pair, tmp_path):
    save_file(mask2former_pair.theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = mask2former_pair.make_ours()
    load_published(ours, tmp_path / "weights.safetensors", class_head="linear")
    assert_equal_outputs(ours, mask2former_pair.theirs)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_detectron2_pickle(mask2former_pair, tmp_path, protocol):
    path = pickled(official_state(mask2former_pair.theirs), tmp_path / "model_final.pkl", protocol)
    ours = mask2former_pair.make_ours()
    load_published(ours, path, class_head="linear")
    assert_equal_outputs(ours, mask2former_pair.theirs)


@pytest.mark.parametrize("legacy", [False, True])
def test_detectron2_training_checkpoint(mask2former_pair, tmp_path, legacy):
    state = official_state(mask2former_pair.theirs)
    content = {"model": state, "optimizer": {"lr": np.float64(1e-4)}, "iteration": 7}
    torch.save(content, tmp_path / "model_0000007.pth", _use_new_zipfile_serialization=not legacy)
    ours = mask2former_pair.make_ours(freeze_norm=False)
    load_published(ours, tmp_path / "model_0000007.pth", class_head="linear")
    assert_equal_outputs(ours, mask2former_pair.theirs)


def test_first_published_names(mask2former_pair, tmp_path):
    state = official_state(mask2former_pair.theirs)
    old = {
        name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor
        for name, tensor in state.items()
    }
    ours = mask2former_pair.make_ours()
    load_published(ours, pickled(old, tmp_path / "old.pkl"), class_head="linear")
    assert_equal_outputs(ours, mask2former_pair.theirs)


@pytest.mark.parametrize("freeze_norm", [True, False])
def test_counters_of_batch_norms_that_were_trained(mask2former_pair, tmp_path, freeze_norm):
    """Official models with SyncBN have them, those with FrozenBN do not."""
    state = official_state(mask2former_pair.theirs)
    norms = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    counters = {f"{name}num_batches_tracked": torch.tensor(7) for name in norms}
    assert bool(counters) == (mask2former_pair.name == "resnet")
    ours = mask2former_pair.make_ours(freeze_norm=freeze_norm)
    report = load_published(ours, pickled({**state, **counters}, tmp_path / "model.pkl"), class_head="linear")
    assert set(counters) <= set(report.dropped)
    assert_equal_outputs(ours, mask2former_pair.theirs)


def test_normalisation_follows_a_bgr_checkpoint(mask2former_pair, tmp_path):
    """Blue before red in the mean: the weights expect BGR, and ours take RGB all the same."""
    theirs = mask2former_pair.theirs
    state = official_state(theirs)
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
    state["pixel_std"] = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    ours = mask2former_pair.make_ours()
    load_published(ours, pickled(state, tmp_path / "bgr.pkl"), class_head="linear")
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs((images.flip(1) - state["pixel_mean"]) / state["pixel_std"])
        proposals = ours(images, CLASSES)[-1]
    torch.testing.assert_close(proposals.mask_logits, expected.masks_queries_logits, rtol=0, atol=1e-3)
    torch.testing.assert_close(proposals.class_logits, expected.class_queries_logits, rtol=0, atol=1e-3)


def test_every_tensor_is_accounted_for(mask2former_pair, tmp_path, caplog):
    state = official_state(mask2former_pair.theirs)
    ours = mask2former_pair.make_ours(classifier=TextClassifier(64, 24))
    before = ours.classifier.projection.weight.clone()
    report = load_published(ours, pickled(state, tmp_path / "model.pkl"))
    assert "class head is dropped" in caplog.text
    assert torch.equal(ours.classifier.projection.weight, before)
    dropped = set(report.dropped)
    assert {"sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"} <= dropped
    assert dropped - {"backbone.layers.0.blocks.0.attn.relative_position_index", "criterion.empty_weight"} == {
        "sem_seg_head.predictor.class_embed.weight",
        "sem_seg_head.predictor.class_embed.bias",
    }
    assert set(report.untouched) == {f"classifier.{name}" for name in ours.classifier.state_dict()}
    assert report.loaded + len(report.untouched) == len(ours.state_dict())
    assert "class head" in str(report)


# -------------------------------------------------------------------------------------------------- clear errors


@pytest.fixture
def intact(mask2former_pair):
    """A state dict, and a network that must stay as it is when loading fails."""
    ours = mask2former_pair.make_ours()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    yield official_state(mask2former_pair.theirs), ours
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def refused(ours, path, match):
    with pytest.raises(UserError, match=match) as caught:
        load_published(ours, path)
    assert str(path) in str(caught.value)


def test_missing_tensor(intact, tmp_path):
    state, ours = intact
    del state["sem_seg_head.predictor.transformer_ffn_layers.2.linear2.bias"]
    refused(ours, pickled(state, tmp_path / "m.pkl"), r"1 missing \(transformer_decoder\.layers\.2\.linear2\.bias")


def test_unknown_tensor(intact, tmp_path):
    state, ours = intact
    state["sem_seg_head.predictor.surprise"] = torch.zeros(1)
    refused(ours, pickled(state, tmp_path / "m.pkl"), r"no such tensors: sem_seg_head\.predictor\.surprise")


def test_two_tensors_of_one_place(intact, tmp_path):
    state, ours = intact
    state["sem_seg_head.predictor.static_query.weight"] = state["sem_seg_head.predictor.query_feat.weight"]
    refused(
        ours, pickled(state, tmp_path / "m.pkl"), r"several tensors are transformer_decoder\.query_features\.weight"
    )


def test_a_tensor_that_does_not_divide(intact, tmp_path):
    state, ours = intact
    for odd in (torch.zeros(64 * 3 + 1), torch.zeros(())):
        state["sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_bias"] = odd
        refused(ours, pickled(state, tmp_path / "m.pkl"), r"in_proj_bias \[.*\] cannot be split into 3 equal parts")


def test_misshapen_tensor(intact, tmp_path):
    state, ours = intact
    state["sem_seg_head.pixel_decoder.mask_features.bias"] = torch.zeros(3)
    refused(
        ours, pickled(state, tmp_path / "m.pkl"), r"1 of another shape \(pixel_decoder\.mask_projection\.bias \[3\]"
    )


def test_wrong_architecture(mask2former_pair, tmp_path):
    state = official_state(mask2former_pair.theirs)
    state["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(30, 64)
    state["sem_seg_head.predictor.query_embed.weight"] = torch.zeros(30, 64)
    path = pickled(state, tmp_path / "m.pkl")
    refused(mask2former_pair.make_ours(), path, r"another architecture: num_queries 30 \(network: 20\)")


def test_a_plain_vision_transformer_is_another_architecture(mask2former_pair, tmp_path):
    path = pickled(official_state(mask2former_pair.theirs), tmp_path / "m.pkl")
    vit = ViTDet("vit_tiny_patch16_224", pretrained=False, options={"embed_dim": 32, "depth": 4, "num_heads": 2})
    refused(MaskClassificationNetwork(vit), path, r"another architecture: backbone \w+ .*\(network: ViTDet\)")


def test_wrong_backbone(mask2former_pair, tmp_path):
    path = pickled(official_state(mask2former_pair.theirs), tmp_path / "m.pkl")
    other = "swin" if mask2former_pair.name == "resnet" else "resnet"
    refused(mask2former_pair.make_ours(backbone=other), path, r"another architecture: backbone (ResNet|Swin)")


def test_not_a_mask2former(intact, tmp_path):
    _, ours = intact
    message = r"not a checkpoint of .*Mask2Former.*fc\.weight"
    refused(ours, pickled({"fc.weight": torch.zeros(1)}, tmp_path / "m.pkl"), message)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_truncated_file(mask2former_pair, tmp_path, suffix, part):
    state = official_state(mask2former_pair.theirs)
    path = tmp_path / f"m{suffix}"
    if suffix == ".pkl":
        pickled(state, path)
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"m\.\w+: truncated"):
        read_tensors(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class MaliciousStorage:
    """Hides the call inside the bytes of a tensor's storage."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Malicious(self.path)),)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".bin"])
@pytest.mark.parametrize("hidden", [Malicious, MaliciousStorage])
def test_malicious_pickle_does_not_run(tmp_path, suffix, hidden):
    trap = tmp_path / "trap"
    content = {"model": {"weight": np.zeros(3), "more": hidden(trap)}}
    path = tmp_path / f"m{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"m\.\w+: wants to call (posix|nt|torch)\."):
        read_tensors(path)
    assert not trap.exists()
    if hidden is Malicious:
        pickle.loads(pickle.dumps(hidden(trap)))
        assert trap.exists(), "the trap works where nobody guards"


class ForgedNumber:
    """float64 whose flags say that its bytes are pointers to objects; numpy itself believes that of a pickle."""

    def __reduce__(self):
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63)


class ForgedArray:
    def __reduce__(self):
        reconstruct = np.empty(0).__reduce__()[0]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), ForgedNumber(), False, np.float64(0.1).tobytes())


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_an_array_cannot_pass_numbers_for_pointers(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"

    def saved(content):
        path.write_bytes(pickle.dumps(content)) if suffix == ".pkl" else torch.save(content, path)
        return path

    assert pickle.loads(pickle.dumps(ForgedNumber())).hasobject, "the forgery works where nobody guards"
    assert read_tensors(saved({"a": ForgedArray()}))["a"].tolist() == [0.1]
    for foreign in (np.array([{}], dtype=object), np.array(["text"]), np.zeros(2, dtype=[("x", "f4")])):
        with pytest.raises(UserError, match=r"m\.p\w+: wants to call numpy\.dtype\('[OUV]\d+'\)"):
            read_tensors(saved({"a": foreign}))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_tensors(tmp_path, protocol):
    state = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(4, 3).half().t(),
        "scalar": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "number": np.float32(2.5),
        "big_endian": np.arange(3, dtype=">i8"),
        "empty": np.zeros((0, 4), dtype=np.float16),
        "flags": np.array([True, False]),
    }
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(state, protocol=protocol))
    loaded = read_tensors(path)
    assert set(loaded) == set(state)
    for name, value in state.items():
        value = value.astype(value.dtype.newbyteorder("=")) if isinstance(value, np.ndarray) else value
        torch.testing.assert_close(loaded[name], torch.as_tensor(value).detach())


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"there is no such file of weights"):
        read_tensors(tmp_path / "absent.pkl")
    with pytest.raises(UserError, match=r"holds neither model\.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt: weights are read from"):
        read_tensors(tmp_path / "notes.txt")
    (tmp_path / "m.pkl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_tensors(tmp_path / "m.pkl")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": "text"}))
    with pytest.raises(UserError, match=r"'a' is no tensor but a str"):
        read_tensors(tmp_path / "m.pkl")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"holds no state dict but a list"):
        read_tensors(tmp_path / "m.pkl")


def test_safetensors_are_read_as_they_are(tmp_path):
    save_file({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], load_file(tmp_path / "a.safetensors")["a"])

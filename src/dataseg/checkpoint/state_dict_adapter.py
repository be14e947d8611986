"""What the tensors of published Mask2Former and EoMT checkpoints are called here, by whose names they have.

A rule is a pattern of the whole name and what it becomes:

- ``a.b``: the tensor is ours under that name;
- ``a|b|c``: it is split in equal parts along its first axis, one for each name;
- ``a[1/3]``: it is the second of three such parts of ours.

``backbone.model.`` stands before the names of timm's ResNet and Swin, ``backbone.vit.`` before those of its ViTs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from dataseg.structures import UserError

Rules: TypeAlias = tuple[tuple[str, str], ...]

CLASS_HEAD = "classifier.linear"
"""Where a published class head goes, if a linear classifier is there to take it."""


@dataclass(frozen=True)
class NamingScheme:
    """How one code base names its tensors.

    Attributes:
        title: for messages.
        rules: the first that matches a whole name decides.
        dropped: patterns of what we have no use for, and why.
    """

    title: str
    rules: Rules
    dropped: Rules


@dataclass
class Translation:
    """A foreign state dict under our names.

    Attributes:
        tensors: by our name.
        source: which foreign names made each.
        dropped: foreign name -> reason.
        unknown: foreign names that no rule knows.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    source: dict[str, list[str]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def translate(state: Mapping[str, Tensor], scheme: NamingScheme) -> Translation:
    """Rename, split and join tensors; every name of ``state`` ends in tensors, dropped or unknown.

    Raises:
        UserError: two tensors have one name of ours; a part of a joined tensor is missing; or one does not divide or
            join.
    """
    result = Translation()
    parts: dict[str, dict[int, Tensor]] = {}
    expected: dict[str, int] = {}
    for name, tensor in state.items():
        target = _first_match(name, scheme.rules)
        if target is None:
            reason = _first_match(name, scheme.dropped)
            if reason is None:
                result.unknown.append(name)
            else:
                result.dropped[name] = reason
            continue
        joined = re.fullmatch(r"(.+)\[(\d)/(\d)\]", target)
        split = [joined[1]] if joined else target.split("|")
        for ours in split:
            result.source.setdefault(ours, []).append(name)
            if ours in result.tensors or (joined and int(joined[2]) in parts.get(ours, {})):
                raise UserError(f"several tensors are {ours}: {result.source[ours]}")
        if joined:
            parts.setdefault(joined[1], {})[int(joined[2])] = tensor
            expected[joined[1]] = int(joined[3])
        else:
            result.tensors.update(zip(split, _in_parts(name, tensor, len(split)), strict=True))
    for target, found in parts.items():
        if len(found) != expected[target]:
            raise UserError(
                f"{target} is made of {expected[target]} tensors (query, key, value), but there is only"
                f" {result.source[target]}"
            )
        shapes = {tuple(part.shape) for part in found.values()}
        if len(shapes) > 1 or () in shapes:
            raise UserError(f"{result.source[target]} belong together, but have the shapes {sorted(shapes)}")
        result.tensors[target] = torch.cat([found[i] for i in sorted(found)])
    return result


def _in_parts(name: str, tensor: Tensor, count: int) -> Sequence[Tensor]:
    if count == 1:
        return (tensor,)
    if not tensor.ndim or len(tensor) % count:
        raise UserError(f"{name} {list(tensor.shape)} cannot be split into {count} equal parts")
    return tensor.chunk(count)


def _first_match(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _split_qkv(target: str) -> str:
    """Torch's joint ``in_proj_weight`` / ``in_proj_bias`` (the pattern's last group) -> our three projections."""
    return "|".join(rf"{target}.{part}_proj.\2" for part in "qkv")


# ------------------------------------------------------------------------------------------------ detectron2

_D2_PIXEL = r"sem_seg_head\.(?:pixel_decoder\.)?"  # the first checkpoints have no second part
_D2_QUERY = r"sem_seg_head\.predictor\."
_D2_LAYER = _D2_PIXEL + r"transformer\.encoder\.layers\.(\d+)\."

_D2_BACKBONES: Rules = (
    (r"backbone\.stem\.conv1\.weight", r"backbone.model.conv1.weight"),
    (r"backbone\.stem\.conv1\.norm\.(?!num_batches)(.+)", r"backbone.model.bn1.\1"),
    *(
        rule
        for stage in range(1, 5)
        for rule in (
            (rf"backbone\.res{stage + 1}\.(\d+)\.conv(\d)\.weight", rf"backbone.model.layer{stage}.\1.conv\2.weight"),
            (
                rf"backbone\.res{stage + 1}\.(\d+)\.conv(\d)\.norm\.(?!num_batches)(.+)",
                rf"backbone.model.layer{stage}.\1.bn\2.\3",
            ),
            (
                rf"backbone\.res{stage + 1}\.(\d+)\.shortcut\.weight",
                rf"backbone.model.layer{stage}.\1.downsample.0.weight",
            ),
            (
                rf"backbone\.res{stage + 1}\.(\d+)\.shortcut\.norm\.(?!num_batches)(.+)",
                rf"backbone.model.layer{stage}.\1.downsample.1.\2",
            ),
        )
    ),
    (r"backbone\.(patch_embed\.(?:proj|norm)\.(?:weight|bias))", r"backbone.model.\1"),
    # timm merges patches at the beginning of the next stage
    *(
        (rf"backbone\.layers\.{stage}\.(downsample\..+)", rf"backbone.model.layers_{stage + 1}.\1")
        for stage in range(3)
    ),
    (r"backbone\.layers\.(\d)\.(blocks\..+(?<!relative_position_index)(?<!attn_mask))", r"backbone.model.layers_\1.\2"),
    (r"backbone\.norm([0-3])\.(weight|bias)", r"backbone.norms.\1.\2"),
)

DETECTRON2 = NamingScheme(
    title="detectron2 (official Mask2Former)",
    rules=(
        *_D2_BACKBONES,
        (_D2_PIXEL + r"input_proj\.(.+)", r"pixel_decoder.input_projections.\1"),
        (_D2_PIXEL + r"transformer\.level_embed", r"pixel_decoder.level_embed.weight"),
        (_D2_LAYER + r"self_attn\.(.+)", r"pixel_decoder.layers.\1.attention.\2"),
        (_D2_LAYER + r"norm1\.(.+)", r"pixel_decoder.layers.\1.attention_norm.\2"),
        (_D2_LAYER + r"(linear[12]\..+)", r"pixel_decoder.layers.\1.\2"),
        (_D2_LAYER + r"norm2\.(.+)", r"pixel_decoder.layers.\1.feedforward_norm.\2"),
        (_D2_PIXEL + r"adapter_1\.weight", r"pixel_decoder.lateral.0.weight"),
        (_D2_PIXEL + r"adapter_1\.norm\.(.+)", r"pixel_decoder.lateral.1.\1"),
        (_D2_PIXEL + r"layer_1\.weight", r"pixel_decoder.output.0.weight"),
        (_D2_PIXEL + r"layer_1\.norm\.(.+)", r"pixel_decoder.output.1.\1"),
        (_D2_PIXEL + r"mask_features\.(.+)", r"pixel_decoder.mask_projection.\1"),
        *(
            rule
            for theirs, attention, ours in (
                ("transformer_self_attention_layers", "self_attn", "self_attention"),
                ("transformer_cross_attention_layers", "multihead_attn", "cross_attention"),
            )
            for rule in (
                (
                    _D2_QUERY + rf"{theirs}\.(\d+)\.{attention}\.in_proj_(weight|bias)",
                    _split_qkv(rf"transformer_decoder.layers.\1.{ours}"),
                ),
                (
                    _D2_QUERY + rf"{theirs}\.(\d+)\.{attention}\.out_proj\.(.+)",
                    rf"transformer_decoder.layers.\1.{ours}.out_proj.\2",
                ),
                (_D2_QUERY + rf"{theirs}\.(\d+)\.norm\.(.+)", rf"transformer_decoder.layers.\1.{ours}_norm.\2"),
            )
        ),
        (
            _D2_QUERY + r"transformer_ffn_layers\.(\d+)\.norm\.(.+)",
            r"transformer_decoder.layers.\1.feedforward_norm.\2",
        ),
        (_D2_QUERY + r"transformer_ffn_layers\.(\d+)\.(linear[12]\..+)", r"transformer_decoder.layers.\1.\2"),
        (_D2_QUERY + r"decoder_norm\.(.+)", r"transformer_decoder.norm.\1"),
        # the first published checkpoints say static_query
        (_D2_QUERY + r"(?:query_feat|static_query)\.weight", r"transformer_decoder.query_features.weight"),
        (_D2_QUERY + r"query_embed\.weight", r"transformer_decoder.query_positions.weight"),
        (_D2_QUERY + r"level_embed\.weight", r"transformer_decoder.level_embed.weight"),
        *(
            (_D2_QUERY + rf"mask_embed\.layers\.{i}\.(.+)", rf"transformer_decoder.mask_embed.{2 * i}.\1")
            for i in range(3)
        ),
        (_D2_QUERY + r"class_embed\.(.+)", rf"{CLASS_HEAD}.\1"),
        (r"(pixel_mean|pixel_std)", r"\1"),
    ),
    dropped=(
        (r"criterion\.empty_weight", "a constant of the loss"),
        (r"backbone\..+\.(relative_position_index|attn_mask)", "computed from the window size"),
        (r"backbone\..+\.num_batches_tracked", "only used while statistics are gathered"),
        (r"backbone\.(?:stem\.fc|fc|head)\..+", "ImageNet head"),
    ),
)


# ---------------------------------------------------------------------------------------------- Hugging Face

_HF_ENCODER = r"model\.pixel_level_module\.encoder\."
_HF_PIXEL = r"model\.pixel_level_module\.decoder\."
_HF_QUERY = r"model\.transformer_module\."
_HF_LAYER = _HF_PIXEL + r"encoder\.layers\.(\d+)\."
_HF_QUERY_LAYER = _HF_QUERY + r"decoder\.layers\.(\d+)\."
_HF_STAGE = _HF_ENCODER + r"encoder\.stages\."
_HF_SWIN = _HF_ENCODER + r"(?:swin\.|model\.)?"  # files say encoder.encoder; the live model encoder.swin.encoder
_HF_BLOCK = _HF_SWIN + r"encoder\.layers\.(\d)\.blocks\.(\d+)\."
_SWIN_BLOCK = r"backbone.model.layers_\1.blocks.\2"

_HF_RESNET: Rules = (
    (_HF_ENCODER + r"embedder\.embedder\.convolution\.weight", r"backbone.model.conv1.weight"),
    (_HF_ENCODER + r"embedder\.embedder\.normalization\.(?!num_batches)(.+)", r"backbone.model.bn1.\1"),
    *(
        rule
        for stage in range(4)
        for rule in (
            *(
                rule
                for conv in range(3)
                for rule in (
                    (
                        _HF_STAGE + rf"{stage}\.layers\.(\d+)\.layer\.{conv}\.convolution\.weight",
                        rf"backbone.model.layer{stage + 1}.\1.conv{conv + 1}.weight",
                    ),
                    (
                        _HF_STAGE + rf"{stage}\.layers\.(\d+)\.layer\.{conv}\.normalization\.(?!num_batches)(.+)",
                        rf"backbone.model.layer{stage + 1}.\1.bn{conv + 1}.\2",
                    ),
                )
            ),
            (
                _HF_STAGE + rf"{stage}\.layers\.(\d+)\.shortcut\.convolution\.weight",
                rf"backbone.model.layer{stage + 1}.\1.downsample.0.weight",
            ),
            (
                _HF_STAGE + rf"{stage}\.layers\.(\d+)\.shortcut\.normalization\.(?!num_batches)(.+)",
                rf"backbone.model.layer{stage + 1}.\1.downsample.1.\2",
            ),
        )
    ),
    (_HF_ENCODER + r"_backbone\.(?!.*num_batches)(.+)", r"backbone.model.\1"),  # their wrapper of timm
)

_HF_SWINS: Rules = (
    (_HF_SWIN + r"embeddings\.patch_embeddings\.projection\.(.+)", r"backbone.model.patch_embed.proj.\1"),
    (_HF_SWIN + r"embeddings\.norm\.(.+)", r"backbone.model.patch_embed.norm.\1"),
    (_HF_BLOCK + r"layernorm_before\.(.+)", _SWIN_BLOCK + r".norm1.\3"),
    (_HF_BLOCK + r"layernorm_after\.(.+)", _SWIN_BLOCK + r".norm2.\3"),
    *(
        (
            _HF_BLOCK + rf"attention\.(?:self\.{part}|{part[0]}_proj)\.(.+)",
            _SWIN_BLOCK + rf".attn.qkv.\3[{i}/3]",
        )
        for i, part in enumerate(("query", "key", "value"))
    ),
    (
        _HF_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
        _SWIN_BLOCK + r".attn.relative_position_bias_table",
    ),
    (_HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(.+)", _SWIN_BLOCK + r".attn.proj.\3"),
    (_HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", _SWIN_BLOCK + r".mlp.fc1.\3"),
    (_HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(.+)", _SWIN_BLOCK + r".mlp.fc2.\3"),
    *(
        (_HF_SWIN + rf"encoder\.layers\.{stage}\.(downsample\..+)", rf"backbone.model.layers_{stage + 1}.\1")
        for stage in range(3)
    ),
    *(
        (_HF_ENCODER + rf"hidden_states_norms\.stage{stage + 1}\.(.+)", rf"backbone.norms.{stage}.\1")
        for stage in range(4)
    ),
)

HUGGING_FACE = NamingScheme(
    title="Hugging Face Mask2Former",
    rules=(
        *_HF_RESNET,
        *_HF_SWINS,
        (_HF_PIXEL + r"input_projections\.(.+)", r"pixel_decoder.input_projections.\1"),
        (_HF_PIXEL + r"level_embed", r"pixel_decoder.level_embed.weight"),
        (_HF_LAYER + r"self_attn\.(.+)", r"pixel_decoder.layers.\1.attention.\2"),
        (_HF_LAYER + r"self_attn_layer_norm\.(.+)", r"pixel_decoder.layers.\1.attention_norm.\2"),
        (_HF_LAYER + r"fc([12])\.(.+)", r"pixel_decoder.layers.\1.linear\2.\3"),
        (_HF_LAYER + r"final_layer_norm\.(.+)", r"pixel_decoder.layers.\1.feedforward_norm.\2"),
        (_HF_PIXEL + r"adapter_1\.(.+)", r"pixel_decoder.lateral.\1"),
        (_HF_PIXEL + r"layer_1\.(.+)", r"pixel_decoder.output.\1"),
        (_HF_PIXEL + r"mask_projection\.(.+)", r"pixel_decoder.mask_projection.\1"),
        (
            _HF_QUERY_LAYER + r"cross_attn\.in_proj_(weight|bias)",
            _split_qkv(r"transformer_decoder.layers.\1.cross_attention"),
        ),
        (_HF_QUERY_LAYER + r"cross_attn\.(out_proj\..+)", r"transformer_decoder.layers.\1.cross_attention.\2"),
        (_HF_QUERY_LAYER + r"cross_attn_layer_norm\.(.+)", r"transformer_decoder.layers.\1.cross_attention_norm.\2"),
        (_HF_QUERY_LAYER + r"self_attn\.(.+)", r"transformer_decoder.layers.\1.self_attention.\2"),
        (_HF_QUERY_LAYER + r"self_attn_layer_norm\.(.+)", r"transformer_decoder.layers.\1.self_attention_norm.\2"),
        (_HF_QUERY_LAYER + r"fc([12])\.(.+)", r"transformer_decoder.layers.\1.linear\2.\3"),
        (_HF_QUERY_LAYER + r"final_layer_norm\.(.+)", r"transformer_decoder.layers.\1.feedforward_norm.\2"),
        (_HF_QUERY + r"decoder\.layernorm\.(.+)", r"transformer_decoder.norm.\1"),
        (_HF_QUERY + r"queries_features\.weight", r"transformer_decoder.query_features.weight"),
        (_HF_QUERY + r"queries_embedder\.weight", r"transformer_decoder.query_positions.weight"),
        (_HF_QUERY + r"level_embed\.weight", r"transformer_decoder.level_embed.weight"),
        *(
            (
                _HF_QUERY + rf"decoder\.mask_predictor\.mask_embedder\.{i}\.0\.(.+)",
                rf"transformer_decoder.mask_embed.{2 * i}.\1",
            )
            for i in range(3)
        ),
        (r"class_predictor\.(.+)", rf"{CLASS_HEAD}.\1"),
    ),
    dropped=(
        (r"criterion\.empty_weight", "a constant of the loss"),
        (_HF_SWIN + r".+\.relative_position_index", "computed from the window size"),
        (_HF_ENCODER + r".+\.num_batches_tracked", "only used while statistics are gathered"),
        (_HF_SWIN + r"layernorm\.(weight|bias)", "the image classifier's norm, not used for dense prediction"),
    ),
)


# ------------------------------------------------------------------------------------- EoMT (encoder-only network)

_VIT = "backbone.vit."
_HF_VIT_LAYER = r"layers\.(\d+)\."
_CONSTANT = (r"criterion\.empty_weight", "a constant of the loss")


def _dinov3_vit(embeddings: str, layer: str, norm: str) -> Rules:
    """A DINOv3 of transformers, whose attention has biases of queries and values alone.

    Args:
        embeddings: pattern of the prefix of its embeddings.
        layer: likewise of a layer, with its number as a group.
        norm: likewise of the final norm.
    """
    block = rf"{_VIT}blocks.\1."
    return (
        (embeddings + r"cls_token", rf"{_VIT}cls_token"),
        (embeddings + r"register_tokens", rf"{_VIT}reg_token"),
        (embeddings + r"patch_embeddings\.(.+)", rf"{_VIT}patch_embed.proj.\1"),
        *(
            (layer + rf"attention\.{part}_proj\.weight", f"{block}attn.qkv.weight[{i}/3]")
            for i, part in enumerate("qkv")
        ),
        (layer + r"attention\.([qv])_proj\.bias", rf"{block}attn.\2_bias"),
        (layer + r"attention\.o_proj\.(.+)", rf"{block}attn.proj.\2"),
        (layer + r"layer_scale([12])\.lambda1", rf"{block}gamma_\2"),
        (layer + r"(norm[12]\..+)", rf"{block}\2"),
        (layer + r"mlp\.up_proj\.(.+)", rf"{block}mlp.fc1.\2"),
        (layer + r"mlp\.down_proj\.(.+)", rf"{block}mlp.fc2.\2"),
        (norm + r"(weight|bias)", rf"{_VIT}norm.\1"),
    )


_HF_EOMT_HEAD: Rules = (
    (r"query\.weight", r"queries.weight"),
    *((rf"mask_head\.fc{i + 1}\.(.+)", rf"mask_head.{2 * i}.\1") for i in range(3)),
    *(
        (rf"upscale_block\.block\.(\d)\.{theirs}\.(.+)", rf"upscale.\1.{ours}.\2")
        for theirs, ours in (("conv1", 0), ("conv2", 2), ("layernorm2d", 3))
    ),
    (r"class_predictor\.(.+)", rf"{CLASS_HEAD}.\1"),
    (r"attn_mask_probs", r"mask_probability"),
)

HUGGING_FACE_EOMT = NamingScheme(
    title="Hugging Face EoMT",
    rules=(
        *_HF_EOMT_HEAD,
        (r"embeddings\.cls_token", rf"{_VIT}cls_token"),
        (r"embeddings\.register_tokens", rf"{_VIT}reg_token"),
        (r"embeddings\.position_embeddings\.weight", rf"{_VIT}pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(.+)", rf"{_VIT}patch_embed.proj.\1"),
        *(
            (_HF_VIT_LAYER + rf"attention\.{part}_proj\.(.+)", rf"{_VIT}blocks.\1.attn.qkv.\2[{i}/3]")
            for i, part in enumerate("qkv")
        ),
        (_HF_VIT_LAYER + r"attention\.out_proj\.(.+)", rf"{_VIT}blocks.\1.attn.proj.\2"),
        (_HF_VIT_LAYER + r"layer_scale([12])\.lambda1", rf"{_VIT}blocks.\1.ls\2.gamma"),
        (_HF_VIT_LAYER + r"(norm[12]\..+|mlp\.fc[12]\..+)", rf"{_VIT}blocks.\1.\2"),
        (_HF_VIT_LAYER + r"mlp\.weights_in\.(.+)", rf"{_VIT}blocks.\1.mlp.fc1.\2"),  # of g
        (_HF_VIT_LAYER + r"mlp\.weights_out\.(.+)", rf"{_VIT}blocks.\1.mlp.fc2.\2"),
        (r"layernorm\.(.+)", rf"{_VIT}norm.\1"),
    ),
    dropped=(_CONSTANT,),
)

HUGGING_FACE_EOMT_DINOV3 = NamingScheme(
    title="Hugging Face EoMT with DINOv3",
    rules=(*_HF_EOMT_HEAD, *_dinov3_vit(r"embeddings\.", _HF_VIT_LAYER, r"layernorm\.")),
    dropped=(_CONSTANT, (r"rope_embeddings\..+", "computed from the width of the heads")),
)

_EOMT_VIT = r"network\.encoder\.backbone\."

LIGHTNING_EOMT = NamingScheme(
    title="Lightning (official EoMT)",
    rules=(
        (r"network\.encoder\.(pixel_mean|pixel_std)", r"\1"),
        (r"network\.q\.weight", r"queries.weight"),
        (r"network\.(mask_head\..+)", r"\1"),
        *(
            (rf"network\.upscale\.(\d)\.{theirs}\.(.+)", rf"upscale.\1.{ours}.\2")
            for theirs, ours in (("conv1", 0), ("conv2", 2), ("norm", 3))
        ),
        (r"network\.class_head\.(.+)", rf"{CLASS_HEAD}.\1"),
        (r"network\.attn_mask_probs", r"mask_probability"),
        *_dinov3_vit(_EOMT_VIT + r"patch_embed\.", _EOMT_VIT + r"blocks\.(\d+)\.", _EOMT_VIT + r"norm\."),
        (_EOMT_VIT + r"(?!rope_embeddings)(.+)", rf"{_VIT}\1"),  # timm's own names
    ),
    dropped=(_CONSTANT, (_EOMT_VIT + r"rope_embeddings\..+", "computed from the width of the heads")),
)

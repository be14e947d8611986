"""Makes timm models; what goes wrong becomes one clear message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any

import timm
import torch

from dataseg.structures import UserError

_restricted = ContextVar("restricted", default=False)

_ADMITTED = frozenset(
    "act_layer always_partition attn_drop_rate attn_layer avg_down base_width block_args cardinality channels "
    "class_token conv_bias conv_mlp depth depths dims drop_path_rate drop_rate dynamic_img_pad "
    "dynamic_img_size embed_dim embed_dims features_only global_pool head_dim img_size init_values "
    "kernel_sizes layer_scale_init_value layers ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps "
    "norm_layer num_classes num_heads num_stages out_indices output_stride patch_norm patch_size patch_stride "
    "pos_drop_rate pos_embed pre_norm proj_drop_rate qk_norm qkv_bias reg_tokens replace_stem_pool sr_ratios "
    "stem_bias stem_type stem_width strict_img_size use_grn width widths window_size".split()
)
"""Options that say how a model is built. Others of timm's open files or the network."""


@contextmanager
def restricted() -> Iterator[None]:
    """Within it models are built for a file that somebody else may have written: no file is opened, nothing fetched.

    Pretrained weights are not asked for; names are those of timm's own architectures, options those of a list.
    """
    token = _restricted.set(True)
    try:
        yield
    finally:
        _restricted.reset(token)


def _check(name: str, options: dict[str, Any]) -> None:
    if not re.fullmatch(r"\w+(\.\w+)?", name):
        raise UserError(f"backbone name {name[:200]!r} is no name of an architecture of timm's own")
    others = sorted(options.keys() - _ADMITTED)
    if others:
        raise UserError(
            f"backbone {name!r}: the options {', '.join(others)[:200]} are not taken from a file, which could have any"
            " path opened. If you trust its author: dataseg.load(path, packages=('timm',))"
        )
    if not all(re.fullmatch(r"\w*", value) for value in options.values() if isinstance(value, str)):
        raise UserError(f"backbone {name!r}: an option is a text with more than letters, digits and underscores")


def probe_model(name: str, options: dict[str, Any]) -> Any:
    """The whole model without memory for weights, to read its properties from.

    Raises:
        UserError: timm has no such model, or the model no such option.
    """
    if _restricted.get():
        _check(name, options)
    key = name, repr(sorted(options.items()))
    if key not in _probes:
        _probes[key] = _made_without_weights(name, options)
    return deepcopy(_probes[key])


_probes: dict[tuple[str, str], Any] = {}
"""By name and options. A copy takes a tenth of the time: without memory too, weights are drawn at random one by one."""


def _made_without_weights(name: str, options: dict[str, Any]) -> Any:
    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, **options)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        family = name.split(".")[0].split("_")[0]
        similar = timm.list_models(f"*{family}*")[:8]
        hint = f"did you mean one of {similar}?" if similar else "see timm.list_models()"
        raise UserError(f"backbone name {name!r} is not a timm model: {hint}") from error
    except TypeError as error:
        raise UserError(
            f"backbone {name!r} does not take the options {options}: {error}. Give it its own, or options={{}}"
        ) from error


def create_model(name: str, pretrained: bool, **options: Any) -> Any:
    """The model, with timm's weights if ``pretrained`` and not `restricted`; `probe_model` goes before it.

    Raises:
        UserError: the weights cannot be had.
    """
    pretrained = pretrained and not _restricted.get()
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # the hub's clients raise many types
        if not pretrained:
            raise
        raise UserError(
            f"cannot get the pretrained weights of backbone {name!r} ({type(error).__name__}: {error}). Without a"
            " network: fill the Hugging Face cache beforehand (HF_HOME), give a file through options:"
            " {pretrained_cfg_overlay: {file: PATH}}, or set pretrained: false"
        ) from error

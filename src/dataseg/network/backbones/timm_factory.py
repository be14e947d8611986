"""Makes timm models; what goes wrong becomes one clear message."""

from __future__ import annotations

from typing import Any

import timm
import torch

from dataseg.structures import UserError


def probe_model(name: str, options: dict[str, Any]) -> Any:
    """The whole model without memory for weights, to read its properties from.

    Raises:
        UserError: timm has no such model, or the model no such option.
    """
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
        raise UserError(f"backbone {name!r} does not take the options {options}: {error}") from error


def create_model(name: str, pretrained: bool, **options: Any) -> Any:
    """The model, with timm's weights if ``pretrained``.

    Raises:
        UserError: the weights cannot be had.
    """
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

"""The classes of this project that a file from somebody else may name; see `dataseg.config.build`."""

from __future__ import annotations

from dataseg.config.build import Registry
from dataseg.network import LinearClassifier, MaskClassificationNetwork, TextClassifier, TimmBackbone, ViTDet
from dataseg.text import OpenClipText, TextEmbeddings

_CLASSES: tuple[type, ...] = (
    # a new network, backbone or classifier is one more line here
    MaskClassificationNetwork,
    TimmBackbone,
    ViTDet,
    TextClassifier,
    LinearClassifier,
    TextEmbeddings,
    OpenClipText,
)

PACKAGES = "packages whose classes the model's configuration may name: their code is run"
"""Help of the command line option."""


def registry(packages: tuple[str, ...] = ()) -> Registry:
    """The registry, with packages whose authors the user trusts."""
    public = {f"{'.'.join(c.__module__.split('.')[:2])}.{c.__name__}": c for c in _CLASSES}
    return Registry(public | {f"{c.__module__}.{c.__name__}": c for c in _CLASSES}, packages)

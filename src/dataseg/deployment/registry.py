"""The classes that a file from somebody else may name: what `dataseg.network`, `losses` and `text` export."""

from __future__ import annotations

from dataseg import losses, network, text
from dataseg.config.build import Registry

PACKAGES = "packages whose classes the model's configuration may name: their code is run"
"""Help of the command line option."""


def registry(packages: tuple[str, ...] = ()) -> Registry:
    """The classes by their public and their full names, and packages whose authors the user trusts."""
    classes = {}
    for package in (network, losses, text):
        exported = (getattr(package, name) for name in package.__all__)
        for one in (value for value in exported if isinstance(value, type)):
            classes[f"{package.__name__}.{one.__name__}"] = classes[f"{one.__module__}.{one.__name__}"] = one
    return Registry(classes, packages)

"""Co-train one segmentation model on many datasets and many tasks (DaTaSeg, NeurIPS 2023).

``model = dataseg.load("model.safetensors")`` loads an exported model; see `dataseg.deployment.predictor`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataseg.deployment.predictor import Predictor as Predictor
    from dataseg.deployment.predictor import load as load

_LAZY = ("Predictor", "load")  # importing the package alone stays light: no torch


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dataseg.deployment import predictor

    return getattr(predictor, name)

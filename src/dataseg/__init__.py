"""Co-train one segmentation model on many datasets and many tasks (DaTaSeg, NeurIPS 2023).

``model = dataseg.load("model.safetensors")`` loads an exported model; see `dataseg.deployment.predictor`.
``dataseg.experiment("mini_all")`` builds what ``dataseg fit`` runs; see `dataseg.cli.co_training`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataseg.cli.co_training import experiment as experiment
    from dataseg.deployment.predictor import Predictor as Predictor
    from dataseg.deployment.predictor import load as load

_LAZY = {  # importing the package alone stays light: no torch
    "Predictor": "dataseg.deployment.predictor",
    "load": "dataseg.deployment.predictor",
    "experiment": "dataseg.cli.co_training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)

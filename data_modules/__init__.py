"""Everything that turns files on disk into samples and batches: `CoTraining`, and readers in `data_modules.formats`."""

from typing import Any

from data_modules import formats
from data_modules.co_training import CoTraining

__all__ = ["CoTraining"]


def __getattr__(name: str) -> Any:
    """Readers by the path that version 0.1 gave them, such as ``data_modules.CocoPanoptic``."""
    if name in formats.__all__:
        return getattr(formats, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

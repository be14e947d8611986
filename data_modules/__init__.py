"""Everything that turns files on disk into samples and batches."""

from data_modules.co_training import CoTraining
from data_modules.formats import (
    AdePanoptic,
    AdeSemantic,
    CityscapesPanoptic,
    CocoBoxes,
    CocoInstances,
    CocoPanoptic,
    CocoSemantic133,
    HubDataset,
    LabelMaps,
    MaskFolders,
    MissingDataError,
    Objects365Boxes,
    Objects365Instances,
    PascalContext59,
    PascalContext459,
    Reader,
)

__all__ = [
    "AdePanoptic",
    "AdeSemantic",
    "CityscapesPanoptic",
    "CoTraining",
    "CocoBoxes",
    "CocoInstances",
    "CocoPanoptic",
    "CocoSemantic133",
    "HubDataset",
    "LabelMaps",
    "MaskFolders",
    "MissingDataError",
    "Objects365Boxes",
    "Objects365Instances",
    "PascalContext59",
    "PascalContext459",
    "Reader",
]

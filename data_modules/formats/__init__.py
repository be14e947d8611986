"""Readers, one per official on-disk layout."""

from data_modules.formats.ade import AdePanoptic, AdeSemantic
from data_modules.formats.base import MissingDataError, Reader
from data_modules.formats.boxes import CocoBoxes
from data_modules.formats.cityscapes import CityscapesPanoptic
from data_modules.formats.coco import CocoPanoptic, CocoSemantic133
from data_modules.formats.hub import HubDataset
from data_modules.formats.instances import CocoInstances
from data_modules.formats.labels import LabelMaps
from data_modules.formats.masks import MaskFolders
from data_modules.formats.objects365 import Objects365Boxes, Objects365Instances
from data_modules.formats.pascal_context import PascalContext59, PascalContext459

__all__ = [
    "AdePanoptic",
    "AdeSemantic",
    "CityscapesPanoptic",
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

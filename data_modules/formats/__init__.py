"""Readers, one per official on-disk layout, form of your own, or labelling tool."""

from data_modules.formats.ade import AdePanoptic, AdeSemantic
from data_modules.formats.cityscapes import CityscapesPanoptic
from data_modules.formats.coco_boxes import CocoBoxes
from data_modules.formats.coco_instances import CocoInstances
from data_modules.formats.coco_panoptic import CocoPanoptic, CocoSemantic133
from data_modules.formats.cvat import CvatImages
from data_modules.formats.hold_out import HoldOut
from data_modules.formats.huggingface import HubDataset
from data_modules.formats.label_maps import LabelMaps
from data_modules.formats.label_studio import LabelStudio
from data_modules.formats.labelme import Labelme
from data_modules.formats.mask_folders import MaskFolders
from data_modules.formats.objects365 import Objects365Boxes, Objects365Instances
from data_modules.formats.pascal_context import PascalContext59, PascalContext459
from data_modules.formats.pascal_voc import PascalVocBoxes
from data_modules.formats.reader import Reader
from data_modules.formats.via import Via
from data_modules.formats.yolo import Yolo
from data_modules.layout import MissingDataError

__all__ = [
    "AdePanoptic",
    "AdeSemantic",
    "CityscapesPanoptic",
    "CocoBoxes",
    "CocoInstances",
    "CocoPanoptic",
    "CocoSemantic133",
    "CvatImages",
    "HoldOut",
    "HubDataset",
    "LabelMaps",
    "LabelStudio",
    "Labelme",
    "MaskFolders",
    "MissingDataError",
    "Objects365Boxes",
    "Objects365Instances",
    "PascalContext59",
    "PascalContext459",
    "PascalVocBoxes",
    "Reader",
    "Via",
    "Yolo",
]

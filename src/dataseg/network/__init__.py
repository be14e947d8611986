"""The mask-classification network: backbone, pixel decoder, transformer decoder, classifier."""

from dataseg.network.backbones.base import STRIDES, Backbone
from dataseg.network.backbones.timm_backbone import TimmBackbone
from dataseg.network.backbones.vitdet import ViTDet
from dataseg.network.classifiers.linear import LinearClassifier
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.mask_classification import MaskClassificationNetwork, Queries

__all__ = [
    "STRIDES",
    "Backbone",
    "Classifier",
    "LinearClassifier",
    "MaskClassificationNetwork",
    "Queries",
    "TextClassifier",
    "TimmBackbone",
    "ViTDet",
]

"""The mask-classification network: backbone, pixel decoder, transformer decoder, text classifier."""

from dataseg.network.backbone import STRIDES, Backbone, TimmBackbone
from dataseg.network.classifier import Classifier, LinearClassifier, TextClassifier
from dataseg.network.network import MaskClassificationNetwork, Queries
from dataseg.network.vitdet import ViTDet

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

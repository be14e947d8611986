"""The mask-classification network: backbone, pixel decoder, transformer decoder, classifier."""

from dataseg.network.backbones.base import STRIDES, Backbone
from dataseg.network.backbones.timm_backbone import TimmBackbone
from dataseg.network.backbones.vitdet import ViTDet
from dataseg.network.classifiers.learned import PerVocabularyClassifier, classifier_for
from dataseg.network.classifiers.linear import LinearClassifier
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.mask_classification import MaskClassificationNetwork, Queries
from dataseg.network.pixel_decoder import PixelDecoder

__all__ = [
    "STRIDES",
    "Backbone",
    "Classifier",
    "LinearClassifier",
    "MaskClassificationNetwork",
    "PerVocabularyClassifier",
    "PixelDecoder",
    "Queries",
    "TextClassifier",
    "TimmBackbone",
    "ViTDet",
    "classifier_for",
]

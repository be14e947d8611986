"""The networks: Mask2Former's (backbone, pixel decoder, transformer decoder) and the encoder-only one; classifiers."""

from dataseg.network.backbones.base import STRIDES, Backbone
from dataseg.network.backbones.timm_backbone import TimmBackbone
from dataseg.network.backbones.vitdet import ViTDet
from dataseg.network.base import Queries, SegmentationNetwork
from dataseg.network.classifiers.learned import PerVocabularyClassifier, classifier_for
from dataseg.network.classifiers.linear import LinearClassifier
from dataseg.network.classifiers.text import Classifier, TextClassifier
from dataseg.network.encoder_only import EncoderOnlyNetwork
from dataseg.network.mask_classification import MaskClassificationNetwork
from dataseg.network.pixel_decoder import DeformablePixelDecoder, PixelDecoder
from dataseg.network.vit import PlainViT

__all__ = [
    "STRIDES",
    "Backbone",
    "Classifier",
    "DeformablePixelDecoder",
    "EncoderOnlyNetwork",
    "LinearClassifier",
    "MaskClassificationNetwork",
    "PerVocabularyClassifier",
    "PixelDecoder",
    "PlainViT",
    "Queries",
    "SegmentationNetwork",
    "TextClassifier",
    "TimmBackbone",
    "ViTDet",
    "classifier_for",
]

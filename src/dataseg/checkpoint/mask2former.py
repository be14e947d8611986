"""Published Mask2Former and EoMT weights in: Hugging Face's and the authors' checkpoints, into our networks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dataseg.checkpoint.fit_report import FitReport
from dataseg.checkpoint.safe_reader import read_tensors
from dataseg.checkpoint.state_dict_adapter import (
    CLASS_HEAD,
    DETECTRON2,
    HUGGING_FACE,
    HUGGING_FACE_EOMT,
    HUGGING_FACE_EOMT_DINOV3,
    LIGHTNING_EOMT,
    NamingScheme,
    Translation,
    translate,
)
from dataseg.io.json_files import read_json
from dataseg.network import EncoderOnlyNetwork, LinearClassifier, SegmentationNetwork
from dataseg.network.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from dataseg.network.pixel_decoder import NUM_LEVELS, NUM_POINTS
from dataseg.structures import UserError

logger = logging.getLogger(__name__)

ClassHead: TypeAlias = Literal["drop", "linear"]
"""What becomes of a published class head: dropped, or kept as a linear classifier for its one vocabulary."""


@dataclass
class ImportReport:
    """What happened to every tensor.

    Attributes:
        path: where they came from.
        loaded: how many of the network's tensors were set.
        dropped: the checkpoint's name -> why it was not needed.
        untouched: the network's own tensors that no published checkpoint holds.
    """

    path: Path
    loaded: int
    dropped: dict[str, str] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        reasons = sorted(set(self.dropped.values()))
        counts = [f"{sum(r == reason for r in self.dropped.values())} dropped ({reason})" for reason in reasons]
        kept = [f"{len(self.untouched)} of the network left as they were"] if self.untouched else []
        return f"{self.path}: {self.loaded} tensors loaded; " + "; ".join(counts + kept)


def load_published(network: SegmentationNetwork, path: Path | str, class_head: ClassHead = "drop") -> ImportReport:
    """Load a published Mask2Former or EoMT into a network of the same architecture. All or nothing is changed.

    The network's image normalisation becomes the checkpoint's: what stands in it (detectron2, Lightning) or in the
    ``preprocessor_config.json`` beside it (Hugging Face), else ImageNet's, which all official configurations use.

    Args:
        network: for Mask2Former over a `dataseg.network.TimmBackbone`, whose ``freeze_norm`` may be either.
        path: see `dataseg.checkpoint.safe_reader.read_tensors`.
        class_head: "drop" leaves the network's classifier as it is; "linear" replaces it by a linear one with the
            published weights.

    Raises:
        UserError: the file cannot be read, or is of another architecture, or a tensor is missing, left over or of
            another shape; names them.
    """
    path = Path(path)
    translation = _translated(path)
    tensors, dropped = translation.tensors, dict(translation.dropped)
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{CLASS_HEAD}.")}
    classifier = _linear_classifier(path, head) if class_head == "linear" else None
    if classifier is None:
        dropped |= {name: "class head" for ours in head for name in translation.source[ours]}
    _check_fit(path, tensors, network)

    untouched = sorted(set(network.state_dict()) - set(tensors))
    network.load_state_dict(tensors, strict=False)
    if classifier is not None:
        network.classifier = classifier.to(network.pixel_mean.device)
        untouched = [name for name in untouched if not name.startswith("classifier.")]
    report = ImportReport(path, len(tensors) + len(head) * (classifier is not None), dropped, untouched)
    if head and classifier is None:
        logger.warning("%s: its class head is dropped; the network keeps its own classifier", path)
    return report


# ------------------------------------------------------------------------------------------------- translation


def _translated(path: Path) -> Translation:
    """Read and rename; pixel_mean and pixel_std are always there, and channels are RGB."""
    state = read_tensors(path)
    scheme = next((scheme for mark, scheme in _MARKS if any(name.startswith(mark) for name in state)), None)
    if scheme is None:
        titles = " or ".join(scheme.title for _, scheme in _MARKS)
        raise UserError(f"{path}: not a checkpoint of {titles}; its first tensors are {list(state)[:3]}")
    try:
        translation = translate(state, scheme)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if translation.unknown:
        raise UserError(f"{path}: {scheme.title} has no such tensors: {_some(translation.unknown)}")
    _normalization(path, translation.tensors)
    if scheme in (HUGGING_FACE_EOMT, HUGGING_FACE_EOMT_DINOV3, LIGHTNING_EOMT):
        _check_eomt(path, translation.tensors)
    return translation


_MARKS: tuple[tuple[str, NamingScheme], ...] = (
    ("sem_seg_head.", DETECTRON2),
    ("model.pixel_level_module.", HUGGING_FACE),
    ("network.encoder.backbone.", LIGHTNING_EOMT),
    ("embeddings.position_embeddings.", HUGGING_FACE_EOMT),
    ("embeddings.patch_embeddings.", HUGGING_FACE_EOMT_DINOV3),
)
"""What the names of a scheme begin with; the first that is found counts."""


def _check_eomt(path: Path, tensors: dict[str, Tensor]) -> None:
    probability, positions = tensors.get("mask_probability"), tensors.get("backbone.vit.pos_embed")
    if (probability is not None and (probability < 0).any()) or not tensors["pixel_std"].all():
        raise UserError(
            f"{path}: holds differences to DINOv3's weights, no weights: add them to DINOv3's first, as its authors say"
        )
    if positions is not None and positions.ndim == 2:  # a table at Hugging Face
        tensors["backbone.vit.pos_embed"] = positions[None]


def _normalization(path: Path, tensors: dict[str, Tensor]) -> None:
    mean, std = _folder_normalization(path)
    mean = tensors.get("pixel_mean", mean).reshape(3, 1, 1).float()
    std = tensors.get("pixel_std", std).reshape(3, 1, 1).float()
    if mean.max() <= 1:  # EoMT's authors count from 0 to 1
        mean, std = 255 * mean, 255 * std
    if mean[0] < mean[2]:  # photographs have more red than blue: these are BGR, as detectron2's own ResNets
        mean, std = mean.flip(0), std.flip(0)
        for name in ("backbone.model.conv1.weight", "backbone.model.patch_embed.proj.weight"):
            if name in tensors:
                tensors[name] = tensors[name].flip(1)
    tensors["pixel_mean"], tensors["pixel_std"] = mean, std


def _folder_normalization(path: Path) -> tuple[Tensor, Tensor]:
    file = (path if path.is_dir() else path.parent) / "preprocessor_config.json"
    if not file.is_file():
        return 255 * torch.tensor(IMAGENET_MEAN), 255 * torch.tensor(IMAGENET_STD)
    try:
        settings = read_json(file)
        unit = 1 / float(settings.get("rescale_factor", 1 / 255))
        mean, std = (unit * torch.tensor(settings[key], dtype=torch.float32) for key in ("image_mean", "image_std"))
        if mean.shape != (3,) or std.shape != (3,) or not bool(torch.cat([mean, std]).isfinite().all()):
            raise ValueError("not three numbers each")
        return mean, std
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{file}: image_mean or image_std cannot be read ({error})") from error


def _linear_classifier(path: Path, head: Mapping[str, Tensor]) -> LinearClassifier:
    try:
        weight, bias = head[f"{CLASS_HEAD}.weight"], head[f"{CLASS_HEAD}.bias"]
    except KeyError as error:
        raise UserError(f"{path}: has no class head to keep as a linear classifier ({error} is missing)") from error
    classifier = LinearClassifier(weight.shape[1], num_classes=weight.shape[0] - 1)
    classifier.linear.load_state_dict({"weight": weight, "bias": bias})
    return classifier


# -------------------------------------------------------------------------------------------------- do they fit?


@dataclass(frozen=True)
class Architecture:
    """What a state dict under our names says of the network it belongs to; None where it says nothing."""

    backbone: str | None
    hidden_dim: int | None
    num_queries: int | None
    decoder_layers: int | None
    pixel_decoder_layers: int | None
    num_heads: int | None
    feedforward_dim: int | None
    pixel_decoder_feedforward_dim: int | None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Architecture:
        def size(name: str, axis: int = 0) -> int | None:
            return tensors[name].shape[axis] if name in tensors else None

        offsets = size("pixel_decoder.layers.0.attention.sampling_offsets.bias")
        return cls(
            backbone=_backbone_title(tensors),
            hidden_dim=size("transformer_decoder.query_features.weight", 1),
            num_queries=size("transformer_decoder.query_features.weight"),
            decoder_layers=_count(tensors, r"transformer_decoder\.layers\.(\d+)\..+"),
            pixel_decoder_layers=_count(tensors, r"pixel_decoder\.layers\.(\d+)\..+"),
            num_heads=None if offsets is None else offsets // (NUM_LEVELS * NUM_POINTS * 2),
            feedforward_dim=size("transformer_decoder.layers.0.linear1.weight"),
            pixel_decoder_feedforward_dim=size("pixel_decoder.layers.0.linear1.weight"),
        )


@dataclass(frozen=True)
class EncoderOnlyArchitecture:
    """Likewise of an encoder-only network."""

    width: int | None
    blocks: int | None
    blocks_with_queries: int | None
    num_queries: int | None
    positions: int | None  # patches of the image size that position embeddings are kept for

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> EncoderOnlyArchitecture:
        def size(name: str, axis: int = 0) -> int | None:
            return tensors[name].shape[axis] if name in tensors else None

        return cls(
            width=size("queries.weight", 1),
            blocks=_count(tensors, r"backbone\.vit\.blocks\.(\d+)\..+"),
            blocks_with_queries=size("mask_probability"),
            num_queries=size("queries.weight"),
            positions=size("backbone.vit.pos_embed", 1),
        )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))})


def _resnet_depths(tensors: Mapping[str, Tensor]) -> list[int]:
    return [_count(tensors, rf"backbone\.model\.layer{stage}\.(\d+)\..+") for stage in range(1, 5)]


def _swin_depths(tensors: Mapping[str, Tensor]) -> list[int]:
    return [_count(tensors, rf"backbone\.model\.layers_{stage}\.blocks\.(\d+)\..+") for stage in range(4)]


def _backbone_title(tensors: Mapping[str, Tensor]) -> str | None:
    if "backbone.model.layer1.0.conv1.weight" in tensors:
        return f"ResNet with {_resnet_depths(tensors)} blocks"
    width = tensors.get("backbone.model.patch_embed.proj.weight")
    if width is not None and any(_swin_depths(tensors)):
        return f"Swin of width {len(width)} with {_swin_depths(tensors)} blocks"
    return None


def _check_fit(path: Path, tensors: Mapping[str, Tensor], network: SegmentationNetwork) -> None:
    kind: type[Architecture | EncoderOnlyArchitecture] = Architecture
    if isinstance(network, EncoderOnlyNetwork):
        kind = EncoderOnlyArchitecture
    if any(name.startswith("backbone.vit.") for name in tensors) != (kind is EncoderOnlyArchitecture):
        name = "a Mask2Former" if kind is EncoderOnlyArchitecture else "an EoMT"
        raise UserError(f"{path}: of {name}, which does not fit into a network of the class {type(network).__name__}")
    own = {name: t for name, t in network.state_dict().items() if not name.startswith("classifier.")}
    theirs, ours = kind.of(tensors), kind.of(own)
    differences = [
        f"{f.name} {getattr(theirs, f.name)} (network: {getattr(ours, f.name) or type(network.backbone).__name__})"
        for f in fields(theirs)
        if getattr(theirs, f.name) not in (None, getattr(ours, f.name))
    ]
    if differences:
        raise UserError(f"{path}: another architecture: {', '.join(differences)}")
    # a frozen norm has no such counter, and published checkpoints have frozen norms
    needed = {name: t for name, t in own.items() if name in tensors or not name.endswith("num_batches_tracked")}
    FitReport.of(tensors, needed).require(path)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

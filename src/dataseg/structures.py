"""Typed records that every room of the house passes on; checked when they are built.

Shape legend used across the project::

    B = batch   Q = queries   C = classes of one vocabulary   K = target segments of one image
    H, W = image rows, columns   h, w = rows, columns of the mask logits (H / 4, W / 4)   S = class names (synonyms)
    D = width of the text space   P = sampled points

Boxes are ``xyxy`` in absolute pixels; column 0 of a pixel spans [0, 1]. Class labels are contiguous indices
``0..C-1`` into a `Vocabulary`, never official ids. This module imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

PADDING_RGB = (124, 116, 104)
"""Colour of padding: ImageNet's mean, so that it is zero once the network has normalised it."""

VOID = -1
"""Value of a map's pixel that belongs to no segment: no loss and no score is taken there."""

UNREADABLE = "unreadable: "
"""Start of the keys of ``counts`` that name a training sample that could not be read; the message follows."""


class UserError(ValueError):
    """A mistake in data or configuration that the user can mend. The message names file, record and remedy.

    The command line shows it without a traceback.
    """


class Task(StrEnum):
    """What counts as one segment (method: MERGE), and how proposals are post-processed."""

    SEMANTIC = "semantic"
    PANOPTIC = "panoptic"
    INSTANCE = "instance"


# ---------------------------------------------------------------------------------------------- vocabulary


@dataclass(frozen=True)
class ClassSpec:
    """One class of a data set.

    Attributes:
        id: the official id, as it stands in the annotation files.
        name: the official name, for display.
        is_thing: countable (one mask per instance in panoptic and instance tasks) or stuff.
        prompts: names given to the text encoder; synonyms of one class are combined by max.
        color: RGB, 0-255.
    """

    id: int
    name: str
    is_thing: bool
    prompts: tuple[str, ...]
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not self.prompts or not all(p.strip() for p in self.prompts):
            raise ValueError(f"class {self.id} ({self.name!r}) needs at least one non-empty prompt")
        if len(self.color) != 3 or not all(0 <= c <= 255 for c in self.color):
            raise ValueError(f"class {self.id} ({self.name!r}): color must be three values 0-255, got {self.color}")


@dataclass(frozen=True)
class Vocabulary:
    """The classes of one data set: a value from which class counts, thing/stuff sets and colours derive.

    Vocabularies of different data sets are never merged.
    """

    name: str
    classes: tuple[ClassSpec, ...]

    def __post_init__(self) -> None:
        ids = [c.id for c in self.classes]
        if not ids:
            raise ValueError(f"vocabulary {self.name!r} has no class")
        if len(set(ids)) != len(ids):
            twice = sorted({i for i in ids if ids.count(i) > 1})
            raise ValueError(f"vocabulary {self.name!r} lists the ids {twice} twice")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.classes]

    @property
    def is_thing(self) -> Tensor:
        """Bool ``[C]``."""
        return torch.tensor([c.is_thing for c in self.classes])

    @property
    def colors(self) -> Tensor:
        """Uint8 ``[C, 3]``, RGB."""
        return torch.tensor([c.color for c in self.classes], dtype=torch.uint8)

    @property
    def index_of(self) -> dict[int, int]:
        """Official id -> label."""
        return {c.id: i for i, c in enumerate(self.classes)}

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of ids, names, thing flags and prompts: stands beside every metric."""
        content = [[c.id, c.name, c.is_thing, list(c.prompts)] for c in self.classes]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": [
                {"id": c.id, "name": c.name, "is_thing": c.is_thing, "prompts": list(c.prompts), "color": list(c.color)}
                for c in self.classes
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        classes = []
        for position, record in enumerate(content["classes"]):
            try:
                classes.append(
                    ClassSpec(
                        id=int(record["id"]),
                        name=str(record["name"]),
                        is_thing=bool(record["is_thing"]),
                        prompts=tuple(record.get("prompts") or [record["name"]]),
                        color=tuple(record["color"]),
                    )
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"vocabulary {content.get('name')!r}, class {position}: {error}") from error
        return cls(name=str(content["name"]), classes=tuple(classes))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a vocabulary file.

        Raises:
            UserError: the file is missing or malformed; names the file.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a vocabulary file ({error})") from error


@dataclass(frozen=True)
class Views:
    """What the network is shown of each evaluation image in semantic tasks; other tasks always use the plain image.

    Class scores are averaged over the windows that see a pixel, then over scales and mirror images (as Mask2Former and
    mmsegmentation do).

    Attributes:
        scales: factors on the evaluation image's size, each one more view.
        flip: every scale mirrored too.
        window: side of square windows that are shown one by one in place of the whole scaled image, pixels.
        overlap: share of a window's side that the next one overlaps at least; in [0, 1).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.scales or len(set(self.scales)) != len(self.scales) or not all(0 < s <= 16 for s in self.scales):
            raise UserError(f"evaluation scales must be different numbers in (0, 16], got {list(self.scales)}")
        if self.window is not None and self.window < 32:
            raise UserError(f"the evaluation window's side must be 32 pixels or more, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"the overlap of evaluation windows must be in [0, 1), got {self.overlap}")

    @property
    def is_plain(self) -> bool:
        """One view: the evaluation image as it is."""
        return self.scales == (1.0,) and not self.flip and self.window is None

    def __str__(self) -> str:
        """In words, to stand beside a figure."""
        window = f", windows of {self.window} px with overlap {self.overlap:.3g}" if self.window else ""
        return f"scales {', '.join(f'{s:g}' for s in self.scales)}{', mirrored too' if self.flip else ''}{window}"


@dataclass(frozen=True)
class DatasetSpec:
    """What the network's surroundings need to know of one data set.

    Attributes:
        vocabulary: its classes.
        tasks: what it is evaluated by; empty for a set that is only trained on.
        views: how its semantic task looks at an image.
        areas: of its panoptic segments: "stored" as its files state them, or "recounted" in its maps.
        resize: how its evaluation images are resized, in words; stands beside its figures.
    """

    vocabulary: Vocabulary
    tasks: tuple[Task, ...] = ()
    views: Views = Views()
    areas: Literal["stored", "recounted"] = "stored"
    resize: str = ""


@dataclass
class ClassEmbeddings:
    """Text embeddings of one vocabulary's class names: all that is specific to a data set in the network's head.

    Attributes:
        vectors: float ``[S, D]``, L2-normalised, one row per name.
        class_index: int64 ``[S]``, values ``0..C-1`` non-decreasing: the class a name belongs to.
        num_classes: C; derived when left out, and carried along by `to` so that no GPU is waited for.
        vocabulary: its name, for classifiers that learn something of each vocabulary.
    """

    vectors: Tensor
    class_index: Tensor
    num_classes: int = 0
    vocabulary: str = ""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.class_index.shape != self.vectors.shape[:1]:
            raise ValueError(
                f"need vectors [S, D] and class_index [S], got {list(self.vectors.shape)}"
                f" and {list(self.class_index.shape)}"
            )
        if not self.num_classes:
            self.num_classes = int(self.class_index[-1]) + 1

    def to(self, *args: Any, **kwargs: Any) -> Self:
        return replace(self, vectors=self.vectors.to(*args, **kwargs), class_index=self.class_index.to(*args, **kwargs))


# ---------------------------------------------------------------------------- segments: targets and predictions


def _check_lengths(record: Any, count: int, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and len(value) != count:
            raise ValueError(f"{type(record).__name__}: {count} labels but {len(value)} {name}")


class _Movable:
    """Records that move between devices field by field."""

    def _map(self, function: Any) -> Self:
        changes = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changes[f.name] = function(value)
            elif isinstance(value, list) and value and isinstance(value[0], _Movable):
                changes[f.name] = [v._map(function) for v in value]
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda t: t.pin_memory())


@dataclass
class SegmentMap(_Movable):
    """Segments that do not overlap, as one map: semantic and panoptic targets and predictions.

    A semantic map is one whose ``labels`` are all different: one segment per class.

    Attributes:
        ids: integer ``[H, W]``, values ``0..K-1`` (row of ``labels``) or `VOID`.
        labels: int64 ``[K]``, class of each segment.
        scores: float ``[K]`` in [0, 1]; predictions only.
        is_crowd: bool ``[K]``; ground truth for evaluation only. Training targets hold no crowd: it is VOID there.
        areas: int64 ``[K]``, pixel counts *as the annotation file states them* (ADE's differ from the map's);
            None = count them in the map.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 2:
            raise ValueError(f"SegmentMap.ids must be [H, W], got {list(self.ids.shape)}")
        if self.ids.is_floating_point() or self.labels.is_floating_point():
            raise ValueError("SegmentMap.ids and labels must be integers")
        _check_lengths(self, len(self.labels), ("scores", "is_crowd", "areas"))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.ids.shape[0], self.ids.shape[1]

    def class_map(self) -> Tensor:
        """Label of every pixel, int64 ``[H, W]``; `VOID` where there is no segment or only a crowd."""
        labels = self.labels if self.is_crowd is None else self.labels.masked_fill(self.is_crowd, VOID)
        table = torch.cat([labels.long(), labels.new_full((1,), VOID, dtype=torch.long)])
        return table[self.ids.long()]  # VOID = -1 indexes the appended last entry


@dataclass
class Boxes(_Movable):
    """Box targets: no mask is known.

    Attributes:
        xyxy: float32 ``[K, 4]``, absolute pixels of the image they travel with.
        labels: int64 ``[K]``.
    """

    xyxy: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.xyxy.ndim != 2 or self.xyxy.shape[1] != 4:
            raise ValueError(f"Boxes.xyxy must be [K, 4], got {list(self.xyxy.shape)}")
        _check_lengths(self, len(self.labels), ("xyxy",))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class InstanceMasks(_Movable):
    """Masks that may overlap, run-length encoded: instance ground truth and predictions.

    Attributes:
        rles: one COCO RLE (``{"size": [H, W], "counts": bytes}``, pycocotools.mask) per instance; None = no mask is
            known (ground truth only: such an instance is ignored, not penalised).
        labels: int64 ``[K]``.
        size: (H, W), to which every RLE must agree.
        scores: float ``[K]`` in [0, 1]; predictions only.
        is_crowd: bool ``[K]``; ground truth only.
        areas: float ``[K]``, as stated in the annotation file (COCO size ranges use it); ground truth only.
        boxes: float ``[K, 4]`` xyxy; ground truth only, stands in for the extent of instances without a mask.
    """

    rles: list[dict[str, Any] | None]
    labels: Tensor
    size: tuple[int, int]
    scores: Tensor | None = None
    is_crowd: Tensor | None = None
    areas: Tensor | None = None
    boxes: Tensor | None = None

    def __post_init__(self) -> None:
        _check_lengths(self, len(self.labels), ("rles", "scores", "is_crowd", "areas", "boxes"))
        for rle in self.rles:
            if rle is not None and tuple(rle["size"]) != tuple(self.size):
                raise ValueError(f"InstanceMasks: an RLE of size {rle['size']} in an image of size {list(self.size)}")

    def __len__(self) -> int:
        return len(self.labels)


Target: TypeAlias = SegmentMap | Boxes | InstanceMasks
Segments: TypeAlias = SegmentMap | InstanceMasks


# ---------------------------------------------------------------------------------------------- samples, batches


@dataclass
class Sample:
    """One image with its target.

    Attributes:
        image: uint8 ``[3, H, W]``, RGB.
        target: for training in the frame of ``image``; for evaluation at ``original_size``.
        image_id: the annotation file's own id, as text.
        original_size: (H, W) of the image on disk.
        seed: seed of every random choice made for this sample (augmentation, points of the loss).
        counts: what preparation dropped, e.g. ``{"emptied_by_crop": 2}``; summed into the log.
        is_padding: evaluation only: repeats an image so that ranks take equal numbers of steps; never scored.
    """

    image: Tensor
    target: Target
    image_id: str
    original_size: tuple[int, int]
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    is_padding: bool = False

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3 or self.image.dtype != torch.uint8:
            raise ValueError(f"Sample.image must be uint8 [3, H, W], got {self.image.dtype} {list(self.image.shape)}")


@dataclass
class Batch(_Movable):
    """Samples of **one** data set.

    Attributes:
        dataset: its name in the configuration, e.g. ``coco``; names its losses and metrics.
        task: the MERGE rule of its targets.
        images: uint8 ``[B, 3, H, W]``, padded with `PADDING_RGB` at the bottom and right.
        sizes: (rows, columns) that are image, not padding, per sample.
        targets: length B. Maps have the padded size in training (padding is `VOID`).
        image_ids, original_sizes, seeds, is_padding: see `Sample`; length B.
        counts: summed over samples.
    """

    dataset: str
    task: Task
    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]
    image_ids: list[str]
    original_sizes: list[tuple[int, int]]
    seeds: list[int]
    is_padding: list[bool]
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("sizes", "targets", "image_ids", "original_sizes", "seeds", "is_padding"):
            if len(getattr(self, name)) != len(self.images):
                raise ValueError(f"Batch of {len(self.images)} images has {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def collate(cls, samples: Sequence[Sample], dataset: str, task: Task, divisor: int = 32) -> Self:
        """Pad samples to one size, a multiple of ``divisor``."""
        rows = max(s.image.shape[1] for s in samples)
        columns = max(s.image.shape[2] for s in samples)
        rows, columns = -(-rows // divisor) * divisor, -(-columns // divisor) * divisor
        padding = torch.tensor(PADDING_RGB, dtype=torch.uint8)[None, :, None, None]
        images = padding.repeat(len(samples), 1, rows, columns)
        counts: dict[str, int] = {}
        for image, sample in zip(images, samples, strict=True):
            image[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
            for key, value in sample.counts.items():
                counts[key] = counts.get(key, 0) + value
        return cls(
            dataset=dataset,
            task=task,
            images=images,
            sizes=[(s.image.shape[1], s.image.shape[2]) for s in samples],
            targets=[s.target for s in samples],
            image_ids=[s.image_id for s in samples],
            original_sizes=[s.original_size for s in samples],
            seeds=[s.seed for s in samples],
            is_padding=[s.is_padding for s in samples],
            counts=counts,
        )


@dataclass
class Proposals:
    """What the network says of a batch: N (mask, class) pairs an image, whatever the data set or task.

    Attributes:
        class_logits: float ``[B, Q, C + 1]``; the last column is the background ("no object").
        mask_logits: float ``[B, Q, h, w]``, h = H / 4, w = W / 4.
    """

    class_logits: Tensor
    mask_logits: Tensor

    def __post_init__(self) -> None:
        if self.class_logits.ndim != 3 or self.mask_logits.ndim != 4:
            raise ValueError(
                f"Proposals need [B, Q, C + 1] and [B, Q, h, w], got "
                f"{list(self.class_logits.shape)} and {list(self.mask_logits.shape)}"
            )
        if self.class_logits.shape[:2] != self.mask_logits.shape[:2]:
            raise ValueError(
                f"Proposals: class_logits {list(self.class_logits.shape)} and mask_logits "
                f"{list(self.mask_logits.shape)} differ in batch or queries"
            )

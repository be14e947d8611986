"""Augmentation for training and resizing for evaluation.

Image, id map, boxes and masks go through one albumentations pipeline together. Every random choice of a sample
follows from its seed alone: neither worker, rank, nor history plays a part.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from data_modules.annotation_index.coco_json import MIN_SIDE
from dataseg.inference.resize import resize, to_tensor
from dataseg.io.id_map import Runs
from dataseg.io.images import ImageArray
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Target, UserError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for its newest version
import albumentations as A  # noqa: N812  # the name its documentation uses
from albumentations.core.type_definitions import Targets

Counts = dict[str, int]

_QUIET = A.NoOp()
"""Without it, boxes beside changes of colour alone bring a warning."""


class ScaleAndCrop(A.DualTransform):  # type: ignore[misc]
    """Large-scale jitter without its padding: resize at random around the size that fits, keep a window of ``size``.

    A scale of 1 makes the longer side ``size``; the crop comes first, so that the cost follows the output, not the
    enlarged image. Smaller images stay smaller: `A.PadIfNeeded` comes last, after the colours.

    Args:
        size: side of the square the result fits in, pixels.

    Attributes:
        source: (H, W) that targets have; the image may have been brought to its `whole_size` already. To be set before
            each call.
        scale: of the next call. The caller draws it, because images are decoded with it in mind.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES)

    def __init__(self, size: int) -> None:
        super().__init__(p=1.0)
        self.size = size
        self.source = (0, 0)
        self.scale = 1.0

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        rows, columns = self.source
        scale = self.scale * self.size / max(rows, columns)
        top, height, out_height = self._window(rows, scale)
        left, width, out_width = self._window(columns, scale)
        return {"window": (top, left, height, width), "out": (out_height, out_width)}

    def whole(self, length: int, scale: float) -> int:
        """Length of the result where all of the source is in it; along one axis."""
        return min(self.size, max(1, round(length * scale)))

    def _window(self, length: int, scale: float) -> tuple[int, int, int]:
        """Start and length of the window in the source, and its length in the result; along one axis."""
        taken = round(self.size / scale)
        if taken >= length:
            return 0, length, self.whole(length, scale)
        taken = max(1, taken)
        return self.py_random.randint(0, length - taken), taken, self.size

    def apply(self, img: NDArray[Any], window: tuple[int, ...], out: tuple[int, int], **params: Any) -> NDArray[Any]:
        if img.shape[:2] != self.source:  # reduced when it was decoded
            return img
        return resize(_cut(img, window), out)

    def apply_to_mask(
        self, mask: NDArray[Any], window: tuple[int, ...], out: tuple[int, int], **params: Any
    ) -> NDArray[Any]:
        return cv2.resize(_cut(mask, window), (out[1], out[0]), interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: NDArray[Any], window: tuple[int, ...], **params: Any) -> NDArray[Any]:
        """Boxes ``[K, 4 + extra]``, fractions of the source -> fractions of the window, clipped to it."""
        top, left, height, width = window
        rows, columns = self.source
        moved = bboxes.copy()
        moved[:, [0, 2]] = np.clip((bboxes[:, [0, 2]] * columns - left) / width, 0, 1)
        moved[:, [1, 3]] = np.clip((bboxes[:, [1, 3]] * rows - top) / height, 0, 1)
        return moved


@dataclass
class TrainTransform:
    """Large-scale jitter, horizontal flip, colour jitter; then targets are tidied. Batches pad to a fixed square.

    Attributes:
        image_size: side of the square, pixels.
        scale_range: bounds of the random scale; 1 = the longer side becomes ``image_size``.
        flip: probability of a horizontal flip.
        color_jitter: strength of brightness, contrast and saturation changes, and a quarter of it for hue; 0 = none.
        augmentation: albumentations transforms, applied in this order; id maps are resampled by
            nearest neighbour, and what they uncover is `VOID`, or outside of every instance mask.
        min_box_side: boxes narrower or lower than this many pixels of the result are dropped.

    Raises:
        UserError: a number out of its range, or an augmentation that cannot be applied to images with id maps, boxes
            and instance masks; all of them are named.
    """

    image_size: int = 640
    scale_range: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    color_jitter: float = 0.0
    augmentation: list[A.BasicTransform | A.BaseCompose] = field(default_factory=list)
    min_box_side: float = 2.0

    def __post_init__(self) -> None:
        size, strength = self.image_size, self.color_jitter
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise UserError(f"scale_range must be two positive numbers in order, got {list(self.scale_range)}")
        if size < 1 or not 0 <= strength < 1:
            raise UserError(f"need image_size >= 1 and 0 <= color_jitter < 1, got {size} and {strength}")
        span = (1 - strength, 1 + strength)
        hue = (-strength / 4, strength / 4)
        colors = [A.ColorJitter(brightness=span, contrast=span, saturation=span, hue=hue, p=1.0)] if strength else []
        self._jitter = ScaleAndCrop(size)
        self._pipelines = self._with_and_without_boxes([self._jitter, A.HorizontalFlip(p=self.flip), *colors])
        self._augmentations = self._with_and_without_boxes([_QUIET, *self.augmentation])
        problems = [problem for transform in _leaves(self.augmentation) if (problem := self._problem_of(transform))]
        if problems:
            raise UserError("train_transform.augmentation: " + "; ".join(problems))

    def _with_and_without_boxes(self, steps: list[Any]) -> dict[bool, A.Compose]:
        boxes = A.BboxParams(format="pascal_voc", min_width=self.min_box_side, min_height=self.min_box_side)
        # the image may be smaller than its target
        options = {"is_check_shapes": False, "mask_interpolation": cv2.INTER_NEAREST}
        return {False: A.Compose(steps, **options), True: A.Compose(steps, bbox_params=boxes, **options)}

    def _problem_of(self, transform: Any) -> str:
        """Why an augmentation cannot be used, found by trying it on each kind of target; empty if it can."""
        name = type(transform).__name__
        if isinstance(transform, A.Morphological) or getattr(transform, "fill_mask", None) not in (None, 0):
            return f"{name} writes other numbers into id maps (fill_mask must be 0)"
        always = copy.deepcopy(transform)
        always.p = 1.0
        pipelines = self._with_and_without_boxes([_QUIET, always])
        picture = np.full((self.image_size, self.image_size, 3), 128, dtype=np.uint8)
        ids = np.ones(picture.shape[:2], dtype=np.int16)
        box = np.array([[0, 0, self.image_size, self.image_size, 0]], dtype=np.float32)
        for target in ({"mask": ids}, {"masks": ids[None].astype(np.uint8)}, {"bboxes": box}):
            try:
                self._augment(pipelines, 0, {"image": picture, **target})
            except UserError as error:
                return f"{name} ({error})"
        return ""

    def _augment(self, pipelines: dict[bool, A.Compose], seed: int, data: dict[str, Any]) -> dict[str, Any]:
        """One pass through albumentations transforms; ids are 1 higher for it, as they fill up with 0.

        Raises:
            UserError: it fails, or the image is larger or of another kind than before.
        """
        shifted = data | ({"mask": data["mask"] + 1} if "mask" in data else {})
        try:
            out = _run(pipelines, [seed, 1], f"augmentation {seed}", shifted)
        except Exception as error:  # they raise many kinds
            raise UserError(f"augmentation failed: {type(error).__name__}: {error}") from error
        image, limit = out["image"], self.image_size
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or max(image.shape[:2]) > limit:
            raise UserError(
                f"augmentation gives {image.dtype} {list(image.shape)}, the image must stay uint8 [H, W, 3] with sides"
                f" of image_size = {limit} at most"
            )
        return out | ({"mask": out["mask"] - 1} if "mask" in data else {})

    @property
    def padded_size(self) -> tuple[int, int]:
        """(rows, columns) that batches pad results to."""
        return self.image_size, self.image_size

    def whole_size(self, size: tuple[int, int], seed: int) -> tuple[int, int] | None:
        """(H', W') of the result of an image of (H, W), if all of it is in the result; None where the scale cuts it."""
        scale = self._scale(seed)
        if scale > 1:
            return None
        rows, columns = (self._jitter.whole(n, scale * self.image_size / max(size)) for n in size)
        return rows, columns

    def _scale(self, seed: int) -> float:
        return random.Random(f"scale {seed}").uniform(*self.scale_range)

    def __call__(
        self, image: ImageArray, target: Target, seed: int, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Target, Counts]:
        """Augment one sample.

        Args:
            image: uint8 ``[H, W, 3]``, or of `whole_size`.
            target: of H x W; crowds become `VOID` (maps) or stay (masks).
            seed: decides every random choice.
            size: (H, W), if the image is smaller.

        Returns:
            uint8 ``[3, H', W']``, sides of ``image_size`` at most, the target in that frame, and what was dropped.
        """
        self._jitter.source = size or (image.shape[0], image.shape[1])
        self._jitter.scale = self._scale(seed)
        if isinstance(target, SegmentMap):
            out = self._run(seed, image=image, mask=target.ids.numpy())
            moved, counts = compact(out["mask"], target)
            return to_tensor(out["image"]), moved, counts
        if isinstance(target, Boxes):
            return self._boxes(image, target, seed)
        return self._masks(image, target, seed)

    def _run(self, seed: int, **data: Any) -> dict[str, Any]:
        out = _run(self._pipelines, seed, seed, data)
        return self._augment(self._augmentations, seed, out) if self.augmentation else out

    def _boxes(self, image: ImageArray, target: Boxes, seed: int) -> tuple[Tensor, Target, Counts]:
        out = self._run(seed, image=image, bboxes=self._on_image(target.xyxy, image))
        boxes, kept = _moved(out)
        moved = Boxes(xyxy=boxes, labels=target.labels[kept])
        return to_tensor(out["image"]), moved, _dropped(len(target) - len(moved))

    def _on_image(self, xyxy: Tensor, image: ImageArray) -> NDArray[np.float32]:
        """Boxes ``[K, 4]`` on the image, which may have been decoded smaller, and the row of each; ``[K, 5]``."""
        rows, columns = self._jitter.source
        smaller = np.array([image.shape[1] / columns, image.shape[0] / rows] * 2, dtype=np.float32)
        return np.hstack([xyxy.numpy() * smaller, np.arange(len(xyxy), dtype=np.float32)[:, None]])

    def _masks(self, image: ImageArray, target: InstanceMasks, seed: int) -> tuple[Tensor, Target, Counts]:
        """Crowds stay crowds, and what has no mask keeps its box: nothing may be learnt there."""
        known = [k for k, rle in enumerate(target.rles) if rle is not None]
        clipped = torch.zeros(0, 4)
        unknown: list[int] = []
        if target.boxes is not None:
            rows, columns = target.size
            clipped = target.boxes.float().clamp(min=0).minimum(torch.tensor([columns, rows, columns, rows]))
            solid = (clipped[:, 2:] - clipped[:, :2] >= MIN_SIDE).all(dim=1).tolist()
            unknown = [k for k, rle in enumerate(target.rles) if rle is None and solid[k]]
        data: dict[str, Any] = {"image": image}
        if known:
            data["masks"] = np.stack([coco_mask.decode(target.rles[k]) for k in known])
        if unknown:
            data["bboxes"] = self._on_image(clipped[unknown], image)
        out = self._run(seed, **data)
        masks = out.get("masks", ())
        kept = [k for k, mask in enumerate(masks) if mask.any()]
        rles: list[Any] = [coco_mask.encode(np.asfortranarray(masks[k])) for k in kept]
        boxes, rest = _moved(out) if unknown else (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        sources = [known[k] for k in kept] + [unknown[k] for k in rest.tolist()]
        moved = InstanceMasks(
            rles=[*rles, *[None] * len(rest)],
            labels=target.labels[sources],
            size=out["image"].shape[:2],
            is_crowd=None if target.is_crowd is None else target.is_crowd[sources],
            boxes=torch.cat([torch.zeros(len(kept), 4), boxes]) if unknown else None,
        )
        lost = len([k for k in set(known) - set(sources) if not _is_crowd(target, k)])
        return to_tensor(out["image"]), moved, _dropped(lost)


def _run(pipelines: dict[bool, A.Compose], numpy_seed: Any, python_seed: Any, data: dict[str, Any]) -> dict[str, Any]:
    """``data`` through the pipeline with or without boxes, whichever it needs."""
    pipeline = pipelines["bboxes" in data]
    # One pair of generators for all steps: `set_random_seed` would give each step the same stream of numbers,
    # and then the flip would follow from the scale.
    pipeline.set_random_state(np.random.default_rng(numpy_seed), random.Random(python_seed))
    result: dict[str, Any] = pipeline(**data)
    return result


def _leaves(transforms: list[Any]) -> Iterator[Any]:
    """All transforms, those inside of `A.OneOf` and other compositions too."""
    for transform in transforms:
        if isinstance(transform, A.BaseCompose):
            yield from _leaves(transform.transforms)
        else:
            yield transform


def compact(ids_HW: NDArray[Any], target: SegmentMap) -> tuple[SegmentMap, Counts]:
    """Training form of an augmented map: crowds are `VOID`, segments without a pixel are gone, rows are ``0..K'-1``.

    Args:
        ids_HW: rows of ``target.labels`` or `VOID`.

    Returns:
        the map, and how many segments the crop emptied.
    """
    count = len(target)
    runs = Runs.of(ids_HW)
    present = runs.pixels(count) > 0
    crowd = np.zeros(count, dtype=bool) if target.is_crowd is None else target.is_crowd.numpy()
    kept = np.flatnonzero(present & ~crowd)
    if len(kept) < count:
        table = np.full(count + 1, VOID, dtype=ids_HW.dtype)  # VOID = -1 indexes the last entry
        table[kept] = np.arange(len(kept))
        ids_HW = runs.filled(table[runs.values])
    labels = target.labels[torch.from_numpy(kept)]
    return SegmentMap(ids=torch.from_numpy(np.ascontiguousarray(ids_HW)), labels=labels), _dropped(
        int((~present & ~crowd).sum())
    )


def _moved(out: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The boxes that a pipeline kept, ``[K, 4]``, and which they were, int64 ``[K]``."""
    kept = torch.from_numpy(np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 5))
    return kept[:, :4].contiguous(), kept[:, 4].long()


def _cut(array: NDArray[Any], window: tuple[int, ...]) -> NDArray[Any]:
    top, left, height, width = window
    return array[top : top + height, left : left + width]


def _is_crowd(target: InstanceMasks, index: int) -> bool:
    return target.is_crowd is not None and bool(target.is_crowd[index])


def _dropped(count: int) -> Counts:
    return {"emptied_by_crop": count} if count else {}

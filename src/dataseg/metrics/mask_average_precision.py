"""Mask AP and AR, equal to pycocotools' COCOeval (iouType "segm").

Legend: D = predictions of one image, G = its ground truth, N = predictions of one class in all images,
A = area ranges, T = IoU thresholds, M = limits on predictions, C = classes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_tools
from torch import Tensor

from dataseg.metrics import coco_matching as coco
from dataseg.metrics.base import ImageMetric
from dataseg.structures import InstanceMasks, UserError, Vocabulary

RECALL_LIMITS = (1, 10, coco.MAX_DETECTIONS)
HEADER = struct.Struct("<IHIB")  # bytes of the record, bytes of the image id, predictions, bytes of a score
BITS = len(coco.AREA_RANGES) * len(coco.IOU_THRESHOLDS)


@dataclass
class ScoredImage:
    """What AP needs to know of one image, predictions by class, then by descending score.

    Attributes:
        image_id: as given.
        labels: uint16 ``[D]``.
        scores: float32 or float64 ``[D]``, as given.
        ranks: uint8 ``[D]``, 0 for the best prediction of its class in this image.
        hit: bool ``[D, A * T]``, matched to ground truth that counts.
        ignored: bool ``[D, A * T]``, neither right nor wrong.
    """

    image_id: str
    labels: NDArray[np.uint16]
    scores: NDArray[Any]
    ranks: NDArray[np.uint8]
    hit: coco.Bools
    ignored: coco.Bools

    def encode(self) -> bytes:
        name = self.image_id.encode()
        columns = (
            self.labels,
            self.scores,
            self.ranks,
            np.packbits(self.hit, axis=1),
            np.packbits(self.ignored, axis=1),
        )
        body = name + b"".join(column.tobytes() for column in columns)
        return HEADER.pack(HEADER.size + len(body), len(name), len(self.labels), self.scores.itemsize) + body


def decode(stream: bytes) -> Iterator[ScoredImage]:
    """Records of a concatenation of `ScoredImage.encode`."""
    start = 0
    while start < len(stream):
        length, name, count, score_bytes = HEADER.unpack_from(stream, start)
        at = start + HEADER.size
        image_id = stream[at : at + name].decode()
        at += name
        columns = []
        for dtype, width in (("<u2", 1), (f"<f{score_bytes}", 1), ("u1", 1), ("u1", BITS // 8), ("u1", BITS // 8)):
            column = np.frombuffer(stream, dtype, count * width, at)
            at += column.nbytes
            columns.append(column)
        hit, ignored = (np.unpackbits(c.reshape(count, BITS // 8), axis=1).astype(bool) for c in columns[3:])
        yield ScoredImage(image_id, columns[0], columns[1], columns[2], hit, ignored)
        start += length


class MaskAveragePrecision(ImageMetric):
    """COCO's twelve scores, in [0, 1], for masks.

    Keys of `compute`: ``mask_ap`` (IoU 0.50:0.95), ``mask_ap50``, ``mask_ap75``, ``mask_aps``, ``mask_apm``,
    ``mask_apl``; average recall ``mask_ar1``, ``mask_ar10``, ``mask_ar`` (at most 1, 10, 100 predictions of a class in
    an image), ``mask_ars``, ``mask_arm``, ``mask_arl``. A score without ground truth (no small instance, say) is NaN,
    where pycocotools gives -1. Columns of `per_class`: the same, float64; and ``instances``, the number counted.

    Matching is done as images come; the state holds, per prediction, score, class and the outcome at each threshold
    and area range (about 17 bytes), no mask. Equal scores of different images keep the order of the image ids, as
    pycocotools does: by number where every id is a decimal number, as text otherwise.

    Ground truth without a mask is ignored: predictions with IoU of at least the threshold against it, measured like
    against a crowd (intersection over the prediction's area) and with its box as region, are neither right nor wrong.
    """

    instances: Tensor

    def __init__(self, vocabulary: Vocabulary, dataset: str = "", **kwargs: Any) -> None:
        super().__init__(vocabulary, dataset, **kwargs)
        counts = torch.zeros(len(vocabulary), len(coco.AREA_RANGES), dtype=torch.int64)
        self.add_state("instances", counts, dist_reduce_fx="sum")
        self._start_list_state("records", torch.uint8)

    @property
    def convention(self) -> dict[str, str]:
        return {
            "metric": "mask AP as in pycocotools (IoU 0.50:0.95, 101 recall levels, 100 predictions a class and image)",
            "averaging": "mean over thresholds and classes with counted ground truth",
            "crowd": "ignored: matches any number of predictions by intersection over their area",
            "no mask": "ground truth without a mask is ignored like a crowd that covers its box",
            "areas": "as the annotation file states them, counted in the mask otherwise",
            "vocabulary": self.vocabulary.digest,
        }

    def update(self, prediction: InstanceMasks, target: InstanceMasks, image_id: str) -> None:
        """Score one image.

        Args:
            prediction: masks with scores, in any order (equal scores keep it); empty for an image without any.
            target: in the order of the annotation file.
            image_id: the annotation file's.

        Raises:
            ValueError: names dataset and image: wrong size or type, unknown label, no or non-finite score, image
                given twice.
        """
        key = self._check_new(image_id)
        self._check(prediction, target, image_id)
        truth = _GroundTruth.of(target)
        record = _score_image(prediction, truth, image_id)
        counted = ~truth.ignored
        seen = np.stack([np.bincount(truth.labels[row], minlength=len(self.vocabulary)) for row in counted], axis=1)
        self.instances += torch.from_numpy(seen).to(self.instances.device)
        self._append("records", torch.frombuffer(bytearray(record.encode()), dtype=torch.uint8))
        self._remember(key)

    def _check(self, prediction: InstanceMasks, target: InstanceMasks, image_id: str) -> None:
        for segments, whose in ((target, "the ground truth"), (prediction, "the prediction")):
            if not isinstance(segments, InstanceMasks):
                self.fail(image_id, f"MaskAveragePrecision takes InstanceMasks, {whose} is {type(segments).__name__}")
            self._check_labels(segments.labels, whose, image_id)
        self._check_size(prediction.size, target.size, image_id)
        if prediction.scores is None and len(prediction):
            self.fail(image_id, "the predictions have no scores; AP ranks by them")
        self._check_scores(prediction.scores, image_id)
        unmasked = [k for k, rle in enumerate(prediction.rles) if rle is None]
        if unmasked:
            self.fail(image_id, f"predictions {unmasked[:5]} have no mask")

    def compute(self) -> dict[str, Tensor]:
        """Scores over all images of all ranks, float64 scalars; the same on every rank.

        Raises:
            ValueError: no image, an image scored twice, or no counted ground truth in all of them.
        """
        count = self._count_images()
        images = _in_id_order(list(decode(self._list_state("records").cpu().numpy().tobytes())))
        instances_CA = self.instances.cpu().numpy()
        if not instances_CA.any():
            raise UserError(f"{self.dataset}: the ground truth of {count} image(s) holds no mask that counts")
        precision_CAT, recall_CAM = _curves(images, instances_CA)
        ranges = list(coco.AREA_RANGES)
        result = {
            "mask_ap": precision_CAT[:, 0],
            "mask_ap50": precision_CAT[:, 0, 0],
            "mask_ap75": precision_CAT[:, 0, 5],
            **{f"mask_ap{name[0]}": precision_CAT[:, a] for a, name in enumerate(ranges) if a},
            "mask_ar1": recall_CAM[:, 0, 0],
            "mask_ar10": recall_CAM[:, 0, 1],
            "mask_ar": recall_CAM[:, 0, 2],
            **{f"mask_ar{name[0]}": recall_CAM[:, a, 2] for a, name in enumerate(ranges) if a},
        }
        tensors = {name: torch.from_numpy(values) for name, values in result.items()}
        self._per_class = {n: v if v.ndim == 1 else v.mean(1) for n, v in tensors.items()}
        self._per_class["instances"] = torch.from_numpy(instances_CA[:, 0].copy())
        return {name: values.nanmean() for name, values in tensors.items()}


@dataclass
class _GroundTruth:
    """Ground truth of one image, in the order of the file.

    Attributes:
        crowd: bool ``[G]``; instances without a mask count as crowds.
        ignored: bool ``[A, G]``, crowds and those outside the area range.
    """

    rles: list[dict[str, Any]]
    labels: NDArray[np.int64]
    crowd: coco.Bools
    ignored: coco.Bools

    @classmethod
    def of(cls, target: InstanceMasks) -> _GroundTruth:
        crowd = np.zeros(len(target), dtype=bool) if target.is_crowd is None else target.is_crowd.cpu().numpy().copy()
        crowd |= np.array([rle is None for rle in target.rles], dtype=bool)
        regions = [rle if rle is not None else _box_rle(target, k) for k, rle in enumerate(target.rles)]
        if target.areas is None:
            areas = np.array([0 if rle is None else mask_tools.area(rle) for rle in regions], dtype=float)
        else:
            areas = target.areas.double().cpu().numpy()
        known = [k for k, rle in enumerate(regions) if rle is not None]  # of the others nothing can be said
        ignored = crowd | coco.outside_ranges(areas)
        return cls(
            [rle for rle in regions if rle is not None],
            target.labels.long().cpu().numpy()[known],
            crowd[known],
            ignored[:, known],
        )


def _box_rle(target: InstanceMasks, k: int) -> dict[str, Any] | None:
    if target.boxes is None:
        return None
    rows, columns = target.size
    x0, y0, x1, y1 = target.boxes[k].double().tolist()
    x0, x1 = (min(max(x, 0.0), columns) for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), rows) for y in (y0, y1))
    rle: dict[str, Any] = mask_tools.frPyObjects(np.array([[x0, y0, x1 - x0, y1 - y0]]), rows, columns)[0]
    return rle


def _score_image(prediction: InstanceMasks, truth: _GroundTruth, image_id: str) -> ScoredImage:
    """Match one image; predictions beyond the limit of their class are dropped."""
    labels = prediction.labels.long().cpu().numpy()
    given = torch.empty(0) if prediction.scores is None else prediction.scores.detach().cpu()
    scores = (given if given.dtype == torch.float64 else given.float()).numpy()
    order = np.lexsort((-scores, labels))  # stable: equal scores of a class stay as given
    ranks = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
    order, ranks = order[ranks < coco.MAX_DETECTIONS], ranks[ranks < coco.MAX_DETECTIONS]
    rles = [prediction.rles[k] for k in order]
    labels = labels[order]
    areas = np.asarray(mask_tools.area(rles), dtype=float) if rles else np.empty(0)
    hit_ATD = np.zeros((len(coco.AREA_RANGES), len(coco.IOU_THRESHOLDS), len(order)), dtype=bool)
    ignored_ATD = np.repeat(coco.outside_ranges(areas)[:, None], len(coco.IOU_THRESHOLDS), axis=1)
    for label in np.intersect1d(labels, truth.labels):
        first, end = np.searchsorted(labels, [label, label + 1])
        of_class = np.flatnonzero(truth.labels == label)
        crowd_G = truth.crowd[of_class]
        iou_DG = mask_tools.iou(rles[first:end], [truth.rles[g] for g in of_class], crowd_G.astype(np.uint8).tolist())
        hit, excused = coco.match_instances(iou_DG, crowd_G, truth.ignored[:, of_class])
        hit_ATD[:, :, first:end] = hit
        ignored_ATD[:, :, first:end] = excused | (~hit & ignored_ATD[:, :, first:end])
    return ScoredImage(
        image_id,
        labels.astype("<u2"),
        scores[order].astype(f"<f{scores.itemsize}"),
        ranks.astype(np.uint8),
        hit_ATD.reshape(BITS, -1).T,
        ignored_ATD.reshape(BITS, -1).T,
    )


def _in_id_order(images: list[ScoredImage]) -> list[ScoredImage]:
    """By number where every id is a plain decimal number, as text otherwise: numpy.unique on the file's ids."""
    if all(image.image_id.isdecimal() and str(int(image.image_id)) == image.image_id for image in images):
        return sorted(images, key=lambda image: int(image.image_id))
    return sorted(images, key=lambda image: image.image_id)


def _curves(images: list[ScoredImage], instances_CA: NDArray[np.int64]) -> tuple[coco.Floats, coco.Floats]:
    """Precision averaged over recall levels ``[C, A, T]``, and recall averaged over thresholds ``[C, A, M]``.

    NaN where a class has no counted ground truth in a range.
    """
    classes, ranges = instances_CA.shape
    levels = len(coco.IOU_THRESHOLDS)
    precision_CAT = np.full((classes, ranges, levels), np.nan)
    recall_CAM = np.full((classes, ranges, len(RECALL_LIMITS)), np.nan)
    labels = np.concatenate([image.labels for image in images])
    scores = np.concatenate([image.scores.astype(float) for image in images])
    ranks = np.concatenate([image.ranks for image in images])
    hit = np.concatenate([image.hit for image in images])
    ignored = np.concatenate([image.ignored for image in images])
    order = np.lexsort((-scores, labels))  # stable, so that equal scores follow the order of the images
    starts = np.searchsorted(labels[order], np.arange(classes + 1))
    for c in np.flatnonzero(instances_CA.any(axis=1)):
        members = order[starts[c] : starts[c + 1]]
        hit_ATN = hit[members].T.reshape(ranges, levels, -1)
        ignored_ATN = ignored[members].T.reshape(ranges, levels, -1)
        for a in np.flatnonzero(instances_CA[c]):
            precision = coco.precision_at_recalls(hit_ATN[a], ignored_ATN[a], int(instances_CA[c, a]))
            precision_CAT[c, a] = precision.mean(axis=1)
            for m, limit in enumerate(RECALL_LIMITS):
                found_T = hit_ATN[a][:, ranks[members] < limit].sum(axis=1)
                recall_CAM[c, a, m] = (found_T / instances_CA[c, a]).mean()
    return precision_CAT, recall_CAM

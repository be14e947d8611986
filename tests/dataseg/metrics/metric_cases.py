"""Random small cases for the metrics, and reference figures that the metrics must equal.

The panoptic reference is written from the rules stated in the panoptic segmentation paper (arXiv 1801.00868, section 4)
and in panopticapi's documentation, one boolean mask at a time; mask AP is scored by pycocotools itself.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import strategies as st
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dataseg.structures import VOID, ClassSpec, InstanceMasks, SegmentMap, Vocabulary

FIGURES_AP = [
    *("mask_ap", "mask_ap50", "mask_ap75", "mask_aps", "mask_apm", "mask_apl"),
    *("mask_ar1", "mask_ar10", "mask_ar", "mask_ars", "mask_arm", "mask_arl"),
]


def make_vocabulary(classes: int, name: str = "toy") -> Vocabulary:
    """Official ids with gaps; every other class a thing."""
    return Vocabulary(
        name,
        tuple(ClassSpec(3 + 7 * c, f"class{c}", c % 2 == 0, (f"class {c}",), (9 * c, 0, 0)) for c in range(classes)),
    )


# ------------------------------------------------------------------------------------------------- panoptic


@dataclass
class PanopticImage:
    """One image as the official files hold it: RGB-decoded ids (0 = void) and segment records."""

    target_ids: np.ndarray
    target_segments: list[dict]
    prediction_ids: np.ndarray
    prediction_segments: list[dict]

    def records(self, vocabulary: Vocabulary) -> tuple[SegmentMap, SegmentMap]:
        """(prediction, target) as the metric takes them."""
        prediction = to_segment_map(self.prediction_ids, self.prediction_segments, vocabulary)
        target = to_segment_map(self.target_ids, self.target_segments, vocabulary)
        target.is_crowd = torch.tensor([bool(s["iscrowd"]) for s in self.target_segments], dtype=torch.bool)
        target.areas = torch.tensor([s["area"] for s in self.target_segments], dtype=torch.int64)
        return prediction, target


def to_segment_map(ids: np.ndarray, segments: list[dict], vocabulary: Vocabulary) -> SegmentMap:
    rows = np.full(ids.shape, VOID, dtype=np.int32)
    for k, segment in enumerate(segments):
        rows[ids == segment["id"]] = k
    labels = [vocabulary.index_of[s["category_id"]] for s in segments]
    return SegmentMap(torch.from_numpy(rows), torch.tensor(labels, dtype=torch.int64))


def _paint(rng: np.random.Generator, size: tuple[int, int], count: int, void: float) -> np.ndarray:
    """A map with values 0 (void) .. count, some segments one pixel large."""
    ids = np.full(size, 0 if rng.random() < void else 1)
    for k in range(1, count + 1):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        height, width = (1, 1) if rng.random() < 0.2 else rng.integers(1, [size[0] + 1, size[1] + 1])
        ids[y : y + height, x : x + width] = k
    if rng.random() < void:
        ids[rng.random(size) < 0.3] = 0
    return ids


def _segments(
    rng: np.random.Generator, painted: np.ndarray, classes: int, crowd: float
) -> tuple[np.ndarray, list[dict]]:
    present = [k for k in np.unique(painted) if k]
    official = rng.choice(2**24 - 1, size=len(present), replace=False) + 1  # also beyond 2^16
    ids = np.zeros(painted.shape, dtype=np.int64)
    segments = []
    for k, new in zip(present, official, strict=True):
        ids[painted == k] = new
        segments.append(
            {
                "id": int(new),
                "category_id": 3 + 7 * int(rng.integers(classes)),
                "iscrowd": int(rng.random() < crowd),
                "area": int((painted == k).sum()),
            }
        )
    rng.shuffle(segments)
    return ids, segments


def random_panoptic_image(
    rng: np.random.Generator, classes: int, crowd: float, void: float, emptiness: float, stale: float = 0.0
) -> PanopticImage:
    size = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    painted = _paint(rng, size, int(rng.integers(1, 9)), void)
    if rng.random() < emptiness:
        painted[:] = 0
    target_ids, target_segments = _segments(rng, painted, classes, crowd)
    if rng.random() < 0.5:  # a prediction that resembles the target, so that segments match
        noisy = np.roll(painted, int(rng.integers(-1, 2)), axis=1)
        noisy[rng.random(size) < 0.1] = int(rng.integers(0, 9))
    else:
        noisy = _paint(rng, size, int(rng.integers(1, 9)), void)
    if rng.random() < emptiness:
        noisy[:] = 0
    prediction_ids, prediction_segments = _segments(rng, noisy, classes, 0.0)
    _share_categories(rng, target_ids, target_segments, prediction_ids, prediction_segments)
    for segment in target_segments:  # as in ADE's files: areas from before things were pasted over stuff
        if rng.random() < stale:
            segment["area"] += int(rng.integers(0, segment["area"] + 1))
    if rng.random() < stale:
        unseen = {"id": 2**24 - 1, "category_id": 3, "iscrowd": 0, "area": 5}  # wholly covered by others
        target_segments.append(unseen)
    return PanopticImage(target_ids, target_segments, prediction_ids, prediction_segments)


def _share_categories(rng, target_ids, target_segments, prediction_ids, prediction_segments) -> None:
    """Most predictions get the class of the target that they cover most."""
    category = {s["id"]: s["category_id"] for s in target_segments}
    for segment in prediction_segments:
        below = target_ids[prediction_ids == segment["id"]]
        below = below[below > 0]
        if len(below) and rng.random() < 0.8:
            segment["category_id"] = category[int(np.bincount(below - below.min()).argmax() + below.min())]


@st.composite
def panoptic_cases(draw, stale: float = 0.0) -> tuple[int, list[PanopticImage]]:
    """(number of classes, images)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(1, 5))
    chance = st.sampled_from([0.0, 0.1, 0.5])
    options = {"crowd": draw(chance), "void": draw(chance), "emptiness": draw(chance), "stale": stale}
    count = draw(st.integers(1, 4))
    return classes, [random_panoptic_image(rng, classes, **options) for _ in range(count)]


@dataclass
class Tally:
    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def occurs(self) -> bool:
        return self.tp + self.fp + self.fn > 0

    @property
    def pq(self) -> float:
        return self.iou / (self.tp + self.fp / 2 + self.fn / 2)

    @property
    def sq(self) -> float:
        return self.iou / self.tp if self.tp else 0.0

    @property
    def rq(self) -> float:
        return self.tp / (self.tp + self.fp / 2 + self.fn / 2)


@dataclass
class PanopticReference:
    """Panoptic quality the slow way, one pair of boolean masks after the other."""

    vocabulary: Vocabulary
    tallies: dict[int, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tallies = {c.id: Tally() for c in self.vocabulary.classes}

    def add(self, image: PanopticImage) -> None:
        void = image.target_ids == 0
        targets = [(s, image.target_ids == s["id"]) for s in image.target_segments]
        predictions = [(s, image.prediction_ids == s["id"]) for s in image.prediction_segments]
        last_crowd = {s["category_id"]: mask for s, mask in targets if s["iscrowd"]}
        matched_targets, matched_predictions = set(), set()
        for target, target_mask in targets:
            for prediction, prediction_mask in predictions:
                if target["iscrowd"] or target["category_id"] != prediction["category_id"]:
                    continue
                shared = int((target_mask & prediction_mask).sum())
                if shared == 0:
                    continue
                union = int((prediction_mask & ~void).sum()) + target["area"] - shared
                if shared / union > 0.5:
                    tally = self.tallies[target["category_id"]]
                    tally.tp += 1
                    tally.iou += shared / union
                    matched_targets.add(target["id"])
                    matched_predictions.add(prediction["id"])
        for target, _ in targets:
            if not target["iscrowd"] and target["id"] not in matched_targets:
                self.tallies[target["category_id"]].fn += 1
        for prediction, mask in predictions:
            if prediction["id"] in matched_predictions:
                continue
            excuse = void | last_crowd.get(prediction["category_id"], np.zeros_like(void))
            if (mask & excuse).sum() / mask.sum() <= 0.5:
                self.tallies[prediction["category_id"]].fp += 1

    def figures(self) -> dict[str, float]:
        result = {}
        for group, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
            members = [self.tallies[c.id] for c in self.vocabulary.classes if c.is_thing in wanted]
            members = [m for m in members if m.occurs]
            for name in ("pq", "sq", "rq"):
                result[name + group] = np.mean([getattr(m, name) for m in members]) if members else np.nan
        return result


# ------------------------------------------------------------------------------------------------- instances


@dataclass
class InstanceImage:
    """One image: the records the metric takes, and those of the COCO files."""

    image_id: int
    prediction: InstanceMasks
    target: InstanceMasks


def _rle(mask: np.ndarray) -> dict:
    return mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))


def _rectangle(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
    largest = rng.choice([1, 8, 40, 120])
    mask[y : y + rng.integers(1, largest + 1), x : x + rng.integers(1, largest + 1)] = True
    return mask


def random_instance_image(
    rng: np.random.Generator, image_id: int, classes: int, crowd: float, emptiness: float, many: bool
) -> InstanceImage:
    size = (int(rng.integers(1, 130)), int(rng.integers(1, 130)))
    truth = [] if rng.random() < emptiness else [_rectangle(rng, size) for _ in range(rng.integers(1, 7))]
    labels = rng.integers(0, classes, len(truth))
    areas = [m.sum() if rng.random() < 0.5 else rng.choice([1024.0, 9216.0, 500.5, 20000.0]) for m in truth]
    masks, classes_of, scores = [], [], []
    count = 0 if rng.random() < emptiness else int(rng.integers(90, 140) if many else rng.integers(1, 12))
    for _ in range(count):
        if truth and rng.random() < 0.7:
            k = int(rng.integers(len(truth)))
            mask = np.roll(truth[k], rng.integers(-2, 3, 2), axis=(0, 1)) & (rng.random() < 0.97)
            label = labels[k] if rng.random() < 0.85 else rng.integers(classes)
        else:
            mask, label = _rectangle(rng, size), rng.integers(classes)
        masks.append(mask)
        classes_of.append(int(label))
        scores.append(rng.choice([0.1, 0.25, 0.5, 0.5, 0.9]) if rng.random() < 0.6 else rng.random())
    target = InstanceMasks(
        rles=[_rle(m) for m in truth],
        labels=torch.tensor(labels.tolist(), dtype=torch.int64),
        size=size,
        is_crowd=torch.tensor((rng.random(len(truth)) < crowd).tolist(), dtype=torch.bool),
        areas=torch.tensor([float(a) for a in areas], dtype=torch.float64),
    )
    prediction = InstanceMasks(
        rles=[_rle(m) for m in masks],
        labels=torch.tensor(classes_of, dtype=torch.int64),
        size=size,
        scores=torch.tensor(scores, dtype=torch.float64 if rng.random() < 0.5 else torch.float32),
    )
    return InstanceImage(image_id, prediction, target)


@st.composite
def instance_cases(draw) -> tuple[int, list[InstanceImage]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(1, 4))
    chance = st.sampled_from([0.0, 0.1, 0.5])
    crowd, emptiness = draw(chance), draw(chance)
    many = draw(st.integers(0, 15)) == 0  # beyond the limit of 100 predictions
    ids = rng.choice(2000, size=draw(st.integers(1, 5)), replace=False)
    return classes, [random_instance_image(rng, int(i), classes, crowd, emptiness, many) for i in ids]


def coco_figures(images: list[InstanceImage], vocabulary: Vocabulary) -> tuple[dict[str, float], COCOeval]:
    """pycocotools' twelve figures (-1 where undefined) and the evaluator."""
    annotations, results = [], []
    for image in images:
        target, prediction = image.target, image.prediction
        for k, rle in enumerate(target.rles):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": vocabulary.classes[target.labels[k]].id,
                    "segmentation": rle,
                    "area": float(mask_tools.area(rle) if target.areas is None else target.areas[k]),
                    "iscrowd": int(target.is_crowd is not None and target.is_crowd[k]),
                    "bbox": mask_tools.toBbox(rle).tolist(),
                }
            )
        for k, rle in enumerate(prediction.rles):
            category = vocabulary.classes[prediction.labels[k]].id
            score = float(prediction.scores[k])
            results.append({"image_id": image.image_id, "category_id": category, "segmentation": rle, "score": score})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i.image_id, "height": i.target.size[0], "width": i.target.size[1]} for i in images],
        "categories": [{"id": c.id, "name": c.name} for c in vocabulary.classes],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        detections = truth.loadRes(results) if results else COCO()
        evaluator = COCOeval(truth, detections, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(FIGURES_AP, evaluator.stats.tolist(), strict=True)), evaluator

"""Speed and state of the metrics against torchmetrics and panopticapi's procedure.

    python benchmarks/metrics.py              # needs: pip install faster-coco-eval
    python benchmarks/metrics.py --images 2 --repeats 1 --dry-run

Every contender is given the same maps and masks and must reach the same figures, or the run stops.

PQ: 480 x 640 maps with 14 segments, no void and no crowd, the case in which torchmetrics' definition coincides with
panopticapi's. Ours starts from id maps, torchmetrics from maps of class and instance, panopticapi from the RGB maps
that it works on (``pq_vs_panopticapi_ids``: from id maps too). Nobody's time includes reading PNGs.

Mask AP: 100 predictions for 14 instances an image. torchmetrics takes dense masks and encodes them itself, so that
encoding is in our time too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _common import Report, ratio, side_by_side
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from dataseg.io.rle import encode_mask
from dataseg.metrics import MaskAveragePrecision, PanopticQuality
from dataseg.structures import ClassSpec, InstanceMasks, SegmentMap, Vocabulary

SIZE = (480, 640)
SEGMENTS = 14
PREDICTIONS = 100
OFFSET = 256**3


def make_vocabulary(things: int, stuff: int) -> Vocabulary:
    kinds = [True] * things + [False] * stuff
    return Vocabulary("bench", tuple(ClassSpec(i + 1, f"c{i}", k, (f"c{i}",), (0, 0, 0)) for i, k in enumerate(kinds)))


# ------------------------------------------------------------------------------------------------------- panoptic


def make_maps(rng: np.random.Generator, count: int, vocabulary: Vocabulary) -> list[tuple[SegmentMap, SegmentMap]]:
    """(prediction, target): nearest-seed tessellations of 14 segments; the prediction's seeds are a little moved."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    pairs = []
    for _ in range(count):
        seeds = rng.random((SEGMENTS, 2)) * SIZE
        labels = torch.from_numpy(rng.choice(len(vocabulary), SEGMENTS, replace=False))
        maps = []
        for moved in (seeds + rng.normal(0, 12, seeds.shape), seeds):
            distance = (y[None] - moved[:, :1, None]) ** 2 + (x[None] - moved[:, 1:, None]) ** 2
            maps.append(torch.from_numpy(distance.argmin(0)))
        # the types that post-processing and the readers of ground truth give
        pairs.append((SegmentMap(maps[0].int(), labels), SegmentMap(maps[1].short(), labels)))
    return pairs


def ours_pq(pairs: list[tuple[SegmentMap, SegmentMap]], vocabulary: Vocabulary) -> float:
    metric = PanopticQuality(vocabulary)
    for number, (prediction, target) in enumerate(pairs):
        metric.update(prediction, target, str(number))
    return float(metric.compute()["pq"])


def torchmetrics_pq(tensors: list[tuple[torch.Tensor, torch.Tensor]], vocabulary: Vocabulary) -> float:
    things = {i for i, c in enumerate(vocabulary.classes) if c.is_thing}
    metric = TorchmetricsPanopticQuality(things, set(range(len(vocabulary))) - things)
    for prediction, target in tensors:
        metric.update(prediction, target)
    return float(metric.compute())


def to_ids(map_HW3: np.ndarray) -> np.ndarray:
    wide = map_HW3.astype(np.uint32)
    return wide[..., 0] + 256 * wide[..., 1] + 256**2 * wide[..., 2]


def counted(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def panopticapi_pq(images: list[tuple[Any, ...]]) -> float:
    """The steps of panopticapi: two sorted counts, dictionaries of pairs, loops over segments.

    Args:
        images: (prediction, target, labels): RGB maps ``[H, W, 3]`` or id maps ``[H, W]`` with ids 1..K, and the
            labels of these.
    """
    iou_sum: dict[int, float] = {}
    counts: dict[int, list[int]] = {}
    for *maps, labels in images:
        predicted_ids, target_ids = (to_ids(m) if m.ndim == 3 else m for m in maps)
        area = counted(predicted_ids)
        pairs = counted(target_ids.astype(np.uint64) * OFFSET + predicted_ids)
        overlap = {divmod(pair, OFFSET): pixels for pair, pixels in pairs.items()}
        target_area: dict[int, int] = {}  # stands in the JSON file
        for (target, _), pixels in overlap.items():
            target_area[target] = target_area.get(target, 0) + pixels
        found: tuple[set[int], set[int]] = (set(), set())
        for (target, predicted), pixels in overlap.items():
            if labels[target - 1] != labels[predicted - 1]:
                continue
            union = area[predicted] + target_area[target] - pixels - overlap.get((0, predicted), 0)
            if pixels / union > 0.5:
                label = labels[target - 1]
                iou_sum[label] = iou_sum.get(label, 0.0) + pixels / union
                counts.setdefault(label, [0, 0, 0])[0] += 1
                found[0].add(predicted)
                found[1].add(target)
        for segments, matched, kind in ((area, found[0], 1), (target_area, found[1], 2)):
            for segment in segments:
                if segment not in matched:
                    counts.setdefault(labels[segment - 1], [0, 0, 0])[kind] += 1
    scores = [iou_sum.get(label, 0.0) / (tp + fp / 2 + fn / 2) for label, (tp, fp, fn) in counts.items()]
    return sum(scores) / len(scores)


def bench_pq(report: Report, images: int, repeats: int) -> None:
    vocabulary = make_vocabulary(80, 53)
    pairs = make_maps(np.random.default_rng(0), images, vocabulary)
    ids: list[tuple[Any, ...]] = [
        (*(s.ids.numpy().astype(np.uint32) + 1 for s in pair), pair[1].labels.tolist()) for pair in pairs
    ]
    rgb = [(*(np.stack([m % 256, m // 256, m * 0], -1).astype(np.uint8) for m in maps), k) for *maps, k in ids]
    tensors = [tuple(torch.stack([s.class_map(), s.ids.long()], -1)[None] for s in pair) for pair in pairs]
    contenders: dict[str, Callable[[], float]] = {
        "ours": lambda: ours_pq(pairs, vocabulary),
        "panopticapi": lambda: panopticapi_pq(rgb),
        "panopticapi_ids": lambda: panopticapi_pq(ids),
        "torchmetrics": lambda: torchmetrics_pq(tensors, vocabulary),  # type: ignore[arg-type]
    }
    expected = contenders["ours"]()
    for name, run in contenders.items():
        if abs(run() - expected) > 1e-5:  # torchmetrics sums in float32
            raise SystemExit(f"PQ of {name} is {run()}, ours {expected}: not the same task")
    seconds = side_by_side(contenders, repeats)
    report.add_medians(f"PQ, seconds for {images} images", seconds)
    for other in ("torchmetrics", "panopticapi", "panopticapi_ids"):
        report.add(f"pq_vs_{other}", ratio(seconds[other], seconds["ours"]), f"{other}'s time / ours, PQ")


# ------------------------------------------------------------------------------------------------------ instances


def make_masks(rng: np.random.Generator, count: int, classes: int) -> list[dict[str, Any]]:
    """Ellipses: 14 instances, and 100 predictions that are moved copies of them or stray."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)

    def ellipses(shapes: np.ndarray) -> torch.Tensor:
        cy, cx, ry, rx = shapes.T[:, :, None, None]
        return torch.from_numpy((((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2) < 1)

    low, high = np.array([0, 0, 8, 8]), np.array([*SIZE, 110, 110])
    images = []
    for _ in range(count):
        truth = low + rng.random((SEGMENTS, 4)) * (high - low)
        truth_labels = rng.integers(classes, size=SEGMENTS)
        source = rng.integers(SEGMENTS, size=PREDICTIONS)
        guess, labels = truth[source] * rng.normal(1, 0.06, (PREDICTIONS, 4)), truth_labels[source]
        stray = rng.random(PREDICTIONS) < 0.4
        guess[stray] = (low + rng.random((PREDICTIONS, 4)) * (high - low))[stray]
        labels = np.where(rng.random(PREDICTIONS) < 0.2, rng.integers(classes, size=PREDICTIONS), labels)
        masks = ellipses(guess)
        masks[:, 0, 0] |= ~masks.flatten(1).any(1)  # none is empty
        images.append(
            {
                "masks": masks,
                "labels": torch.from_numpy(labels),
                "scores": torch.from_numpy(rng.random(PREDICTIONS)).float(),
                "truth": ellipses(truth),
                "truth_labels": torch.from_numpy(truth_labels),
            }
        )
    return images


def ours_ap(images: list[dict[str, Any]], vocabulary: Vocabulary) -> MaskAveragePrecision:
    metric = MaskAveragePrecision(vocabulary)
    for number, image in enumerate(images):
        prediction = InstanceMasks(
            [encode_mask(mask) for mask in image["masks"].numpy()], image["labels"], SIZE, scores=image["scores"]
        )
        target = InstanceMasks([encode_mask(mask) for mask in image["truth"].numpy()], image["truth_labels"], SIZE)
        metric.update(prediction, target, str(number))
    metric.compute()
    return metric


def torchmetrics_ap(images: list[dict[str, Any]], backend: str) -> MeanAveragePrecision:
    metric = MeanAveragePrecision(  # its own default levels are rounded to float32, which moves the figures a little
        iou_type="segm",
        backend=backend,  # type: ignore[arg-type]
        iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
        rec_thresholds=np.linspace(0, 1, 101).tolist(),
    )
    for image in images:
        metric.update(
            [{name: image[name] for name in ("masks", "labels", "scores")}],
            [{"masks": image["truth"], "labels": image["truth_labels"]}],
        )
    metric.compute()
    return metric


def payload(value: Any) -> int:
    """Bytes of the numbers and run lengths that a state holds; Python's own overhead is left out."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list | tuple):
        return sum(payload(v) for v in value)
    return 8


def state_bytes(metric: Any) -> int:
    return sum(payload(getattr(metric, name)) for name in metric.metric_state)


def bench_ap(report: Report, images: int, repeats: int) -> None:
    vocabulary = make_vocabulary(80, 0)
    data = make_masks(np.random.default_rng(0), images, len(vocabulary))
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours_ap(data, vocabulary),
        "torchmetrics, faster_coco_eval": lambda: torchmetrics_ap(data, "faster_coco_eval"),
        "torchmetrics, pycocotools": lambda: torchmetrics_ap(data, "pycocotools"),
    }
    metrics = {name: run() for name, run in contenders.items()}
    ours = metrics["ours"].compute()
    names = {"map": "mask_ap", "map_50": "mask_ap50", "map_75": "mask_ap75", "mar_1": "mask_ar1", "mar_100": "mask_ar"}
    names |= {"map_small": "mask_aps", "map_medium": "mask_apm", "map_large": "mask_apl"}
    for other in list(metrics)[1:]:
        theirs = metrics[other].compute()
        for key, name in names.items():
            if abs(float(theirs[key]) - float(ours[name])) > 1e-5:  # torchmetrics rounds to float32
                raise SystemExit(
                    f"{key} of {other} is {float(theirs[key])}, ours {float(ours[name])}: not the same task"
                )
    seconds = side_by_side(contenders, repeats)
    report.add_medians(f"mask AP, seconds for {images} images, encoding of dense masks included", seconds)
    fastest = min(list(contenders)[1:], key=lambda name: sorted(seconds[name])[repeats // 2])
    report.add("ap_vs_torchmetrics", ratio(seconds[fastest], seconds["ours"]), f"time of {fastest} / ours, mask AP")
    sizes = {name: [float(state_bytes(metrics[name]))] for name in ("ours", fastest)}
    report.add_medians("mask AP, bytes of state", sizes)
    value = sizes["ours"][0] / sizes[fastest][0]
    report.add("ap_state_vs_torchmetrics", value, "our state's bytes / torchmetrics', numbers and run lengths only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=40, help="images of the mask AP comparison; PQ takes half as many"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"size": SIZE, "segments": SEGMENTS, "predictions": PREDICTIONS, **vars(options)}
    packages = ("torchmetrics", "faster-coco-eval", "pycocotools", "numpy")
    report = Report("metrics", settings, packages)
    bench_pq(report, max(1, options.images // 2), options.repeats)
    bench_ap(report, options.images, options.repeats)
    report.finish(write=not options.dry_run)


if __name__ == "__main__":
    main()

"""The metrics on real samples, through the readers of official files, against the references."""

import contextlib
import io
import json
import math

import metric_cases as cases
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dataseg.metrics import MaskAveragePrecision, MeanIoU, PanopticQuality
from dataseg.prediction_files import InstanceTruth, LabelFiles, PanopticFiles, vocabulary_of
from dataseg.structures import ClassSpec, InstanceMasks, SegmentMap, Vocabulary

PANOPTIC = {
    "coco": "coco/annotations/panoptic_val2017.json",
    "ade": "ade/ADEChallengeData2016/ade20k_panoptic_train.json",
    "ade_val": "ade/ADEChallengeData2016/ade20k_panoptic_val.json",
    "cityscapes": "cityscapes/gtFine/cityscapes_panoptic_val.json",
}


def panoptic_truth(real_data, name):
    path = real_data / PANOPTIC[name]
    return path, PanopticFiles(path, vocabulary_of(path), is_truth=True)


def decoded(path):
    rgb = np.asarray(Image.open(path)).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def spoilt(ids, segments, rng, vocabulary):
    """A prediction: the ground truth moved by a few pixels, some segments lost, some of another class."""
    moved = np.roll(ids, rng.integers(-6, 7, 2), axis=(0, 1))
    kept = [s for s in segments if rng.random() < 0.85 and (moved == s["id"]).any()]
    moved[~np.isin(moved, [s["id"] for s in kept])] = 0
    wrong = rng.choice([c.id for c in vocabulary.classes], len(kept))
    return moved, [
        {"id": s["id"], "category_id": int(w) if rng.random() < 0.15 else s["category_id"]}
        for s, w in zip(kept, wrong, strict=True)
    ]


@pytest.mark.parametrize("name", PANOPTIC)
@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality(real_data, name, seed):
    path, files = panoptic_truth(real_data, name)
    rng = np.random.default_rng(seed)
    metric, reference = PanopticQuality(files.vocabulary), cases.PanopticReference(files.vocabulary)
    for annotation in json.loads(path.read_text())["annotations"]:
        ids, segments = decoded(files.png_folder / annotation["file_name"]), annotation["segments_info"]
        image = cases.PanopticImage(ids, segments, *spoilt(ids, segments, rng, files.vocabulary))
        reference.add(image)
        image_id = str(annotation["image_id"])
        prediction = cases.to_segment_map(image.prediction_ids, image.prediction_segments, files.vocabulary)
        metric.update(prediction, files.load(image_id), image_id)
    for name, expected in reference.figures().items():
        found = float(metric.compute()[name])
        assert math.isnan(found) if math.isnan(expected) else abs(found - expected) <= 1e-9, name


@pytest.mark.parametrize("name", PANOPTIC)
def test_ground_truth_scores_100_against_itself(real_data, name):
    _, files = panoptic_truth(real_data, name)
    metric = PanopticQuality(files.vocabulary, areas="both")
    for image_id in files.image_ids:
        target = files.load(image_id)
        metric.update(SegmentMap(target.ids, target.labels), target, image_id)
    figures = metric.compute()
    assert float(figures["pq_stored"]) == float(figures["pq_recounted"]) == 1.0


def test_mask_ap_on_coco(real_data):
    path = real_data / "coco/annotations/instances_val2017.json"
    truth = InstanceTruth(path, vocabulary_of(path))
    (image_id,) = truth.image_ids
    target = truth.load(image_id)
    rng = np.random.default_rng(0)
    masks, labels = [], []
    for copy in range(4):
        for rle, label in zip(target.rles, target.labels.tolist(), strict=True):
            mask = np.roll(mask_tools.decode(rle), rng.integers(-3 - 6 * copy, 4 + 6 * copy, 2), axis=(0, 1))
            masks.append(mask_tools.encode(np.asfortranarray(mask)))
            labels.append(label if rng.random() < 0.8 else int(rng.integers(len(truth.vocabulary))))
    prediction = InstanceMasks(masks, torch.tensor(labels), target.size, scores=torch.rand(len(masks)).double())
    metric = MaskAveragePrecision(truth.vocabulary)
    metric.update(prediction, target, image_id)
    results = [
        {"image_id": int(image_id), "category_id": truth.vocabulary.classes[k].id, "segmentation": m, "score": float(s)}
        for m, k, s in zip(masks, labels, prediction.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        official = COCO(str(path))
        evaluator = COCOeval(official, official.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert 0.1 < evaluator.stats[0] < 1
    for name, expected in zip(cases.FIGURES_AP, evaluator.stats, strict=True):
        found = float(metric.compute()[name])
        assert math.isnan(found) if expected == -1 else abs(found - expected) <= 1e-9, name


def test_mask_ap_ignores_boxes_without_a_mask(real_data):
    path = real_data / "objects365/annotations/HANDMADE_o365_instance_seg_fixture.json"
    truth = InstanceTruth(path, vocabulary_of(path))
    (image_id,) = truth.image_ids
    target = truth.load(image_id)
    metric = MaskAveragePrecision(truth.vocabulary)
    known = [k for k, rle in enumerate(target.rles) if rle is not None]
    unknown = [k for k, rle in enumerate(target.rles) if rle is None]
    masks, labels = [target.rles[k] for k in known], target.labels[known].tolist()
    for k in unknown:  # a prediction in each such box, better scored than everything else
        box = np.zeros(target.size, dtype=np.uint8)
        x0, y0, x1, y1 = (int(v) for v in target.boxes[k])
        box[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 1
        masks.append(mask_tools.encode(np.asfortranarray(box)))
        labels.append(int(target.labels[k]))
    scores = torch.tensor([0.5] * len(known) + [0.9] * len(unknown))
    metric.update(InstanceMasks(masks, torch.tensor(labels), target.size, scores=scores), target, image_id)
    assert float(metric.compute()["mask_ap"]) == pytest.approx(1.0, abs=1e-9)


def test_mean_iou_on_ade(real_data):
    folder = real_data / "ade/ADEChallengeData2016/annotations"
    specs = (ClassSpec(i + 1, f"class{i}", True, ("class",), (0, 0, 0)) for i in range(150))
    metric = MeanIoU(Vocabulary("ade", tuple(specs)), dataset="ade")
    truth = LabelFiles(folder, metric.vocabulary, ignore=[0])
    hits = labelled = 0
    per_class = np.zeros((3, 150))
    for image_id in truth.image_ids:
        values = np.asarray(Image.open(truth.files[image_id])).astype(int)
        guess = np.roll(values, 5, axis=1)
        for c in range(150):
            of_class, predicted = values == c + 1, (guess == c + 1) & (values > 0)
            per_class[:, c] += (of_class & predicted).sum(), (of_class | predicted).sum(), of_class.sum()
        hits, labelled = hits + ((values == guess) & (values > 0)).sum(), labelled + (values > 0).sum()
        table = np.full(151, -1)
        present = [v for v in np.unique(guess) if v > 0]
        table[present] = np.arange(len(present))
        prediction = SegmentMap(torch.from_numpy(table[guess]), torch.tensor([v - 1 for v in present]))
        metric.update(prediction, truth.load(image_id), image_id)
    present = per_class[2] > 0
    figures = metric.compute()
    assert abs(float(figures["miou"]) - (per_class[0] / np.maximum(per_class[1], 1))[present].mean()) <= 1e-9
    assert abs(float(figures["pixel_accuracy"]) - hits / labelled) <= 1e-9

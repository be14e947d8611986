import math

import metric_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from pycocotools import mask as mask_tools

from dataseg.metrics import MaskAveragePrecision
from dataseg.metrics.coco_matching import IOU_THRESHOLDS, RECALL_LEVELS, match_instances, precision_at_recalls
from dataseg.structures import InstanceMasks


def assert_equal(figures, reference, tolerance=1e-9):
    assert set(figures) == set(reference)
    for name, expected in reference.items():
        assert figures[name].dtype == torch.float64
        assert figures[name].shape == ()
        if expected == -1:
            assert math.isnan(figures[name]), name
        else:
            assert abs(float(figures[name]) - expected) <= tolerance, name


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cases.instance_cases())
def test_equals_pycocotools(case):
    classes, images = case
    vocabulary = cases.make_vocabulary(classes)
    metric = MaskAveragePrecision(vocabulary, dataset="toy")
    for image in images:  # in random order of ids
        metric.update(image.prediction, image.target, str(image.image_id))
    reference, evaluator = cases.coco_figures(images, vocabulary)
    if all(value == -1 for value in reference.values()):
        with pytest.raises(ValueError, match=r"toy: .*holds no mask that counts"):
            metric.compute()
        return
    assert_equal(metric.compute(), reference)
    precision_TRK = evaluator.eval["precision"][:, :, :, 0, -1]
    for label, found in enumerate(metric.per_class()["mask_ap"].tolist()):
        expected = precision_TRK[:, :, label]
        assert math.isnan(found) if (expected == -1).all() else abs(found - expected.mean()) <= 1e-9


def rle(mask):
    return mask_tools.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))


def square(start, size=20, width=4):
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[start : start + width, start : start + width] = 1
    return rle(mask)


def masks(rles, labels, **others):
    others = {k: torch.tensor(v) for k, v in others.items()}
    return InstanceMasks(rles, torch.tensor(labels, dtype=torch.int64), (20, 20), **others)


def test_ground_truth_without_a_mask_is_ignored_not_penalised():
    vocabulary = cases.make_vocabulary(2)
    metric = MaskAveragePrecision(vocabulary)
    boxes = [[0.0, 0, 4, 4], [8, 8, 16, 16], [0, 0, 0, 0]]
    target = masks([square(0), None, None], [0, 0, 1], boxes=boxes, areas=[16.0, 64.0, 0.0])
    # the better-scored prediction lies on the box: it neither counts nor harms
    metric.update(masks([square(9), square(0)], [0, 0], scores=[0.9, 0.8]), target, "1")
    figures = metric.compute()
    assert float(figures["mask_ap"]) == pytest.approx(1.0, abs=1e-9)
    assert float(figures["mask_ar"]) == 1.0
    assert metric.per_class()["instances"].tolist() == [1, 0]
    strict = MaskAveragePrecision(vocabulary)  # without the box, the same prediction is a false alarm
    strict.update(
        masks([square(9), square(0)], [0, 0], scores=[0.9, 0.8]),
        masks([square(0), None], [0, 0], areas=[16.0, 64.0]),
        "1",
    )
    assert float(strict.compute()["mask_ap"]) == pytest.approx(0.5, abs=1e-9)


def test_areas_are_counted_where_none_are_stated():
    metric = MaskAveragePrecision(cases.make_vocabulary(1))
    metric.update(masks([square(0)], [0], scores=[0.5]), masks([square(0)], [0]), "1")
    figures = metric.compute()
    assert float(figures["mask_aps"]) == pytest.approx(1.0)
    assert math.isnan(figures["mask_apl"])


@pytest.mark.parametrize(("ids", "expected"), [(("9", "10"), 1.0), (("a9", "a10"), 0.5)])
def test_equal_scores_follow_the_order_of_the_ids(ids, expected):
    # Right on the first image and wrong on the second with one score: the image that sorts first decides.
    metric = MaskAveragePrecision(cases.make_vocabulary(1))
    right = masks([square(0)], [0], scores=[0.5]), masks([square(0)], [0])
    wrong = masks([square(9)], [0], scores=[0.5]), masks([], [])
    for image_id, records in zip(reversed(ids), (wrong, right), strict=True):
        metric.update(*records, image_id)
    assert float(metric.compute()["mask_ap"]) == pytest.approx(expected)


def test_shapes_of_matching():
    iou = np.array([[0.9, 0.6], [0.9, 0.0], [0.0, 0.0]])
    ignored = np.zeros((4, 2), dtype=bool)
    hit, excused = match_instances(iou, np.zeros(2, dtype=bool), ignored)
    assert hit.shape == excused.shape == (4, len(IOU_THRESHOLDS), 3)
    assert hit[0, 0].tolist() == [True, False, False]  # the first prediction took the better of its two
    precision = precision_at_recalls(hit[0], excused[0], 2)
    assert precision.shape == (len(IOU_THRESHOLDS), len(RECALL_LEVELS))
    assert precision_at_recalls(np.zeros((10, 0), bool), np.zeros((10, 0), bool), 1).sum() == 0


def test_state_holds_no_masks():
    metric = MaskAveragePrecision(cases.make_vocabulary(1))
    blob = rle(np.random.default_rng(0).random((20, 20)) < 0.5)
    metric.update(masks([blob] * 50, [0] * 50, scores=[0.5] * 50), masks([blob], [0]), "12")
    assert sum(r.numel() for r in metric.records) < 20 * 50


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (masks([square(0)], [0], scores=[math.nan]), r"o365, image 7: the scores of predictions \[0\] are not finite"),
        (masks([square(0)], [0]), "o365, image 7: the predictions have no scores"),
        (masks([square(0)], [5], scores=[0.1]), r"o365, image 7: the prediction has the labels \[5\]"),
        (masks([None], [0], scores=[0.1]), r"o365, image 7: predictions \[0\] have no mask"),
        (InstanceMasks([], torch.zeros(0), (20, 21)), r"o365, image 7: the prediction is 20 x 21 .*20 x 20"),
        ("nothing", "o365, image 7: .*the prediction is str"),
    ],
)
def test_errors_name_image_and_data_set(prediction, message):
    metric = MaskAveragePrecision(cases.make_vocabulary(2), dataset="o365")
    with pytest.raises(ValueError, match=message):
        metric.update(prediction, masks([square(0)], [0]), "7")
    metric.update(masks([square(0)], [0], scores=[0.5]), masks([square(0)], [0]), "7")
    assert float(metric.compute()["mask_ap"]) == pytest.approx(1.0)


def test_no_ground_truth_at_all_is_refused_and_an_image_counts_once():
    metric = MaskAveragePrecision(cases.make_vocabulary(2), dataset="o365")
    metric.update(masks([square(0)], [0], scores=[0.5]), masks([], []), "7")
    with pytest.raises(ValueError, match=r"o365: the ground truth of 1 image"):
        metric.compute()
    with pytest.raises(ValueError, match=r"o365, image 7: .*twice"):
        metric.update(masks([square(0)], [0], scores=[0.5]), masks([square(0)], [0]), "7")
    metric.reset()
    metric.update(masks([square(0)], [0], scores=[0.5]), masks([square(0)], [0]), "7")
    assert float(metric.compute()["mask_ar1"]) == 1.0
    assert "pycocotools" in metric.convention["metric"]

import collections
import math
import pickle

import metric_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from dataseg.metrics import PanopticQuality
from dataseg.metrics.base import DENSE_BINS, Overlaps
from dataseg.structures import InstanceMasks, SegmentMap


def assert_equal(figures, reference, tolerance=1e-9):
    for name, expected in reference.items():
        assert figures[name].dtype == torch.float64
        assert figures[name].shape == ()
        if math.isnan(expected):
            assert math.isnan(figures[name]), name
        else:
            assert abs(float(figures[name]) - expected) <= tolerance, name


def check_case(classes, images):
    vocabulary = cases.make_vocabulary(classes)
    metric, reference = PanopticQuality(vocabulary, dataset="toy"), cases.PanopticReference(vocabulary)
    for number, image in enumerate(images):
        metric.update(*image.records(vocabulary), image_id=str(number))
        reference.add(image)
    if not any(t.occurs for t in reference.tallies.values()):
        with pytest.raises(ValueError, match=r"toy: \d image\(s\) hold no ground-truth segment"):
            metric.compute()
        return
    assert_equal(metric.compute(), reference.figures())
    per_class = metric.per_class()
    for label, tally in enumerate(reference.tallies.values()):
        assert [int(per_class[n][label]) for n in ("tp", "fp", "fn")] == [tally.tp, tally.fp, tally.fn]
        for name in ("pq", "sq", "rq"):
            assert per_class[name].shape == (classes,)
            found = float(per_class[name][label])
            assert abs(found - getattr(tally, name)) <= 1e-9 if tally.occurs else math.isnan(found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cases.panoptic_cases())
def test_equals_the_reference(case):
    check_case(*case)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(cases.panoptic_cases(stale=0.5))
def test_stated_areas_are_scored_as_stated(case):
    check_case(*case)


def test_a_perfect_prediction_of_stale_areas_scores_what_panopticapi_gives():
    # Things cover 60 % of a stuff segment, whose stored area is from before.
    # Then 40 / 100 <= 0.5 is a miss and one false alarm.
    vocabulary = cases.make_vocabulary(2)
    ids = torch.zeros(10, 10, dtype=torch.int32)
    ids[:6] = 1
    target = SegmentMap(ids, labels=torch.tensor([1, 0]), areas=torch.tensor([100, 60]))
    metric = PanopticQuality(vocabulary, areas="both")
    metric.update(SegmentMap(ids, labels=torch.tensor([1, 0])), target, "1")
    figures = metric.compute()
    assert float(figures["pq_stored"]) == 0.5
    assert float(figures["pq_stuff_stored"]) == 0.0
    assert float(figures["pq_recounted"]) == 1.0
    assert set(figures) == {
        f"{n}{g}_{m}" for n in ("pq", "sq", "rq") for g in ("", "_things", "_stuff") for m in ("stored", "recounted")
    }
    recounted = PanopticQuality(vocabulary, areas="recounted")
    recounted.update(SegmentMap(ids, labels=torch.tensor([1, 0])), target, "1")
    assert float(recounted.compute()["pq_recounted"]) == 1.0
    assert recounted.convention["areas"] == "recounted"


def test_only_the_last_crowd_of_a_class_forgives():
    vocabulary = cases.make_vocabulary(1)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]])
    prediction = SegmentMap(torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([0, 0]))
    target = SegmentMap(ids, torch.tensor([0, 0]), is_crowd=torch.tensor([True, True]))
    metric = PanopticQuality(vocabulary)
    metric.update(prediction, target, "1")
    metric.compute()
    assert metric.per_class()["fp"].tolist() == [1.0]  # the one on the first crowd


def test_predicted_segments_without_a_pixel_do_not_count():
    vocabulary = cases.make_vocabulary(2)
    ids = torch.zeros(2, 2, dtype=torch.int16)
    metric = PanopticQuality(vocabulary)
    metric.update(SegmentMap(ids, torch.tensor([0, 1])), SegmentMap(ids, torch.tensor([0])), "1")
    assert float(metric.compute()["pq"]) == 1.0


@pytest.mark.parametrize("smooth", [1, 25])  # values counted one by one, in runs
@pytest.mark.parametrize("segments", [3, 300, 3000])  # 16 bits, 32 bits, sorting
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_overlaps(segments, dtype, smooth):
    assert (300 + 1) ** 2 <= DENSE_BINS < 3001**2
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(-1, segments, (40, 50 // smooth), generator=generator).to(dtype) for _ in range(2)]
    a, b = (m.repeat_interleave(smooth, 1) for m in maps)
    labels = torch.zeros(segments, dtype=torch.int64)
    found = Overlaps.of(SegmentMap(a, labels), SegmentMap(b, labels))
    assert found.target.shape == found.prediction.shape == found.pixels.shape
    assert found.target.dtype == found.prediction.dtype == found.pixels.dtype == np.int64
    expected = collections.Counter(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    pairs = zip(found.target.tolist(), found.prediction.tolist(), strict=True)
    assert dict(zip(pairs, found.pixels.tolist(), strict=True)) == expected


def test_as_many_segments_as_pixels():
    count = 2**17
    ids = torch.arange(count).view(256, -1)
    metric = PanopticQuality(cases.make_vocabulary(1))
    metric.update(SegmentMap(ids, ids.flatten() * 0), SegmentMap(ids.flip(0), ids.flatten() * 0), "1")
    assert metric.compute()["pq"] == 1.0
    assert metric.per_class()["tp"].tolist() == [count]


def good(size=(4, 5), labels=(0, 1)):
    return SegmentMap(torch.zeros(size, dtype=torch.int32), torch.tensor(labels))


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (good((5, 4)), good(), r"ade, image 7: the prediction is 5 x 4 .*ground truth 4 x 5"),
        (good(labels=(0, 9)), good(), r"ade, image 7: the prediction has the labels \[9\]"),
        (good(), good(labels=(-1, 0)), r"ade, image 7: the ground truth has the labels \[-1\]"),
        (
            SegmentMap(torch.full((4, 5), 2), torch.tensor([0, 1])),
            good(),
            r"ade, image 7: .*segment id 2; its 2 labels",
        ),
        (good(), SegmentMap(torch.full((4, 5), -2), torch.tensor([0])), r"ade, image 7: .*segment id -2"),
        (
            SegmentMap(torch.zeros(4, 5, dtype=torch.int32), torch.tensor([0]), scores=torch.tensor([math.nan])),
            good(),
            r"ade, image 7: the scores of predictions \[0\] are not finite",
        ),
        (InstanceMasks([], torch.zeros(0), (4, 5)), good(), "ade, image 7: .*SegmentMap, got InstanceMasks"),
    ],
)
def test_errors_name_image_and_data_set(prediction, target, message):
    metric = PanopticQuality(cases.make_vocabulary(3), dataset="ade")
    with pytest.raises(ValueError, match=message):
        metric.update(prediction, target, "7")
    assert float(metric.totals.sum()) == 0.0  # nothing of the refused image stays
    metric.update(good(), good(), "7")
    assert 0 < float(metric.compute()["pq"]) <= 1


def test_an_area_smaller_than_the_segment_is_refused():
    ids = torch.zeros(2, 2, dtype=torch.int32)
    metric = PanopticQuality(cases.make_vocabulary(1), dataset="ade")
    with pytest.raises(ValueError, match=r"ade, image 3: .*area smaller than its pixels"):
        metric.update(
            SegmentMap(ids, torch.tensor([0])), SegmentMap(ids, torch.tensor([0]), areas=torch.tensor([0])), "3"
        )


def test_an_image_counts_once_and_reset_forgets():
    metric = PanopticQuality(cases.make_vocabulary(3), dataset="ade")
    with pytest.raises(ValueError, match=r"ade: .*before any image"):
        metric.compute()
    metric.update(good(), good(), "7")
    with pytest.raises(ValueError, match=r"ade, image 7: .*twice"):
        metric.update(good(), good(), "7")
    metric.reset()
    metric.update(good(), good(), "7")
    assert float(metric.compute()["rq"]) < 1.0  # label 1 has no pixel in the ground truth: missed
    assert np.isnan(float(metric.per_class()["pq"][2]))


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'exact'"):
        PanopticQuality(cases.make_vocabulary(1), areas="exact")


def test_only_void_is_refused():
    metric = PanopticQuality(cases.make_vocabulary(2), dataset="ade")
    void = SegmentMap(torch.full((3, 3), -1), torch.zeros(0, dtype=torch.int64))
    metric.update(good((3, 3)), void, "1")
    with pytest.raises(ValueError, match=r"ade: 1 image.*everything is void"):
        metric.compute()


@pytest.mark.parametrize("move", [lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.clone(), lambda m: m.to("cpu")])
def test_copies_keep_what_was_seen(move):
    metric = PanopticQuality(cases.make_vocabulary(3), dataset="ade")
    metric.update(good(), good(), "7")
    copy = move(metric)
    with pytest.raises(ValueError, match="twice"):
        copy.update(good(), good(), "7")
    copy.update(good(), good(), "8")
    assert copy.compute().keys() == metric.compute().keys()
    assert len(copy.convention["vocabulary"]) == 12

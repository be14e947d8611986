import math

import metric_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.metrics import MeanIoU
from dataseg.structures import SegmentMap

CONVENTIONS = ("detectron2", "mmsegmentation", "all_classes")


def reference(images, classes, convention):
    """One class and one boolean mask at a time."""
    truth = np.concatenate([t.ravel() for _, t in images])
    guess = np.concatenate([p.ravel() for p, _ in images])
    labelled = truth >= 0
    ious, accuracies, weighted = [], [], 0.0
    for c in range(classes):
        of_class, predicted = truth == c, (guess == c) & labelled
        both, either = (of_class & predicted).sum(), (of_class | predicted).sum()
        in_truth, in_union = bool(of_class.any()), bool(either)
        counts = {"detectron2": in_truth, "mmsegmentation": in_union, "all_classes": True}[convention]
        if counts:
            ious.append(both / either if in_union else 0.0)
        if in_truth or convention == "all_classes":
            accuracies.append(both / of_class.sum() if in_truth else 0.0)
        if in_truth:
            weighted += of_class.sum() / labelled.sum() * both / either
    return {
        "miou": np.mean(ious),
        "mean_accuracy": np.mean(accuracies),
        "pixel_accuracy": (truth == guess)[labelled].mean(),
        "fwiou": weighted,
        "coverage": labelled.mean(),
    }


def semantic(classes_HW):
    labels = np.unique(classes_HW[classes_HW >= 0])
    table = np.full(classes_HW.max() + 2, -1)
    table[labels] = np.arange(len(labels))
    return SegmentMap(torch.from_numpy(table[classes_HW]), torch.from_numpy(labels.astype(np.int64)))


@st.composite
def semantic_cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, present = draw(st.integers(2, 6)), draw(st.integers(1, 6))
    low = [draw(st.sampled_from([0, -1])) for _ in range(2)]
    images = []
    for _ in range(draw(st.integers(1, 4))):
        size = tuple(rng.integers(1, 12, 2))
        truth = rng.integers(low[0], min(present, classes), size)
        guess = np.where(rng.random(size) < 0.5, truth, rng.integers(low[1], classes, size))
        images.append((guess, truth))
    return classes, images


@settings(max_examples=300, deadline=None, derandomize=True)
@given(semantic_cases(), st.sampled_from(CONVENTIONS))
def test_equals_the_reference(case, convention):
    classes, images = case
    metric = MeanIoU(cases.make_vocabulary(classes), dataset="toy", convention=convention)
    for number, (guess, truth) in enumerate(images):
        metric.update(semantic(guess), semantic(truth), str(number))
    present = {c for _, t in images for c in np.unique(t) if c >= 0}
    if len(present) < 2:
        with pytest.raises(ValueError, match=r"toy: .*(is ignored|only the class)"):
            metric.compute()
        return
    figures = metric.compute()
    expected = reference(images, classes, convention)
    assert set(figures) == set(expected)
    for name, value in expected.items():
        assert figures[name].shape == ()
        assert abs(float(figures[name]) - value) <= 1e-9, name


def test_conventions_differ_by_the_classes_they_average():
    truth = np.array([[0, 0, 1, 1, -1]])
    guess = np.array([[0, 2, 1, 1, 3]])
    values = {}
    for convention in CONVENTIONS:
        metric = MeanIoU(cases.make_vocabulary(5), convention=convention)
        metric.update(semantic(guess), semantic(truth), "1")
        values[convention] = float(metric.compute()["miou"])
        assert convention in metric.convention["metric"]
        confusion = metric.confusion_matrix()
        assert confusion.shape == (5, 6)
        assert confusion.dtype == torch.int64
        assert confusion.tolist()[0] == [1, 0, 1, 0, 0, 0]
        per_class = metric.per_class()
        assert per_class["iou"].shape == per_class["pixels"].shape == (5,)
        assert math.isnan(per_class["accuracy"][4]) == (convention != "all_classes")
    assert values == pytest.approx({"detectron2": 1.5 / 2, "mmsegmentation": 1.5 / 3, "all_classes": 1.5 / 5})


def test_crowds_are_void_and_segments_of_a_class_count_together():
    target = SegmentMap(torch.tensor([[0, 1, 2, 3]]), torch.tensor([0, 0, 1, 1]), is_crowd=torch.tensor([0, 0, 0, 1]))
    prediction = SegmentMap(torch.tensor([[0, 0, 1, 0]]), torch.tensor([0, 1]))
    metric = MeanIoU(cases.make_vocabulary(2))
    metric.update(prediction, target, "1")
    figures = metric.compute()
    assert float(figures["miou"]) == 1.0
    assert float(figures["coverage"]) == 0.75


def test_nonsense_is_refused():
    one = semantic(np.array([[0, 0], [-1, -1]]))
    metric = MeanIoU(cases.make_vocabulary(2), dataset="ade")
    with pytest.raises(ValueError, match=r"ade: .*before any image"):
        metric.compute()
    metric.update(one, one, "1")
    with pytest.raises(ValueError, match=r"ade: .*only the class 'class0'"):
        metric.compute()
    allowed = MeanIoU(cases.make_vocabulary(2), dataset="ade", allow_one_class=True)
    allowed.update(one, one, "1")
    assert float(allowed.compute()["miou"]) == 1.0
    void = MeanIoU(cases.make_vocabulary(2), dataset="ade")
    void.update(one, semantic(np.full((2, 2), -1)), "1")
    with pytest.raises(ValueError, match=r"ade: every pixel of the 1 image\(s\) is ignored"):
        void.compute()
    with pytest.raises(ValueError, match="ade, image 2: the prediction is 2 x 2"):
        metric.update(one, semantic(np.array([[0, 1]])), "2")
    with pytest.raises(ValueError, match="convention must be one of"):
        MeanIoU(cases.make_vocabulary(2), convention="voc")

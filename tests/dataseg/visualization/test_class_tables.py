import math

import numpy as np
import torch

from dataseg.visualization.class_tables import (
    confusion_markdown,
    confusion_picture,
    is_count,
    per_class_markdown,
    per_class_picture,
    scores_of_class,
)

NAMES = ["cat", "dog|wolf", "cat"]
COLUMNS = {"iou": torch.tensor([0.5, math.nan, 1.0]), "pixels": torch.tensor([1200, 0, 7])}
CONFUSION = torch.tensor([[6, 2, 0, 2], [0, 0, 0, 0], [0, 7, 0, 0]])


def test_counts_are_no_fractions():
    assert [is_count(c) for c in ("pixels", "tp_stored", "instances", "iou", "pq_stored")] == [True] * 3 + [False] * 2


def test_per_class_markdown():
    lines = per_class_markdown(COLUMNS, NAMES).splitlines()
    assert lines == [
        "| class | iou | pixels |",
        "|---|---:|---:|",
        "| cat | 50.00 | 1,200 |",
        "| dog\\|wolf | - | 0 |",
        "| cat | 100.00 | 7 |",
    ]


def test_scores_of_class_keep_names_that_occur_twice():
    assert scores_of_class(COLUMNS, NAMES) == {
        "cat": {"iou": 50.0, "pixels": 1200.0},
        "dog|wolf": {"iou": None, "pixels": 0.0},
        "cat (2)": {"iou": 100.0, "pixels": 7.0},
    }


def test_confusion_markdown_lists_the_largest_shares():
    lines = confusion_markdown(CONFUSION, NAMES, top=2).splitlines()[2:]
    assert lines == ["| cat | dog\\|wolf | 100.00 | 7 |", "| cat | dog\\|wolf | 20.00 | 2 |"]


def test_pictures():
    picture = per_class_picture(COLUMNS, NAMES, sort_by="iou")
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[0] == 16 * 4
    assert picture.shape[2] == 3
    bars = (picture == (169, 200, 234)).all(-1).sum(1)
    assert bars[20] > bars[36] > bars[52] == 0  # 100, 50, undefined
    many = per_class_picture({"iou": torch.linspace(0, 1, 365)}, [str(c) for c in range(365)], sort_by="iou")
    assert many.shape[0] == 16 * 61  # the best and the worst
    heat = confusion_picture(CONFUSION, NAMES, cell=20)
    assert heat.dtype == np.uint8
    body = heat[-60:, -80:]
    assert heat.shape[0] - 60 == heat.shape[1] - 80  # the same margin for names on both sides
    darkness = 255 - body[10::20, 10::20].mean(-1)
    assert darkness.shape == (3, 4)
    assert darkness[2].argmax() == 1
    assert darkness[0].argmax() == 0
    assert (body[20:40] == (217, 222, 230)).all()  # no ground truth
    assert (heat[:-60, -80:] < 150).any()  # names above

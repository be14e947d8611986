import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from callbacks import Panels
from dataseg.structures import VOID, Batch, ClassSpec, InstanceMasks, SegmentMap, Task, Vocabulary
from dataseg.visualization.legend import GAP, panel, present
from dataseg.visualization.overlay import NOTHING


def vocabulary(count: int) -> Vocabulary:
    """Things have odd labels; every class has a colour of its own."""
    classes = [
        ClassSpec(i + 1, f"class {i}", i % 2 == 1, ("x",), (10 + i, 255 - i, (37 * i) % 256)) for i in range(count)
    ]
    return Vocabulary("many", tuple(classes))


def shown(picture: np.ndarray, words: Vocabulary) -> list[int]:
    """Labels whose swatch is in the picture."""
    colors = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    return [label for label, spec in enumerate(words.classes) if spec.color in colors]


def test_only_classes_that_have_pixels_occur_and_things_come_first():
    ids = torch.full((4, 4), VOID, dtype=torch.int16)
    ids[0] = 2
    ids[1, 0] = 0
    truth = SegmentMap(ids, torch.tensor([4, 1, 3]))
    prediction = InstanceMasks([coco_mask.encode(np.ones((4, 4), np.uint8, order="F"))], torch.tensor([1]), (4, 4))
    assert present((truth, prediction), vocabulary(6)) == [1, 3, 4]
    assert present((SegmentMap(torch.full((2, 2), VOID), torch.tensor([4])),), vocabulary(6)) == []


@settings(max_examples=8, deadline=None)
@given(count=st.integers(0, 60), width=st.integers(96, 480))
def test_legend_shows_a_swatch_for_every_class_below_pictures_that_stay_as_they_are(count, width):
    words = vocabulary(150)
    image = np.random.default_rng(0).integers(0, 9, (40, width, 3), np.uint8)
    picture = panel({"a": image, "b": image}, list(range(count)), words)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (2 * width + GAP, 3)
    assert shown(picture, words) == list(range(count))
    (top,) = (row for row in range(len(picture) - 39) if (picture[row : row + 40, :width] == image).all())
    assert (picture[top : top + 40, -width:] == image).all()
    below = picture[top + 40 :]
    assert (len(below) == 0) == (count == 0)
    assert below.size == 0 or (below[:, -1] > 200).all()  # nothing is cut at the edge


def test_legend_explains_the_hatching():
    image = np.zeros((40, 200, 3), np.uint8)
    without, explained = (panel({"a": image}, [1], vocabulary(3), nothing) for nothing in (False, True))
    assert not (without[-10:] == NOTHING).all(-1).any()
    assert explained.shape[0] >= without.shape[0]
    assert (explained == NOTHING).all(-1).any()


def test_titles_stand_above_their_pictures():
    image = np.full((40, 200, 3), 255, np.uint8)
    strip = panel({"a": image, "b": image, "c": image}, [], vocabulary(1))[:-40]
    for left in (0, 204, 408):
        dark = np.nonzero((strip[:, left : left + 200] < 128).any((0, 2)))[0]
        assert 90 <= dark.mean() <= 110


def drawn_panel(height: int, width: int, task: Task) -> np.ndarray:
    words = vocabulary(20)
    ids = torch.arange(height * width).view(height, width) * 5 // (height * width)
    truth = SegmentMap(ids.to(torch.int16), torch.arange(5))
    images = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    batch = Batch("d", task, images, [(64, 64)], [truth], ["x"], [(height, width)], [0], [False])
    module = SimpleNamespace(datasets={"d": SimpleNamespace(vocabulary=words)})
    prediction: SegmentMap | InstanceMasks = truth
    if task is Task.INSTANCE:
        rles = [coco_mask.encode(np.asfortranarray((ids == k).numpy().astype(np.uint8))) for k in range(5)]
        prediction = InstanceMasks(rles, torch.arange(5), (height, width), scores=torch.ones(5))
    return Panels()._panel(module, batch, 0, prediction, task)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(("size", "drawn"), [((128, 96), (384, 288)), ((600, 960), (300, 480)), ((7, 500), (7, 480))])
def test_panel_of_any_size_has_titles_pictures_and_legend(size, drawn, task):
    picture = drawn_panel(*size, task)
    assert picture.shape[1] == 3 * drawn[1] + 8
    assert picture.shape[0] > drawn[0] + 20
    assert len(shown(picture, vocabulary(20))) == 5


def test_panel_of_a_large_image_is_fast():
    drawn_panel(1500, 2000, Task.PANOPTIC)
    times = []
    for _ in range(5):
        start = time.thread_time()
        drawn_panel(1500, 2000, Task.PANOPTIC)
        times.append(time.thread_time() - start)
    assert min(times) < 0.2  # 239 ms when segments were drawn at the image's own size; 25 ms with making the case

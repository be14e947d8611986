from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dataseg.structures import VOID, Boxes, ClassSpec, InstanceMasks, SegmentMap, Vocabulary
from dataseg.visualization.overlay import NOTHING, draw, resize_map, resize_picture

VOCABULARY = Vocabulary(
    "three",
    (
        ClassSpec(1, "sky", False, ("sky",), (0, 0, 255)),
        ClassSpec(2, "cat", True, ("cat",), (255, 0, 0)),
        ClassSpec(7, "dog", True, ("dog",), (0, 255, 0)),
    ),
)
GREY = np.full((20, 30, 3), 100, np.uint8)


def segment_map(is_crowd=None) -> SegmentMap:
    ids = torch.full((20, 30), VOID, dtype=torch.int16)
    ids[:10] = 0
    ids[10:, :10] = 1
    ids[10:, 10:20] = 2
    return SegmentMap(ids=ids, labels=torch.tensor([0, 1, 1]), is_crowd=is_crowd)


def test_map_keeps_void_plain_and_colours_by_class_with_a_shade_per_instance():
    picture = draw(GREY, segment_map(), VOCABULARY, names=False, alpha=1.0)
    assert picture.shape == GREY.shape
    assert picture.dtype == np.uint8
    assert picture[5, 5].tolist() == [0, 0, 255]
    assert picture[15, 5].tolist() == [255, 0, 0]
    assert picture[15, 15].tolist() != [255, 0, 0]
    assert picture[15, 15, 0] > picture[15, 15, 1]  # still a red
    assert picture[15, 25].tolist() == [100, 100, 100]
    assert picture[10, 3].tolist() == [255, 255, 255]  # line between two segments
    assert (GREY == 100).all()  # the image itself is not drawn on


def test_crowds_are_hatched():
    picture = draw(GREY, segment_map(torch.tensor([False, True, False])), VOCABULARY, names=False, alpha=1.0)
    crowd = picture[12:, 2:9].reshape(-1, 3)
    assert {(255, 0, 0), (100, 100, 100)} <= {tuple(c) for c in crowd.tolist()}


def test_boxes_and_masks():
    boxes = Boxes(xyxy=torch.tensor([[2.0, 3.0, 12.0, 13.0]]), labels=torch.tensor([2]))
    assert draw(GREY, boxes, VOCABULARY, names=False)[3, 5].tolist() == [0, 255, 0]
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:15, 5:15] = 1
    masks = InstanceMasks([coco_mask.encode(mask), None], torch.tensor([1, 2]), (20, 30))
    picture = draw(GREY, masks, VOCABULARY, names=False, alpha=1.0)
    assert picture[10, 10].tolist() == [255, 0, 0]
    assert picture[2, 2].tolist() == [100, 100, 100]


@pytest.mark.parametrize("labels", [[], [0, 1, 1]])
def test_names_change_only_where_they_are_written(labels):
    target = segment_map() if labels else SegmentMap(torch.full((20, 30), VOID), torch.zeros(0, dtype=torch.long))
    assert draw(GREY, target, VOCABULARY, names=True).shape == GREY.shape


def test_maps_and_masks_are_scaled_to_the_picture():
    large = np.full((60, 90, 3), 100, np.uint8)
    picture = draw(large, segment_map(), VOCABULARY, names=False, alpha=1.0)
    assert picture.shape == (60, 90, 3)
    assert picture[28, 16].tolist() == [0, 0, 255]
    assert picture[32, 16].tolist() == [255, 0, 0]
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:15, 6:12] = 1
    drawn = draw(large, InstanceMasks([coco_mask.encode(mask)], torch.tensor([1]), (20, 30)), VOCABULARY, False, 1.0)
    assert (drawn[16:44, 19:35] == [255, 0, 0]).all()  # within its line
    assert (drawn[15, 18:36] == 255).all()
    drawn[15:45, 18:36] = 100
    assert (drawn == 100).all()


@pytest.mark.parametrize("size", [(20, 30), (60, 90), (50, 75), (10, 15), (1, 2)])
def test_resizing_gives_the_size_asked_for(size):
    assert resize_map(segment_map(), size).size == size
    assert resize_picture(GREY, size).shape == (*size, 3)
    assert set(resize_map(segment_map(), size).ids.unique().tolist()) <= {VOID, 0, 1, 2}


def test_an_instance_without_a_mask_is_a_box():
    boxes = torch.tensor([[2.0, 3.0, 12.0, 9.0]])
    target = InstanceMasks(rles=[None], labels=torch.tensor([0]), size=(10, 15), boxes=boxes)
    picture = draw(GREY, target, VOCABULARY, names=False)
    drawn = np.argwhere((picture != 100).any(-1))
    assert drawn.min(0).tolist() == [5, 3]  # scaled with the picture; a line of two pixels reaches one further out
    assert drawn.max(0).tolist() == [19, 25]
    large = replace(target, boxes=boxes.new_tensor([[1.0, 1.0, 14.0, 9.0]]))
    picture = draw(np.full((200, 300, 3), 100, np.uint8), large, VOCABULARY)
    assert (picture[:60] == 255).all(-1).any(), "its class is written"


def test_where_nothing_is_predicted_is_hatched():
    picture = draw(GREY, segment_map(), VOCABULARY, names=False, alpha=1.0, is_prediction=True)
    void = {tuple(c) for c in picture[12:, 22:].reshape(-1, 3).tolist()}
    assert void == {NOTHING, (100, 100, 100)}
    assert picture[15, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("as_map", [False, True])
def test_the_name_of_a_thin_segment_lies_on_it(as_map):
    mask = np.zeros((200, 300), np.uint8)
    cv2.polylines(
        mask, [np.array([[20, 20], [40, 150], [150, 190], [280, 180]])], False, 1, 9
    )  # a bow around the middle
    segments = (
        SegmentMap(torch.from_numpy(mask.astype(np.int16) - 1), torch.tensor([1]))
        if as_map
        else InstanceMasks([coco_mask.encode(np.asfortranarray(mask))], torch.tensor([1]), mask.shape)
    )
    image = np.full((200, 300, 3), 100, np.uint8)
    written = (draw(image, segments, VOCABULARY) != draw(image, segments, VOCABULARY, names=False)).any(-1)
    assert (written & (mask == 1)).sum() > 20
    rows, columns = np.nonzero(written)
    reach = cv2.dilate(mask, np.ones((31, 41), np.uint8))
    assert reach[rows, columns].mean() > 0.8


def test_names_are_written_where_there_is_room_and_do_not_cover_each_other():
    image = np.full((200, 300, 3), 100, np.uint8)
    ids = torch.zeros(200, 300, dtype=torch.int16)
    ids[95:105, 140:150] = 1  # too small for a name
    target = SegmentMap(ids, torch.tensor([0, 1]))
    named = draw(image, target, VOCABULARY, alpha=1.0)
    plain = draw(image, target, VOCABULARY, names=False, alpha=1.0)
    rows = np.nonzero((named != plain).any((1, 2)))[0]
    assert 9 <= np.ptp(rows) <= 20  # one line of legible text
    two = Boxes(torch.tensor([[10.0, 10.0, 200.0, 150.0], [14.0, 10.0, 200.0, 150.0]]), torch.tensor([1, 2]))
    one = Boxes(two.xyxy[:1], two.labels[:1])
    written = [(draw(image, t, VOCABULARY) != draw(image, t, VOCABULARY, names=False)).any(-1) for t in (two, one)]
    assert written[0].sum() <= written[1].sum() * 1.2

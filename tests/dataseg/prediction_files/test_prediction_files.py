import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools

from dataseg.prediction_files import (
    InstanceResults,
    InstanceTruth,
    InstanceWriter,
    LabelFiles,
    LabelWriter,
    PanopticFiles,
    PanopticWriter,
    vocabulary_of,
    writer_for,
)
from dataseg.structures import ClassSpec, InstanceMasks, SegmentMap, Task, UserError, Vocabulary


def make_vocabulary(ids=(1, 5, 300)):
    return Vocabulary("toy", tuple(ClassSpec(i, f"class{i}", i != 5, (f"class {i}",), (1, 2, 3)) for i in ids))


VOCABULARY = make_vocabulary()


def square(start, size=(8, 9)):
    mask = np.zeros(size, dtype=np.uint8, order="F")
    mask[start : start + 3, start : start + 3] = 1
    return mask_tools.encode(mask)


# ------------------------------------------------------------------------------------------------------- panoptic


def test_panoptic_files_come_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 3, (8, 9), generator=generator)
    ids[ids == 1] = 0  # a segment without a pixel
    prediction = SegmentMap(ids, labels=torch.tensor([2, 1, 0]), scores=torch.rand(3))
    writer = PanopticWriter(tmp_path / "results.json", VOCABULARY)
    writer.add(prediction, "139")
    writer.add(prediction, "frankfurt_1")
    content = json.loads(writer.finish().read_text())
    assert [a["image_id"] for a in content["annotations"]] == [139, "frankfurt_1"]
    assert [a["file_name"] for a in content["annotations"]] == ["000000000139.png", "frankfurt_1.png"]
    assert [s["category_id"] for s in content["annotations"][0]["segments_info"]] == [300, 1]
    assert [s["area"] for s in content["annotations"][0]["segments_info"]] == [int((ids == k).sum()) for k in (0, 2)]
    assert {c["id"]: c["isthing"] for c in content["categories"]} == {1: 1, 5: 0, 300: 1}
    files = PanopticFiles(tmp_path / "results.json", VOCABULARY)
    for image_id in files.image_ids:
        found = files.load(image_id)
        assert found.ids.shape == (8, 9)
        assert torch.equal(found.class_map(), prediction.class_map())
        assert found.labels.tolist() == [2, 0]
    assert not list(tmp_path.rglob("*.part*"))


def test_ids_beyond_16_bits(tmp_path):
    count = 70_000
    ids = torch.arange(count).view(100, -1)
    writer = PanopticWriter(tmp_path / "many.json", VOCABULARY)
    writer.add(SegmentMap(ids, torch.arange(count) % 3), "1")
    writer.finish()
    found = PanopticFiles(tmp_path / "many.json", VOCABULARY).load("1")
    assert torch.equal(found.ids.long(), ids)
    assert torch.equal(found.labels, torch.arange(count) % 3)
    assert np.asarray(Image.open(tmp_path / "many" / "000000000001.png")).shape == (100, 700, 3)


def test_records_of_other_ranks_and_shifted_ids(tmp_path):
    segment = SegmentMap(torch.zeros(2, 2, dtype=torch.int16), torch.tensor([1]))
    ranks = [PanopticWriter(tmp_path / "r.json", VOCABULARY, id_shift=-1) for _ in range(2)]
    for rank, writer in enumerate(ranks):
        writer.add(segment, f"image{rank}")
    ranks[0].finish(ranks[0].records + ranks[1].records)
    files = PanopticFiles(tmp_path / "r.json", VOCABULARY, id_shift=1)
    assert files.image_ids == ["image0", "image1"]
    assert files.load("image1").labels.tolist() == [1]
    assert files.annotations["image1"]["segments_info"][0]["category_id"] == 4
    with pytest.raises(ValueError, match=r"r\.json, image image1: segment 1 has category_id 4, .*--pred-shift"):
        PanopticFiles(tmp_path / "r.json", VOCABULARY).load("image1")


def write_panoptic(folder, segments, ids, image_id=7):
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (folder / "p").mkdir(exist_ok=True)
    Image.fromarray(png).save(folder / "p" / "a.png")
    record = {"image_id": image_id, "file_name": "a.png", "segments_info": segments}
    (folder / "p.json").write_text(json.dumps({"annotations": [record]}))
    return folder / "p.json"


def segment(number, category=1, **others):
    return {"id": number, "category_id": category, "area": 4, "iscrowd": 0, **others}


@pytest.mark.parametrize(
    ("segments", "ids", "message"),
    [
        ([segment(3, 9)], [[3, 3]], r"p\.json, image 7: segment 3 has category_id 9, which vocabulary 'toy' lacks"),
        ([segment(3)], [[3, 4]], r"a\.png .*p\.json.*segment ids \[4\]"),
        ([segment(3), segment(4)], [[3, 3]], r"p\.json, image 7: segments \[4\] have no pixel in .*a\.png"),
        ([segment(3), segment(3)], [[3, 3]], r"p\.json, image 7: segment id 3 is listed twice"),
        ([segment(0)], [[0, 0]], r"p\.json, image 7: segment id 0 .* no colour"),
        ([{"id": 3}], [[3, 3]], r"p\.json, image 7, segment 3 has no 'category_id'"),
    ],
)
def test_mistakes_in_panoptic_predictions_name_file_and_record(tmp_path, segments, ids, message):
    path = write_panoptic(tmp_path, segments, np.array(ids))
    with pytest.raises(ValueError, match=message):
        PanopticFiles(path, VOCABULARY).load("7")


def test_panoptic_ground_truth_keeps_order_crowds_areas_and_empty_segments(tmp_path):
    segments = [segment(300, 5, area=9, iscrowd=1), segment(70000, 1), segment(2, 300)]
    path = write_panoptic(tmp_path, segments, np.array([[300, 70000, 0]]))
    target = PanopticFiles(path, VOCABULARY, is_truth=True).load("7")
    assert target.ids.tolist() == [[0, 1, -1]]
    assert target.labels.tolist() == [1, 0, 2]
    assert target.is_crowd.tolist() == [True, False, False]
    assert target.areas.tolist() == [9, 4, 4]


def test_missing_and_broken_panoptic_files(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder of PNGs"):
        PanopticFiles(tmp_path / "nowhere.json", VOCABULARY)
    path = write_panoptic(tmp_path, [segment(3)], np.array([[3]]))
    with pytest.raises(ValueError, match=r"p\.json: image 8 is missing"):
        PanopticFiles(path, VOCABULARY).load("8")
    (tmp_path / "p" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        PanopticFiles(path, VOCABULARY).load("7")
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "p" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png.* is not an 8-bit RGB file"):
        PanopticFiles(path, VOCABULARY).load("7")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"p\.json: not a readable JSON file"):
        PanopticFiles(path, VOCABULARY)


# ------------------------------------------------------------------------------------------------------ instances


def test_instance_results_come_back(tmp_path):
    scores = torch.tensor([0.1, 0.7], dtype=torch.float32)
    prediction = InstanceMasks([square(0), square(2)], torch.tensor([2, 0]), (8, 9), scores=scores)
    writer = InstanceWriter(tmp_path / "r.json", VOCABULARY)
    writer.add(prediction, "42")
    writer.add(InstanceMasks([], torch.zeros(0, dtype=torch.int64), (8, 9)), "43")
    records = json.loads(writer.finish().read_text())
    assert [set(r) for r in records] == [{"image_id", "category_id", "segmentation", "score"}] * 2
    assert [r["category_id"] for r in records] == [300, 1]
    results = InstanceResults(tmp_path / "r.json", VOCABULARY, {"42": (8, 9), "43": (8, 9)})
    found = results.load("42")
    assert found.rles == prediction.rles
    assert found.labels.tolist() == [2, 0]
    assert torch.equal(found.scores, scores.double())  # to the last bit
    assert len(results.load("43")) == 0


def truth_file(folder, **changes):
    annotation = {"image_id": 1, "category_id": 5, "area": 2.5, "bbox": [1, 2, 3, 4], "segmentation": square(1)}
    annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode()
    annotation |= changes
    content = {
        "images": [{"id": 1, "height": 8, "width": 9}],
        "annotations": [{k: v for k, v in annotation.items() if v is not None}],
        "categories": [{"id": 5, "name": "dog", "supercategory": "animal"}],
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


@pytest.mark.parametrize(
    ("segmentation", "pixels"),
    [
        ([[1, 1, 6, 1, 6, 5, 1, 5]], 20),
        ({"size": [8, 9], "counts": [10, 5, 57]}, 5),
        ([], None),
        (None, None),
        ({"size": [8, 9], "counts": ""}, None),
    ],
)
def test_instance_ground_truth(tmp_path, segmentation, pixels):
    path = truth_file(tmp_path, segmentation=segmentation, iscrowd=1)
    vocabulary = vocabulary_of(path)
    assert vocabulary.names == ["dog"]
    target = InstanceTruth(path, vocabulary).load("1")
    assert target.size == (8, 9)
    assert target.areas.tolist() == [2.5]
    assert target.is_crowd.tolist() == [True]
    assert target.boxes.tolist() == [[1, 2, 4, 6]]
    assert (None if target.rles[0] is None else int(mask_tools.area(target.rles[0]))) == pixels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 6}, r"gt\.json, annotation 0: category_id 6 is not in vocabulary"),
        ({"area": "large"}, r"gt\.json, annotation 0: its area is not finite: area 'large'"),
        ({"bbox": [1, 2, 3]}, r"gt\.json, annotation 0: bbox must be \[x, y, width, height\]"),
        ({"iscrowd": "no"}, r"gt\.json, annotation 0: iscrowd must be 0 or 1, got 'no'"),
        ({"image_id": 2}, r"gt\.json, annotation 0: its image 2 is not listed"),
        ({"segmentation": {"size": [9, 8], "counts": [72]}}, r"annotation 0: .*size \[9, 8\]"),
        ({"segmentation": {"size": [8, 9], "counts": [70]}}, r"annotation 0: .*70 pixels, not 72"),
        ({"segmentation": [[1, 2, 3]]}, r"annotation 0: .*odd; wanted: polygons"),
        ({"segmentation": "mask"}, r"annotation 0: segmentation 'mask'; wanted: polygons"),
    ],
)
def test_mistakes_in_instance_ground_truth(tmp_path, changes, message):
    path = truth_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        InstanceTruth(path, vocabulary_of(path)).load("1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 9}, r"r\.json, result 0: image 9 is not in the ground truth"),
        ({"category_id": 9}, r"r\.json, result 0: category_id 9 is not in vocabulary 'toy'"),
        ({"image_id": "a.jpg"}, r"image a\.jpg is not in the ground truth, whose image ids are 1, \.\.\."),
        ({"score": float("nan")}, r"r\.json, result 0: score nan is not a finite number"),
        ({"score": None}, r"r\.json, result 0: score None is not a finite number"),
        ({"category_id": "bolt"}, r"r\.json, result 0: category_id 'bolt' is not a finite number"),
        ({"category_id": 5.5}, r"r\.json, result 0: category_id 5\.5 is not a whole number"),
        ({"segmentation": []}, r"r\.json, result 0 has no mask"),
    ],
)
def test_mistakes_in_instance_results(tmp_path, changes, message):
    mask = {"size": [8, 9], "counts": [72]}
    record = {"image_id": 1, "category_id": 5, "score": 0.5, "segmentation": mask} | changes
    (tmp_path / "r.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=message):
        InstanceResults(tmp_path / "r.json", VOCABULARY, {"1": (8, 9)}).load("1")


def test_a_ground_truth_is_no_list_of_results(tmp_path):
    (tmp_path / "r.json").write_text('{"annotations": []}')
    with pytest.raises(UserError, match=r"r\.json: holds 'annotations'; wanted is a list of results"):
        InstanceResults(tmp_path / "r.json", VOCABULARY, {"1": (8, 9)})


def test_predictions_that_cannot_be_written(tmp_path):
    writer = InstanceWriter(tmp_path / "r.json", VOCABULARY)
    with pytest.raises(ValueError, match=r"r\.json, image 1: the predictions have no scores"):
        writer.add(InstanceMasks([square(0)], torch.tensor([0]), (8, 9)), "1")
    with pytest.raises(ValueError, match=r"r\.json, image 1: labels beyond vocabulary 'toy'"):
        writer.add(InstanceMasks([square(0)], torch.tensor([3]), (8, 9), scores=torch.ones(1)), "1")
    with pytest.raises(ValueError, match=r"image id '\.\./x' cannot be a file name"):
        PanopticWriter(tmp_path / "p.json", VOCABULARY).add(
            SegmentMap(torch.zeros(1, 1).int(), torch.tensor([0])), "../x"
        )


# ------------------------------------------------------------------------------------------------------- semantic


@pytest.mark.parametrize(("ids", "dtype", "void"), [((1, 5, 150), np.uint8, 0), ((0, 1, 300), np.uint16, 65535)])
def test_label_maps_come_back(tmp_path, ids, dtype, void):
    vocabulary = make_vocabulary(ids)
    prediction = SegmentMap(torch.tensor([[0, 1], [1, -1]]), torch.tensor([2, 0]))
    writer = writer_for(Task.SEMANTIC, tmp_path / "maps", vocabulary)
    assert isinstance(writer, LabelWriter)
    writer.add(prediction, "ADE_val_00000001")
    assert writer.finish() == tmp_path / "maps"
    with Image.open(tmp_path / "maps" / "ADE_val_00000001.png") as image:
        values = np.asarray(image)
    assert values.tolist() == [[ids[2], ids[0]], [ids[0], void]]
    assert values.max() <= np.iinfo(dtype).max
    files = LabelFiles(tmp_path / "maps", vocabulary, ignore=[void])
    assert files.image_ids == ["ADE_val_00000001"]
    assert torch.equal(files.load("ADE_val_00000001").class_map(), prediction.class_map())


def test_shifted_label_maps(tmp_path):
    (tmp_path / "city").mkdir()
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(tmp_path / "city" / "a.png")
    vocabulary = make_vocabulary((1, 2))
    files = LabelFiles(tmp_path, vocabulary, ignore=[255], id_shift=1)
    assert files.load("city/a").class_map().tolist() == [[0, 1, -1]]
    with pytest.raises(
        ValueError, match=r"a\.png: the values \[0, 255\] are no class of vocabulary 'toy' \(ids 1\.\.2\)"
    ):
        LabelFiles(tmp_path, vocabulary).load("city/a")
    with pytest.raises(ValueError, match="no label map for image b"):
        files.load("b")
    Image.fromarray(np.eye(2, dtype=np.uint8)[..., None] * np.arange(3, dtype=np.uint8)).save(
        tmp_path / "city" / "a.png"
    )
    with pytest.raises(ValueError, match=r"a\.png"):
        files.load("city/a")
    with pytest.raises(ValueError, match="no such folder of label maps"):
        LabelFiles(tmp_path / "nowhere", vocabulary)


def test_writers_by_task(tmp_path):
    assert isinstance(writer_for(Task.PANOPTIC, tmp_path / "a", VOCABULARY), PanopticWriter)
    assert writer_for(Task.INSTANCE, tmp_path / "a", VOCABULARY).path == tmp_path / "a.json"
    with pytest.raises(ValueError, match="do not fit a PNG"):
        LabelWriter(tmp_path, make_vocabulary((1, 70000)))

"""Choices about own data: fewer classes than the files have, several ids or names for one, maps painted from masks."""

import json

import cv2
import numpy as np
import pytest
import tifffile
import torch
from own_exports import write_labelme
from PIL import Image

from data_modules.formats import CocoBoxes, CocoInstances, CocoPanoptic, LabelMaps, Labelme, MaskFolders, Yolo
from data_modules.formats.reader import Reader
from data_modules.vocabularies import OwnClass, resolve
from dataseg.config.instantiate import instantiate
from dataseg.structures import VOID, InstanceMasks, UserError, Vocabulary

ROWS, COLUMNS = 40, 60
BOXES = {  # left, top, right, bottom; in the order of the file
    1: [(10, 8, 20, 18), (30, 8, 42, 20)],  # bolt
    2: [(5, 5, 55, 35)],  # plate, under all bolts
    3: [(15, 12, 25, 30)],  # rust, over the first bolt: larger than it, smaller than the plate
}
CLASSES = [OwnClass("bolt", 1), OwnClass("plate", 2, "stuff"), OwnClass("background", 0, "stuff")]
ALL = [OwnClass("bolt", 1), OwnClass("plate", 2, "stuff"), OwnClass("rust", 3), OwnClass("background", 0, "stuff")]


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content)) if isinstance(content, dict) else path.write_bytes(
        cv2.imencode(path.suffix, content)[1].tobytes()
    )


@pytest.fixture
def coco(tmp_path):
    """One image with rectangles as polygons, whose pixels are known without rasterising."""
    write(tmp_path / "mine/images/a.png", np.zeros((ROWS, COLUMNS, 3), np.uint8))
    annotations = [
        {
            "id": 10 * category + k,
            "image_id": 1,
            "category_id": category,
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            "area": (right - left) * (bottom - top),
            "iscrowd": 0,
        }
        for category, boxes in BOXES.items()
        for k, (left, top, right, bottom) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": ROWS, "width": COLUMNS}],
        "categories": [{"id": c, "name": n} for c, n in enumerate(("bolt", "plate", "rust"), 1)],
        "annotations": annotations,
    }
    write(tmp_path / "mine/a.json", content)
    return {"root": "mine", "annotations": "a.json", "images": "images"}


def set_up(reader, root):
    reader.setup(root)
    return reader


def names_of(reader, target) -> np.ndarray:
    """Class name of every pixel."""
    names = np.array([*reader.vocabulary.names, ""])
    return names[target.class_map().numpy()]


def expected(order, rest="background") -> np.ndarray:
    """The boxes of some classes, one over the other."""
    pixels = np.full((ROWS, COLUMNS), rest, dtype="<U10")
    for name, category in order:
        for left, top, right, bottom in BOXES[category]:
            pixels[top:bottom, left:right] = name
    return pixels


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_maps_painted_from_polygons(task, coco, tmp_path):
    smaller = [("plate", 2), ("rust", 3), ("bolt", 1)]
    later = [("bolt", 1), ("plate", 2), ("rust", 3)]
    for overlaps, order in (("smaller_on_top", smaller), ("later_on_top", later)):
        reader = CocoInstances(**coco, vocabulary=ALL, tasks=[task], rest="background", overlaps=overlaps)
        image, target = set_up(reader, tmp_path).load(0)
        assert image.shape == (ROWS, COLUMNS, 3)
        assert np.array_equal(names_of(reader, target), expected(order))
        bolts = 0 if overlaps == "later_on_top" else 2 if task == "panoptic" else 1  # all under the plate, or not
        assert target.labels.tolist().count(0) == bolts
        assert torch.equal(target.areas, torch.bincount(target.ids.flatten(), minlength=len(target)))
    void = CocoInstances(**coco, vocabulary=ALL, tasks=[task], rest="void")
    assert np.array_equal(names_of(void, set_up(void, tmp_path).load(0)[1]), expected(smaller, ""))


def test_painted_with_fewer_classes(coco, tmp_path):
    for rest, name in (("void", ""), ("background", "background"), ("plate", "plate")):
        reader = CocoInstances(**coco, vocabulary=CLASSES, tasks=["semantic"], rest=rest)
        target = set_up(reader, tmp_path).load(0)[1]
        assert np.array_equal(names_of(reader, target), expected([("plate", 2), (name, 3), ("bolt", 1)], name))
        assert reader.sizes().label.tolist() == [0, 0, 1]


def test_crowds_and_objects_without_a_mask_are_void(coco, tmp_path):
    path = tmp_path / "mine/a.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    del content["annotations"][1]["segmentation"]
    content["annotations"] = content["annotations"][:2]
    write(path, content)
    reader = CocoInstances(**coco, vocabulary=CLASSES, tasks=["panoptic"], rest="background")
    assert np.array_equal(names_of(reader, set_up(reader, tmp_path).load(0)[1]), expected([("", 1)]))


def test_what_is_painted_needs_a_rest(coco, tmp_path):
    with pytest.raises(UserError, match=r"semantic targets are painted .* say what pixels without an object are"):
        CocoInstances(**coco, vocabulary=ALL, tasks=["semantic"]).setup(tmp_path)
    with pytest.raises(UserError, match=r"rest: floor: wanted is void, or a class of the vocabulary: bolt, plate, rus"):
        CocoInstances(**coco, vocabulary=ALL, tasks=["semantic"], rest="floor").setup(tmp_path)
    with pytest.raises(UserError, match="not both"):
        CocoInstances(**coco, vocabulary=ALL, tasks=["semantic", "instance"])


@pytest.mark.parametrize("kind", [CocoBoxes, CocoInstances])
def test_fewer_classes_than_the_file(kind, coco, tmp_path):
    with pytest.raises(UserError, match=r"a.json: annotation 3"):
        kind(**coco, vocabulary=CLASSES).setup(tmp_path)
    with pytest.raises(UserError, match=r"rest: void: wanted is background: (boxes|masks) of other classes"):
        kind(**coco, vocabulary=CLASSES, rest="void").setup(tmp_path)
    reader = set_up(kind(**coco, vocabulary=CLASSES, rest="background"), tmp_path)
    target = reader.load(0)[1]
    assert target.labels.tolist() == [0, 0, 1]
    assert reader.counts["of_other_classes"] == 1
    boxes = target.boxes if isinstance(target, InstanceMasks) else target.xyxy
    assert boxes.tolist() == [*map(list, BOXES[1]), *map(list, BOXES[2])]


def test_several_ids_for_one_class(coco, tmp_path):
    reader = CocoInstances(**coco, vocabulary=[OwnClass("metal", [1, 2]), OwnClass("rust", 3)])
    assert set_up(reader, tmp_path).load(0)[1].labels.tolist() == [0, 0, 0, 1]
    assert reader.counts["categories_of_another_name"] == 0
    with pytest.raises(UserError, match=r"lists the ids \[2\] twice"):
        resolve([OwnClass("metal", [1, 2]), OwnClass("plate", 2)])
    with pytest.raises(UserError, match="class 'metal' has no id"):
        resolve([OwnClass("metal", [])])
    with pytest.raises(UserError, match=r"\['plate'\] stand twice"):
        resolve([OwnClass("metal", 1, aliases=["plate"]), OwnClass("plate", 2)])


def test_a_vocabulary_keeps_ids_and_aliases():
    plain, merged = resolve([OwnClass("metal", 1)]), resolve([OwnClass("metal", [1, 2], aliases=["steel"])])
    assert plain.digest != merged.digest
    assert Vocabulary.from_json(json.loads(json.dumps(merged.to_json()))) == merged
    assert "other_ids" not in plain.to_json()["classes"][0]


def test_classes_of_label_maps(tmp_path):
    values = np.array([[0, 1, 2, 3, 7, 254, 255, 9]], dtype=np.uint8).repeat(2, 0)
    write(tmp_path / "mine/images/a.jpg", np.zeros((2, 8, 3), np.uint8))
    write(tmp_path / "mine/labels/a.png", values)
    classes = [OwnClass("ground", [0, 7], "stuff"), OwnClass("road", [1, 2], "stuff"), OwnClass("car", 3, "stuff")]
    place = {"root": "mine", "images": "images", "annotations": "labels", "vocabulary": classes}
    with pytest.raises(UserError, match="holds the value 9"):
        LabelMaps(**place, ignore=[254, 255]).setup(tmp_path)
    with pytest.raises(UserError, match="holds the value 254"):
        LabelMaps(**place, ignore=[255, 9]).setup(tmp_path)
    for rest, label in (("void", VOID), ("ground", 0)):
        reader = set_up(LabelMaps(**place, ignore=[254, 255], rest=rest), tmp_path)
        target = reader.load(0)[1]
        assert target.class_map()[0].tolist() == [0, 1, 1, 2, 0, VOID, VOID, label]
        assert target.labels.tolist() == [0, 1, 2]


COLORS = {"water": (0, 0, 200), "wall": (128, 0, 0)}


@pytest.mark.parametrize("kind", ["rgb", "rgba", "palette"])
def test_label_maps_of_colours(kind, tmp_path):
    for folder in ("photos", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    indices = np.random.default_rng(0).integers(0, 3, (12, 20), dtype=np.uint8)
    table = np.array([*COLORS.values(), (255, 255, 255)], dtype=np.uint8)
    image = Image.fromarray(table[indices])
    if kind == "palette":
        image = Image.fromarray(indices)
        image.putpalette(table.ravel().tolist())
    elif kind == "rgba":
        image.putalpha(255)
    image.save(tmp_path / "mine/labels/a.png")
    Image.fromarray(table[indices]).save(tmp_path / "mine/photos/a.jpg")
    classes = [OwnClass(name, k, "stuff", color=color) for k, (name, color) in enumerate(COLORS.items())]

    def read(**options):
        reader = LabelMaps("mine", "photos", "labels", **{"vocabulary": classes, "encoding": "colors", **options})
        reader.setup(tmp_path)
        return reader.load(0)[1]

    for options in ({"ignore_colors": [(255, 255, 255)]}, {"rest": "void"}):
        assert (read(**options).ids.numpy() == np.where(indices == 2, -1, indices.astype(int))).all()
    assert (read(rest="wall").ids.numpy() == np.minimum(indices, 1)).all()
    with pytest.raises(UserError, match=r"a\.png holds 1 colours that are no class's, e\.g\. \[255, 255, 255\]"):
        read()
    for options, words in (
        ({"vocabulary": [OwnClass("water", 0)]}, r"give water a color: \[r, g, b\]"),
        ({"ignore": 0}, "name them in ignore_colors"),
        ({"ignore_colors": [(128, 0, 0)]}, r"\[128, 0, 0\] stands twice"),
        ({"encoding": "ids", "ignore_colors": [(1, 2, 3)]}, "belong to encoding: colors"),
    ):
        with pytest.raises(UserError, match=words):
            read(**options)


def test_label_maps_in_the_code_of_ade20k(tmp_path):
    for folder in ("photos", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    ids = np.array([[3, 300], [256, 0]])
    code = np.stack([ids // 256 * 10, ids % 256, np.arange(4).reshape(2, 2)], axis=-1).astype(np.uint8)  # B: instance
    Image.fromarray(code).save(tmp_path / "mine/labels/a.png")
    Image.fromarray(code).save(tmp_path / "mine/photos/a.jpg")
    classes = [OwnClass(f"class {number}", number, "stuff") for number in (3, 256, 300)]
    reader = LabelMaps("mine", "photos", "labels", classes, encoding="ade", ignore=0)
    reader.setup(tmp_path)
    assert reader.load(0)[1].ids.tolist() == [[0, 2], [1, -1]]


def test_classes_of_panoptic_maps(tmp_path):
    ids = np.repeat(np.array([[1, 2, 3, 4, 5, 0]], dtype=np.uint8), 4, 0)  # red, the last channel of OpenCV's
    write(tmp_path / "mine/images/a.png", np.zeros((4, 6, 3), np.uint8))
    write(tmp_path / "mine/a/a.png", np.stack([0 * ids, 0 * ids, ids], axis=2))
    categories = [(1, "car", 1), (2, "van", 1), (3, "grass", 0), (4, "tree", 0), (5, "sky", 0)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
        "categories": [{"id": c, "name": n, "isthing": t} for c, n, t in categories],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [{"id": c, "category_id": c, "area": 4, "iscrowd": 0} for c, _, _ in categories],
            }
        ],
    }
    write(tmp_path / "mine/a.json", content)
    place = {"root": "mine", "annotations": "a.json", "images": "images"}
    classes = [OwnClass("vehicle", [1, 2]), OwnClass("green", [3, 4], "stuff")]
    with pytest.raises(UserError, match="segment 5 has category_id 5, which the vocabulary lacks"):
        CocoPanoptic(**place, vocabulary=classes).setup(tmp_path)
    target = set_up(CocoPanoptic(**place, vocabulary=classes, rest="void"), tmp_path).load(0)[1]
    assert target.ids[0].tolist() == [0, 1, 2, 2, VOID, VOID]  # two vehicles, one segment of stuff
    assert (target.labels.tolist(), target.areas.tolist()) == ([0, 0, 1], [4, 4, 8])
    target = set_up(CocoPanoptic(**place, vocabulary=classes, rest="green"), tmp_path).load(0)[1]
    assert target.ids[0].tolist() == [0, 1, 2, 2, 2, VOID]
    assert target.areas.tolist() == [4, 4, 12]


def test_names_of_tools_and_of_mask_files(tmp_path):
    write_labelme(tmp_path / "mine")
    with pytest.raises(UserError, match=r"its class 'crack' is none of the vocabulary \(defect, bolt\)"):
        Labelme("mine", vocabulary=[OwnClass("defect", 1, aliases=["bolt"])]).setup(tmp_path)
    left = set_up(Labelme("mine", vocabulary=[OwnClass("crack", 1)], rest="background"), tmp_path)
    assert left.counts["of_other_classes"] == 2
    both = set_up(Labelme("mine", vocabulary=[OwnClass("defect", 1, aliases=["crack", "bolt"])]), tmp_path)
    assert sorted(both.index.lengths().tolist()) == [0, 2, 2]
    classes = [OwnClass("crack", 1, "stuff"), OwnClass("background", 0, "stuff")]
    painted = Labelme("mine", vocabulary=classes, tasks=["semantic"], rest="background")
    target = set_up(painted, tmp_path).load(0)[1]
    assert painted.gives == "map"
    assert set(target.labels.tolist()) == {0, 1}
    write(tmp_path / "fruit/photos/1.png", np.zeros((4, 4, 3), np.uint8))
    for name in ("pomme_1", "pear"):
        write(tmp_path / f"fruit/masks/1/{name}.png", np.full((4, 4), 255, np.uint8))
    place = {"root": "fruit", "images": "photos", "masks": "masks"}
    fruit = MaskFolders(**place, vocabulary=[OwnClass("apple", 1, aliases=["pomme"])], rest="background")
    assert set_up(fruit, tmp_path).load(0)[1].labels.tolist() == [0]
    assert fruit.counts["of_other_classes"] == 1


@pytest.mark.parametrize("names", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_yolo_with_a_list_of_names_alone(names, tmp_path):
    write(tmp_path / "mine/images/a.png", np.zeros((10, 20, 3), np.uint8))
    (tmp_path / "mine/labels").mkdir()
    (tmp_path / "mine/labels/a.txt").write_text("1 0.5 0.5 0.5 0.4\n")
    (tmp_path / "mine" / names).write_text("bolt\ncrack\n")
    reader = set_up(Yolo("mine", annotations=names, targets="boxes"), tmp_path)
    assert reader.vocabulary.names == ["bolt", "crack"]
    target = reader.load(0)[1]
    assert (target.labels.tolist(), target.xyxy.tolist()) == ([1], [[5, 3, 15, 7]])


def test_bands_are_chosen_in_the_configuration(tmp_path):
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    for folder in ("photos", "labels"):
        (tmp_path / folder).mkdir()
    tifffile.imwrite(tmp_path / "photos" / "a.tif", values, photometric="minisblack", planarconfig="contig")
    Image.fromarray(np.ones((4, 5), np.uint8)).save(tmp_path / "labels" / "a.png")
    place = {"root": ".", "images": "photos", "annotations": "labels", "vocabulary": "ade20k_150"}
    init = place | {"bands": {"select": [6, 1, 2], "value_range": [0, 255]}}
    reader = instantiate(Reader, {"class_path": "data_modules.formats.LabelMaps", "init_args": init}, "x")
    image, _ = set_up(reader, tmp_path).load(0)
    assert (image == values[..., [5, 0, 1]]).all()
    with pytest.raises(UserError, match=r"a\.tif is not a readable image \(a TIFF of many bands .*value_range"):
        set_up(LabelMaps(**place), tmp_path).load(0)

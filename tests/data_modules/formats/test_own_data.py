"""Data of your own: classes written in a YAML file, folders of masks, datasets saved by Hugging Face's library."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch
import yaml
from fake_data import SIZE, color_of, write_coco, write_objects365
from jsonargparse import ArgumentParser
from PIL import Image
from pycocotools import mask as coco_mask

from data_modules import CoTraining
from data_modules.formats import CocoPanoptic, HubDataset, LabelMaps, MaskFolders, MissingDataError, Reader
from data_modules.inspection.experiment import Experiment
from data_modules.vocabularies import OwnClass, resolve
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Task, UserError

CLASSES = [
    OwnClass("road", 1, "stuff"),
    OwnClass("pot hole", 2, prompts=["pothole", "hole in a road"]),
    OwnClass("pot", 3, color=(1, 2, 3)),
]


def ready(reader, root):
    reader.setup(root)
    return reader


# --------------------------------------------------------------------------------------------------- classes


def test_own_classes():
    vocabulary = resolve(CLASSES)
    assert vocabulary.names == ["road", "pot hole", "pot"]
    assert vocabulary.is_thing.tolist() == [False, True, True]
    assert [c.prompts for c in vocabulary.classes] == [("road",), ("pothole", "hole in a road"), ("pot",)]
    assert vocabulary.classes[2].color == (1, 2, 3)
    assert len({c.color for c in resolve([OwnClass(str(i), i) for i in range(50)]).classes}) == 50
    assert vocabulary.name == resolve(CLASSES).name != resolve(CLASSES[:2]).name


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([], "has no class"),
        ([OwnClass("a", 1), OwnClass("b", 1)], "ids .1. twice"),
        ([OwnClass("a", 1), OwnClass("a", 2)], "'a'.*stand twice"),
        ([OwnClass("a", 1, prompts=[" "])], "prompt"),
        ([OwnClass("a", 1, color=(0, 0, 300))], "0-255"),
    ],
)
def test_wrong_classes_are_named(classes, words):
    with pytest.raises(UserError, match=f"vocabulary: .*{words}"):
        resolve(classes)


YAML = """
train:
  mine: &mine
    class_path: data_modules.formats.CocoPanoptic
    init_args: &args
      root: mine
      annotations: train.json
      images: train_images
      vocabulary:
        - { name: person, id: 1 }
        - { name: rug, id: 200, kind: stuff, prompts: [rug, carpet] }
        - { name: cat, id: 17 }
val:
  mine:
    class_path: data_modules.formats.CocoPanoptic
    init_args:
      <<: *args
      annotations: val.json
      images: val_images
ratios: { mine: 1 }
train_transform: { image_size: 32 }
batch_size: 2
num_workers: 0
"""


def test_one_yaml_file_is_all_it_takes(tmp_path):
    for split in ("train", "val"):
        base = write_coco(tmp_path / split, split="x")
        for source, target in (
            ("annotations/panoptic_x.json", f"{split}.json"),
            ("annotations/panoptic_x", split),
            ("x", f"{split}_images"),
        ):
            (tmp_path / "mine").mkdir(exist_ok=True)
            (base / source).rename(tmp_path / "mine" / target)
    (tmp_path / "mine.yaml").write_text(YAML)
    parser = ArgumentParser()
    parser.add_class_arguments(CoTraining, "data", sub_configs=True)
    config = parser.parse_args([f"--data={tmp_path / 'mine.yaml'}", f"--data.root={tmp_path}"])
    data = parser.instantiate(config).data
    data.setup("fit")
    assert data.vocabularies["mine"].names == ["person", "rug", "cat"]
    assert data.train_readers["mine"].tasks[0] is Task.PANOPTIC
    reader = data.val_readers["mine"]
    assert len(reader) == 6
    assert sorted(reader.vocabulary.names[k] for k in reader.load(1)[1].labels) == ["cat", "person", "person", "rug"]


def test_own_classes_of_other_formats(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "mine/images/a.jpg"), np.zeros((1, 4, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "mine/labels/a.png"), np.array([[1, 3, 2, 255]], np.uint8))
    reader = ready(LabelMaps("mine", "images", "labels", CLASSES), tmp_path)
    assert reader.load(0)[1].class_map().tolist() == [[0, 2, 1, VOID]]
    cv2.imwrite(str(tmp_path / "mine/labels/a.png"), np.array([[1, 3, 4, 255]], np.uint8))
    with pytest.raises(UserError, match=r"a\.png holds the value 4, which is no class of 'own-"):
        LabelMaps("mine", "images", "labels", CLASSES).setup(tmp_path)


# ---------------------------------------------------------------------------------------------------- masks


@pytest.fixture
def mask_root(tmp_path):
    """Image a: road and three things, two of which overlap; image b: nothing."""
    (tmp_path / "mine/photos").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "mine/masks" / name).mkdir(parents=True)
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"mine/photos/{name}.jpg"), np.full((8, 12, 3), 90, np.uint8))
    regions = {
        "pot_hole_1": (slice(2, 5), slice(2, 5)),
        "pot_hole_2": (slice(4, 7), slice(4, 7)),
        "pot": (slice(0, 2), slice(0, 2)),
        "road.left": (slice(0, 8), slice(0, 6)),
        "road-right": (slice(0, 8), slice(8, 12)),
    }
    for number, (name, region) in enumerate(regions.items()):
        mask = np.zeros((8, 12, 3) if number % 2 else (8, 12), np.uint8)
        mask[region] = 1 if number % 2 else 255
        cv2.imwrite(str(tmp_path / f"mine/masks/a/{name}.png"), mask)
    return tmp_path


def masks(**changes):
    return MaskFolders(**{"root": "mine", "images": "photos", "masks": "masks", "vocabulary": CLASSES, **changes})


def test_folders_of_masks_as_instances(mask_root):
    reader = ready(masks(), mask_root)
    assert len(reader) == 2
    image, target = reader.load(0)
    assert image.shape == (8, 12, 3)
    assert isinstance(target, InstanceMasks)
    names = [reader.vocabulary.names[k] for k in target.labels]
    assert names == ["pot", "pot hole", "pot hole", "road", "road"]
    assert target.size == (8, 12)
    _, empty = pickle.loads(pickle.dumps(reader)).load(1)
    assert len(empty) == 0


def test_folders_of_masks_as_maps(mask_root):
    panoptic = ready(masks(tasks=["panoptic"]), mask_root)
    assert panoptic.gives == "map"
    _, target = panoptic.load(0)
    assert isinstance(target, SegmentMap)
    assert [panoptic.vocabulary.names[k] for k in target.labels] == ["pot hole", "road"], (
        "what is wholly hidden is left out"
    )
    semantic = ready(masks(tasks=["semantic"]), mask_root).load(0)[1]
    assert len(set(semantic.labels.tolist())) == len(semantic) == 2
    assert semantic.class_map().equal(target.class_map())
    assert target.class_map()[0].tolist() == [0] * 6 + [VOID] * 2 + [0] * 4, "the road's file comes last"
    assert target.class_map()[6, 6] == 1


def test_black_masks_are_instances_without_a_mask(mask_root):
    cv2.imwrite(str(mask_root / "mine/masks/a/pot_2.png"), np.zeros((8, 12), np.uint8))
    reader = ready(masks(), mask_root)
    assert reader.doubts(0) == [f"{mask_root / 'mine/masks/a/pot_2.png'}: no pixel is above 0"]
    assert [rle is None for rle in reader.load(0)[1].rles] == [False, True, False, False, False, False]
    assert len(ready(masks(tasks=["panoptic"]), mask_root).load(0)[1]) == 2


def test_colours_of_masks_with_a_palette_count(mask_root):
    indices = np.zeros((8, 12), np.uint8)
    indices[2:4] = 1
    for number, palette in enumerate([[0, 0, 0, 9, 9, 9], [0, 0, 9, 0, 0, 0]]):
        image = Image.fromarray(indices)
        image.putpalette(palette)
        image.save(mask_root / f"mine/masks/b/pot_{number}.png")
    black_first, black_last = map(coco_mask.decode, ready(masks(), mask_root).load(1)[1].rles)
    assert (black_first == indices).all()
    assert (black_last == 1 - indices).all()


@pytest.mark.parametrize("zipped", [False, True])
def test_folders_of_masks_without_an_image_are_told(mask_root, zipped):
    (mask_root / "mine/photos/b.jpg").unlink()
    (mask_root / "mine/masks/b/pot.png").write_bytes((mask_root / "mine/masks/a/pot.png").read_bytes())
    if zipped:
        shutil.make_archive(str(mask_root / "mine/masks"), "zip", mask_root / "mine/masks")
        shutil.rmtree(mask_root / "mine/masks")
    reader, told = masks(), []
    reader.locate(mask_root)
    reader.read(lambda message, benign=False: told.append((message, benign)))
    assert len(told) == 1
    assert ": folder b has no image in " in told[0][0]
    assert told[0][1]
    assert ready(reader, mask_root).counts == {"mask_folders_without_an_image": 1}


def test_mistakes_in_folders_of_masks_are_named(mask_root):
    with pytest.raises(UserError, match="both"):
        masks(tasks=["instance", "panoptic"])
    cv2.imwrite(str(mask_root / "mine/masks/a/pot_wrong.png"), np.zeros((3, 3), np.uint8))
    with pytest.raises(UserError, match=r"pot_wrong\.png is 3 x 3"):
        ready(masks(), mask_root).load(0)
    cv2.imwrite(str(mask_root / "mine/masks/a/potato.png"), np.zeros((8, 12), np.uint8))
    with pytest.raises(UserError, match=r"potato\.png: its name begins with no class"):
        masks().setup(mask_root)
    with pytest.raises(MissingDataError, match=r"(?s)nowhere.*get it from"):
        masks(masks="nowhere").setup(mask_root)


# ---------------------------------------------------------------------------------------------- Hugging Face


def hub_rows(root, kind):
    """Rows as datasets of the hub hold them, from COCO in its own layout."""
    if kind == "boxes":
        base = write_objects365(root, 3)
        whole = json.loads((base / "train/zhiyuan_objv2_train.json").read_text())
        rows = []
        for image in whole["images"]:
            found = [a for a in whole["annotations"] if a["image_id"] == image["id"]]
            path = base / "train" / Path(image["file_name"]).relative_to("images/v1")
            objects = {
                "bbox": [[float(v) for v in a["bbox"]] for a in found],
                "category": [a["category_id"] for a in found],
                "iscrowd": [a["iscrowd"] for a in found],
            }
            rows.append({"image": str(path), "objects": objects, "image_id": image["id"]})
        return rows, base
    base = write_coco(root, 3)
    whole = json.loads((base / "annotations/panoptic_train2017.json").read_text())
    rows = []
    fields = ("id", "category_id", "area", "iscrowd")
    for annotation in whole["annotations"]:
        name = annotation["file_name"]
        rows.append(
            {
                "image": str(base / "train2017" / name.replace("png", "jpg")),
                "label": str(base / "annotations/panoptic_train2017" / name),
                "segments_info": [{k: s[k] for k in fields} for s in annotation["segments_info"]],
                "image_id": annotation["image_id"],
            }
        )
    return rows, base


def saved(rows, folder, columns, parquet):
    data = datasets.Dataset.from_list(rows)
    for column in columns:
        data = data.cast_column(column, datasets.Image())
    if parquet:
        folder.mkdir(parents=True)
        data.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    else:
        datasets.DatasetDict({"train": data}).save_to_disk(str(folder))


@pytest.fixture
def hf_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("parquet", [False, True])
def test_panoptic_of_the_hub(tmp_path, hf_cache, parquet):
    rows, _ = hub_rows(tmp_path, "panoptic")
    saved(rows, tmp_path / "hub" / "mine", ["image", "label"], parquet)
    options = {"kind": "panoptic", "annotations": "label", "id": "image_id", "vocabulary": "coco_panoptic_133"}
    reader = ready(HubDataset("mine", **options), tmp_path)
    official = ready(CocoPanoptic(), tmp_path)
    assert reader.gives == "map"
    assert reader.tasks == (Task.PANOPTIC,)
    assert len(reader) == len(official) == 3
    for i in range(3):
        (image_a, a), (image_b, b) = pickle.loads(pickle.dumps(reader)).load(i), official.load(i)
        assert reader.image_id(i) == official.image_id(i)
        assert np.array_equal(image_a, image_b)
        assert a.ids.equal(b.ids)
        assert a.labels.equal(b.labels)
        assert a.is_crowd.equal(b.is_crowd)
        assert a.areas.tolist() == b.areas.tolist()


def test_boxes_of_the_hub(tmp_path, hf_cache):
    from data_modules.formats import Objects365Boxes

    rows, _ = hub_rows(tmp_path, "boxes")
    saved(rows, tmp_path / "mine", ["image"], parquet=False)
    options = {"kind": "boxes", "annotations": "objects", "vocabulary": "objects365_v2_365"}
    reader = ready(HubDataset("mine", **options), tmp_path)
    official = ready(Objects365Boxes(), tmp_path)
    assert reader.gives == "boxes"
    for i in range(3):
        a, b = reader.load(i)[1], official.load(i)[1]
        assert isinstance(a, Boxes)
        assert a.xyxy.equal(b.xyxy)
        assert a.labels.equal(b.labels)


def test_label_maps_of_the_hub(tmp_path, hf_cache):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(2):
        cv2.imwrite(str(tmp_path / f"{i}.jpg"), rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.choice([0, 1, 2, 255], SIZE).astype(np.uint8))
        rows.append({"image": str(tmp_path / f"{i}.jpg"), "annotation": str(tmp_path / f"{i}.png")})
    saved(rows, tmp_path / "mine", ["image", "annotation"], parquet=True)
    reader = ready(HubDataset("mine", vocabulary=CLASSES, offset=1), tmp_path)
    values = cv2.imread(str(tmp_path / "1.png"), cv2.IMREAD_UNCHANGED).astype(int)
    assert reader.load(1)[1].class_map().tolist() == np.where(values == 255, VOID, values).tolist()
    with pytest.raises(UserError, match=r"train row \d: value 2 is no class"):
        ready(HubDataset("mine", vocabulary=CLASSES[:2], offset=1), tmp_path).load(0)
    with pytest.raises(UserError, match="no column 'mask', but"):
        HubDataset("mine", vocabulary=CLASSES, annotations="mask").setup(tmp_path)
    with pytest.raises(UserError, match=r"'valid': not loaded from folder .*mine"):
        HubDataset("mine", vocabulary=CLASSES, split="valid").setup(tmp_path)


def test_a_single_box_and_crowds_as_text(tmp_path, hf_cache):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((*SIZE, 3), np.uint8))
    objects = {"bbox": [[1.0, 2, 3, 4], [5.0, 6, 7, 8]], "category": [1, 1], "iscrowd": ["0", "1"]}
    saved([{"image": str(tmp_path / "a.jpg"), "objects": objects}], tmp_path / "mine", ["image"], parquet=False)
    reader = ready(HubDataset("mine", CLASSES, kind="boxes", annotations="objects"), tmp_path)
    assert reader.load(0)[1].xyxy.tolist() == [[1, 2, 4, 6]]


def test_an_offset_that_makes_void_a_class_is_refused(tmp_path):
    with pytest.raises(UserError, match="offset 2 gives values below 0"):
        HubDataset("mine", CLASSES, offset=2).read()


def test_the_split_of_a_folder_without_splits(tmp_path, hf_cache, caplog):
    rows, _ = hub_rows(tmp_path, "panoptic")
    options = {"kind": "panoptic", "annotations": "label", "vocabulary": "coco_panoptic_133"}
    for name, split in (("one", datasets.Split.TRAIN), ("two", None)):
        data = datasets.Dataset.from_list(rows, split=split)
        for column in ("image", "label"):
            data = data.cast_column(column, datasets.Image())
        data.save_to_disk(str(tmp_path / name))
        assert len(ready(HubDataset(name, **options), tmp_path)) == 3
    assert not caplog.records
    with pytest.raises(UserError, match=r"'validation': not loaded from folder .*one: it holds the split 'train'"):
        HubDataset("one", split="validation", **options).setup(tmp_path)
    HubDataset("two", split="validation", **options).setup(tmp_path)
    assert "two does not say which split it holds" in caplog.text


def test_names_that_are_neither_folder_nor_on_the_hub(tmp_path, monkeypatch):
    with pytest.raises(MissingDataError, match=r"(?s)a/b/c.*huggingface\.co"):
        HubDataset("a/b/c", vocabulary=CLASSES).locate(tmp_path)
    reader = HubDataset("some/thing", vocabulary=CLASSES)
    reader.locate(tmp_path)

    def unreachable(*args, **options):
        assert args[0] == "some/thing"
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"'some/thing'.*the hub \(there is no such folder\).*no network"):
        reader.read()


def test_colors_of_panoptic_maps_are_checked(tmp_path, hf_cache):
    rows, _ = hub_rows(tmp_path, "panoptic")
    cv2.imwrite(rows[1]["label"], color_of(np.full(SIZE, 999_999))[..., ::-1])
    saved(rows, tmp_path / "mine", ["image", "label"], parquet=False)
    reader = ready(HubDataset("mine", "coco_panoptic_133", kind="panoptic", annotations="label"), tmp_path)
    with pytest.raises(UserError, match=r"train row 1: .*999999"):
        reader.load(1)
    assert torch.is_tensor(reader.load(2)[1].ids)


def test_the_guide_is_right(tmp_path, monkeypatch):
    """Its walk-through, as it stands there, on data in the layout that it describes."""
    root = Path(__file__).resolve().parents[3]
    blocks = re.findall(r"```yaml\n(.*?)```", (root / "docs/own_data.md").read_text(), re.DOTALL)
    base = tmp_path / "data/bridges"
    base.mkdir(parents=True)
    for split in ("train", "val"):
        made = write_coco(tmp_path / split, split="x")
        (base / "photos").mkdir(exist_ok=True)
        (made / "x").rename(base / "photos" / split)
        content = json.loads((made / "annotations/panoptic_x.json").read_text())
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = {1: 1, 200: 10, 17: 2}[segment["category_id"]]
        (base / f"{split}.json").write_text(json.dumps(content))
        if split == "train":
            (made / "annotations/panoptic_x").rename(base / "train")
        else:
            shutil.make_archive(str(base / "val"), "zip", made / "annotations/panoptic_x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(blocks[0].replace("../", f"{root}/conf/").replace("r50", "mini"))
    experiment = Experiment({}, ["--config=experiment.yaml"])
    experiment.data.setup("fit")
    for reader in experiment.readers().values():
        assert len(reader) == 6
        assert {reader.vocabulary.names[k] for k in reader.load(1)[1].labels} == {"bolt", "crack", "concrete"}
    for block in blocks[1:]:
        parser = ArgumentParser()
        parser.add_subclass_arguments(Reader, "reader")
        parser.instantiate(parser.parse_object({"reader": yaml.safe_load(block)}))

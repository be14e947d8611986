"""COCO-style files of your own: classes from the file, contradictions, other names, images held out."""

import json

import pytest
from own_exports import STEMS, write_coco
from PIL import Image

from data_modules import CoTraining
from data_modules.formats import CocoBoxes, CocoInstances, HoldOut
from data_modules.inspection.problems import examine
from data_modules.vocabularies import OwnClass
from dataseg.structures import UserError

FILES = {"root": "mine", "annotations": "annotations.json", "images": "images"}


@pytest.fixture
def change(tmp_path):
    """Writes the dataset, and changes its JSON."""
    path = write_coco(tmp_path / "mine") / "annotations.json"

    def apply(edit=lambda content: None) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return apply


def collected(reader, root) -> list[tuple[bool, str]]:
    found = []
    reader.read_classes(root)
    reader.locate(root)
    reader.read(lambda message, benign=False: found.append((benign, message)))
    return found


@pytest.mark.parametrize("kind", [CocoBoxes, CocoInstances])
def test_the_files_own_classes(kind, change, tmp_path):
    reader = kind(**FILES, vocabulary=None)
    reader.setup(tmp_path)
    assert [(c.id, c.name) for c in reader.vocabulary.classes] == [(1, "bolt"), (2, "crack")]
    change(lambda c: c["categories"].append({"id": 3}))
    with pytest.raises(UserError, match=r"annotations.json: category 2 is \{'id': 3\}: it needs"):
        kind(**FILES, vocabulary=None).setup(tmp_path)


@pytest.mark.parametrize(
    ("names", "benign", "words"),
    [
        (
            ["crack", "bolt"],
            False,
            r"category 1 is 'bolt' in the file, 'crack' in the vocabulary, where 'bolt' has the",
        ),
        (["Bolt", "crack in rock"], True, "category 2 is 'crack' in the file, 'crack in rock' in the vocabulary"),
        (["bolt", "crack", "rust"], True, "has no category for rust of the vocabulary"),
        (["bolt"], True, r"category 2 \('crack'\) is not in the vocabulary"),
    ],
)
def test_contradictions_with_the_vocabulary(names, benign, words, change, tmp_path):
    if len(names) == 1:
        change(lambda c: c.update(annotations=[a for a in c["annotations"] if a["category_id"] == 1]))
    reader = CocoInstances(**FILES, vocabulary=[OwnClass(name, k) for k, name in enumerate(names, 1)])
    [(found_benign, message)] = collected(reader, tmp_path)
    assert found_benign == benign
    assert words.replace("\\", "") in message
    if not benign:
        with pytest.raises(UserError, match=words):
            reader.setup(tmp_path)


def test_train_file_against_val_file(change, tmp_path):
    train = CocoInstances(**FILES, vocabulary=None)
    (tmp_path / "mine" / "val.json").write_text((tmp_path / "mine" / "annotations.json").read_text())
    change(lambda c: c["categories"].reverse() or [d.update(id=k) for k, d in enumerate(c["categories"], 1)])
    val = CocoInstances(**FILES | {"annotations": "val.json"}, vocabulary=None)
    with pytest.raises(UserError, match=r"'mine' trains with vocabulary .* and is evaluated with"):
        CoTraining(train={"mine": train}, val={"mine": val}, ratios={"mine": 1}, root=tmp_path)


@pytest.mark.parametrize(("orientation", "words"), [("upright", "is turned"), ("stored", "is not turned")])
def test_exif_orientation_is_listed(orientation, words, change, tmp_path):
    change()
    path = tmp_path / f"mine/images/{STEMS[0]}.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)
    reader = CocoInstances(**FILES, vocabulary=None, orientation=orientation)
    reader.setup(tmp_path)
    (problem,) = examine(reader, 0).problems
    assert problem.kind == "EXIF orientation"
    assert words in problem.message
    assert not examine(reader, 1).problems


def test_an_image_that_is_listed_twice(change, tmp_path):
    def edit(content):
        content["images"].append(content["images"][0] | {"id": 77})

    change(edit)
    words = f"the images 0, 77 are all '{STEMS[0]}.jpg': give all of its annotations to one of them"
    with pytest.raises(UserError, match=words):
        CocoInstances(**FILES, vocabulary=None).setup(tmp_path)


def test_names_of_another_form(change, tmp_path):
    change(lambda c: [i.update(file_name=f"D:\\labels\\{i['file_name']}") for i in c["images"]])
    reader = CocoInstances(**FILES, vocabulary=None)
    reader.setup(tmp_path)
    assert [reader.load(k)[0].shape for k in range(3)] == [(48, 64, 3)] * 3
    assert reader.counts["names_found_in_another_form"] == 3
    change(lambda c: [i.update(file_name=f"{k}.png") for k, i in enumerate(c["images"])])
    with pytest.raises(UserError, match=r"states '0.png'; none of its 3 images is in .*images, which holds 'Br"):
        CocoInstances(**FILES, vocabulary=None).setup(tmp_path)


def test_a_stated_box_that_is_not_the_masks(change, tmp_path):
    change(lambda c: c["annotations"][0].update(bbox=[0, 0, 60, 40]))
    reader = CocoInstances(**FILES, vocabulary=None)
    reader.setup(tmp_path)
    assert not examine(reader, 1).problems
    [problem] = examine(reader, 0).problems
    assert problem.severity == "warning"
    assert "object 0 (bolt) states [0.0, 0.0, 60.0, 40.0], its mask [8.0, 6.0, 24.0, 22.0]" in problem.message


def test_held_out(change, tmp_path):
    parts = [CocoInstances(**FILES, vocabulary=None, hold_out=HoldOut(part, 0.2)) for part in ("train", "val")]
    for part in parts:
        part.setup(tmp_path)
    assert [part.image_id(k) for part in parts for k in range(len(part))] == ["1", "2", "0"]
    assert parts[1].index.image(0).file_name == f"{STEMS[0]}.jpg"
    assert len(parts[0].load(0)[1]) == len(parts[1].load(0)[1]) == 2
    with pytest.raises(UserError, match="no image in the part"):
        CocoInstances(**FILES, vocabulary=None, hold_out=HoldOut("val", 0.01)).setup(tmp_path)

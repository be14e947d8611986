import json
from collections import Counter

import pytest

from data_modules import vocabularies
from data_modules.vocabularies import FOLDER

NAMES = {
    "ade20k_150": (150, 100),
    "coco_panoptic_133": (133, 80),
    "objects365_v2_365": (365, 365),
    "cityscapes_19": (19, 8),
    "pascal_context_59": (59, 20),
    "pascal_context_459": (459, 20),
}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_vocabularies(name):
    vocabulary = vocabularies.load(name)
    assert (len(vocabulary), int(vocabulary.is_thing.sum())) == NAMES[name]
    assert vocabulary.name == name
    shared = [p for p, n in Counter(p for c in vocabulary.classes for p in c.prompts).items() if n > 1]
    assert not shared, "a prompt that names two classes ties them"
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert all(source["licence"] and source["repo"] for source in content["provenance"])
    assert content["notes"]


@pytest.mark.parametrize("name", NAMES)
def test_official_names(name):
    corrected, official = vocabularies.load(name), vocabularies.load(name, "official")
    assert official.names == corrected.names
    assert official.digest != corrected.digest
    assert all(c.prompts for c in official.classes)


def test_names_for_prompts_and_for_display():
    o365 = {c.id: c for c in vocabularies.load("objects365_v2_365").classes}
    assert (o365[53].name, o365[53].prompts) == ("Bakset", ("basket",))
    assert o365[13].prompts == ("cabinet", "shelf")
    assert {c.id: c for c in vocabularies.load("objects365_v2_365", "official").classes}[53].prompts == ("Bakset",)
    coco = {c.id: c for c in vocabularies.load("coco_panoptic_133").classes}
    assert (coco[112].name, coco[112].prompts) == ("door-stuff", ("door", "doors"))
    ade = vocabularies.load("ade20k_150")
    assert ade.names[:3] == ["wall", "building", "sky"]
    assert ade.index_of[1] == 0


def test_unknown_or_malformed_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="coco_panoptic_133"):
        vocabularies.load("coco_132")
    file = tmp_path / "mine.json"
    for text in ("{", "[]", '{"name": "a", "classes": [{"id": 1}]}', '{"name": "a", "classes": []}'):
        file.write_text(text)
        vocabularies.load.cache_clear()
        with pytest.raises(ValueError, match=r"mine\.json|vocabulary 'a'"):
            vocabularies.load(str(file))


def test_against_the_collected_class_lists(real_data):
    """Ids, order, thing flags and colours, against the lists they were taken from."""
    classes = {p.stem: json.loads(p.read_text()) for p in (real_data / "classes").glob("*.json")}

    def rows(name):
        return [(c.id, c.name, c.is_thing, c.color) for c in vocabularies.load(name).classes]

    ade = classes["ade20k_150"]["classes"]
    assert rows("ade20k_150") == [(c["id"], c["names"][0], c["isthing"] == 1, tuple(c["color"])) for c in ade]
    coco = classes["coco_panoptic_133"]["classes"]
    assert rows("coco_panoptic_133") == [(c["id"], c["name"], c["isthing"] == 1, tuple(c["color"])) for c in coco]
    o365 = classes["objects365_v2_365"]["classes"]
    assert [r[:2] for r in rows("objects365_v2_365")] == [(c["id"], c["name_official"].strip()) for c in o365]
    city = [c for c in classes["cityscapes_labels"]["classes"] if 0 <= c["trainId"] < 255]
    city = [
        (c["id"], c["name"], c["hasInstances"], tuple(c["color"])) for c in sorted(city, key=lambda c: c["trainId"])
    ]
    assert rows("cityscapes_19") == city
    for name in ("pascal_context_59", "pascal_context_459"):
        assert [r[:2] for r in rows(name)] == [(c["id"], c["name"]) for c in classes[name]["classes"]]

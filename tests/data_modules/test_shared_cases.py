"""Small broken datasets beside a checkout, where they are: right pixels, or one message that names the file."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data_modules.formats import CocoInstances
from data_modules.survey import survey
from data_modules.vocabularies import OwnClass
from dataseg.structures import UserError

CASES = Path(__file__).parents[3] / "shared/cases/data"
FOLDERS = ("05-polygon-shapes/data/shapes", "08-bbox-missing/data/bb", "09-rle-forms/data/rle", "16-json-kinds/data/js")
FILES = [path for folder in FOLDERS for path in sorted((CASES / folder).glob("*.json"))]
PYTHON = ("object is not", "BytesIO", "codec can't", "invalid literal", "Traceback", "NoneType")


def stop(message, benign=False):
    if not benign:
        raise UserError(message)


@pytest.mark.skipif(not FILES, reason=f"{CASES} is not there")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_right_pixels_or_one_message(path):
    classes = [OwnClass(name, number) for number, name in enumerate(("person", "car", "tree"), 1)]
    reader = CocoInstances(root=str(path.parent), annotations=path.name, images="photos", vocabulary=classes)
    message = str(path)  # of none
    try:
        reader.setup(path.parent)
        survey(reader, stop)
        targets = {reader.image_id(k): reader.load(k)[1] for k in range(len(reader))}
    except UserError as error:
        targets, message = {}, str(error)
    assert path.parent.name in message
    assert not any(words in message for words in PYTHON)
    wanted = np.load(path.parents[2] / "expected.npz")
    for image_id, target in targets.items():
        key = f"{path.stem}/{image_id}"
        if key not in wanted or bool(target.is_crowd.any()):
            continue
        found = np.zeros_like(wanted[key])
        for rle, label in zip(target.rles, target.labels.tolist(), strict=True):
            found[label] |= coco_mask.decode(rle).astype(bool)
        assert (found == wanted[key]).all()

import pytest
from fake_data import write_ade, write_coco, write_objects365


@pytest.fixture(scope="session")
def fake_root(tmp_path_factory):
    """A data root with ADE20k, COCO and Objects365, training and validation, in the official layouts."""
    root = tmp_path_factory.mktemp("datasets")
    for split in ("training", "validation"):
        write_ade(root, split=split, seed=len(split))
    for split in ("train2017", "val2017"):
        write_coco(root, split=split, seed=len(split))
    write_objects365(root)
    write_objects365(root, split="val", seed=1, masks=True)
    return root

"""Datasets read from zip archives, inner ones included, equal to the same files unpacked."""

import pickle
import shutil
import zipfile
from multiprocessing import get_context

import numpy as np
import pytest
from fake_data import write_ade, write_coco, write_objects365

from data_modules.formats import AdePanoptic, AdeSemantic, CocoPanoptic, Objects365Boxes
from dataseg.io import zip_archive
from dataseg.io.paths import exists, list_files, open_stream, read_bytes
from dataseg.io.zip_archive import split
from dataseg.structures import UserError

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASEG_CACHE", str(tmp_path / "cache"))


def pack(folder, archive, keep_folder=True, method=zipfile.ZIP_DEFLATED):
    """Put a folder's files into ``archive`` and delete it."""
    with zipfile.ZipFile(archive, "w", method) as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder.parent if keep_folder else folder))
    shutil.rmtree(folder)


def same(a, b):
    assert len(a) == len(b)
    for i in range(len(a)):
        (image_a, target_a), (image_b, target_b) = a.load(i), b.load(i)
        assert np.array_equal(image_a, image_b)
        assert a.image_id(i) == b.image_id(i)
        assert target_a.labels.tolist() == target_b.labels.tolist()
        if hasattr(target_a, "ids"):
            assert target_a.ids.equal(target_b.ids)


def two(tmp_path, write, reader):
    for name in ("plain", "zipped"):
        write(tmp_path / name)
    plain = reader()
    plain.setup(tmp_path / "plain")
    return plain, tmp_path / "zipped"


@pytest.mark.parametrize("keep_folder", [True, False])
def test_coco_with_zipped_folders(tmp_path, keep_folder):
    plain, root = two(tmp_path, write_coco, CocoPanoptic)
    base = root / "coco"
    pack(base / "train2017", base / "train2017.zip", keep_folder)
    pack(base / "annotations/panoptic_train2017", base / "annotations/panoptic_train2017.zip", keep_folder)
    reader = CocoPanoptic()
    reader.setup(root)
    same(plain, reader)


@pytest.mark.parametrize("inner", METHODS)
@pytest.mark.parametrize("outer", METHODS)
def test_coco_panoptic_as_downloaded(tmp_path, inner, outer):
    """The archive of annotations with its inner archives of PNGs, nothing unpacked."""
    plain, root = two(tmp_path, write_coco, CocoPanoptic)
    base = root / "coco"
    pack(base / "train2017", base / "train2017.zip")
    pack(base / "annotations/panoptic_train2017", base / "annotations/panoptic_train2017.zip", method=inner)
    pack(base / "annotations", base / "panoptic_annotations_trainval2017.zip", method=outer)
    before = sorted(root.rglob("*"))
    reader = CocoPanoptic()
    reader.setup(root)
    same(plain, reader)
    assert sorted(root.rglob("*")) == before, "nothing is unpacked beside the data"


def test_ade_and_objects365_as_archives(tmp_path):
    plain, root = two(tmp_path, lambda r: write_ade(r, split="validation"), lambda: AdeSemantic(split="validation"))
    pack(root / "ADEChallengeData2016", root / "ADEChallengeData2016.zip")
    for kind in (AdeSemantic, AdePanoptic):
        reader = kind(split="validation")
        reader.setup(root)
        assert len(reader) == 5
        reader.load(0)
    reader = AdeSemantic(split="validation")
    reader.setup(root)
    same(plain, reader)
    plain, root = two(tmp_path, write_objects365, Objects365Boxes)
    for patch in sorted((root / "objects365/train").glob("patch*")):
        pack(patch, patch.with_suffix(".zip"))
    reader = Objects365Boxes()
    reader.setup(root)
    same(plain, reader)


def _load_all(reader, results):
    for _ in range(20):
        for i in range(len(reader)):
            results.put(int(reader.load(i)[0].sum()))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_processes_share_an_open_archive(tmp_path, method):
    base = write_coco(tmp_path, 3)
    pack(base / "train2017", base / "train2017.zip")
    reader = CocoPanoptic()
    reader.setup(tmp_path)
    sums = [int(reader.load(i)[0].sum()) for i in range(3)]
    pickle.loads(pickle.dumps(reader)).load(0)
    context = get_context(method)
    queues = [context.SimpleQueue() for _ in range(2)]
    workers = [context.Process(target=_load_all, args=(reader, queue)) for queue in queues]
    for worker in workers:
        worker.start()
    for queue, worker in zip(queues, workers, strict=True):
        assert [queue.get() for _ in range(60)] == sums * 20
        worker.join()
        assert worker.exitcode == 0


def test_paths_into_archives(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/x.txt", "a/b/y.txt", "a/b/z.png"):
        (tmp_path / name).write_text(name)
    pack(tmp_path / "a", tmp_path / "a.zip")
    archive = tmp_path / "a.zip"
    assert split(tmp_path / "plain" / "x.txt") is None
    for name in ("", "a", "a/b", "a/x.txt", "a/b/z.png"):
        assert exists(archive / name)
    for name in ("b", "a/x", "a/b/y.tx", "a/bb"):
        assert not exists(archive / name)
    assert list_files(archive / "a", ".txt") == ["x.txt"]
    assert list_files(archive / "a/b", "") == ["y.txt", "z.png"]
    assert read_bytes(archive / "a/b/y.txt") == b"a/b/y.txt"
    with open_stream(archive / "a/x.txt") as stream:
        assert stream.read() == b"a/x.txt"
    with pytest.raises(UserError, match=r"a\.zip has no member 'a/nothing'"):
        read_bytes(archive / "a/nothing")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_member_written_twice_the_last_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as target:
        for text in ("first", "second"):
            target.writestr("x.txt", text)
    assert read_bytes(tmp_path / "a.zip/x.txt") == b"second"
    assert list_files(tmp_path / "a.zip", ".txt") == ["x.txt"]


def test_inner_archives_and_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.txt").write_text("x")
    pack(tmp_path / "a", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.write(tmp_path / "a.zip", "a.zip")

    def raise_problem(*args):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(zip_archive, "alone", raise_problem)
        with pytest.raises(UserError, match=r"a\.zip: cannot be unpacked to .*Permission denied.*data\.cache"):
            read_bytes(tmp_path / "b.zip/a.zip/a/x.txt")
    assert read_bytes(tmp_path / "b.zip/a.zip/a/x.txt") == b"x"
    monkeypatch.setattr(zip_archive, "alone", raise_problem)
    zip_archive._inner.cache_clear()
    assert read_bytes(tmp_path / "b.zip/a.zip/a/x.txt") == b"x", "what is there is used"


def test_damaged_archives_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.txt").write_bytes(bytes(range(256)) * 9)
    pack(tmp_path / "a", tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.zip: not a readable zip archive"):
        exists(tmp_path / "b.zip/a/x.txt")
    (tmp_path / "c.zip").write_bytes(whole.replace(b"\x03\x04\x05\x06\x07\x08", b"\x03\x04\x00\x06\x07\x08", 1))
    with pytest.raises(UserError, match=r"c\.zip: damaged at 'a/x\.txt'"):
        read_bytes(tmp_path / "c.zip/a/x.txt")

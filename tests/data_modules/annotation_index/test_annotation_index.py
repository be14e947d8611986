"""Streaming JSON, Arrow indexes, and the cache that they are kept in."""

import io
import json
import logging
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
from fake_data import write_ade, write_coco, write_objects365
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.annotation_index import build, coco_json, table
from data_modules.annotation_index import records as record_stream
from data_modules.annotation_index.coco_json import AnnotationTable, ImageTable
from data_modules.annotation_index.records import stream_records
from data_modules.annotation_index.table import Index, Packed, PackedBuilder, image_batch
from data_modules.formats import (
    AdePanoptic,
    CocoBoxes,
    CocoInstances,
    CocoPanoptic,
    Objects365Boxes,
    Objects365Instances,
)
from dataseg.structures import UserError

READERS = [
    lambda: CocoPanoptic(),
    lambda: AdePanoptic(),
    lambda: Objects365Boxes(),
    lambda: Objects365Instances(),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Every index is kept on disk."""
    monkeypatch.setenv("DATASEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "CACHED_FROM", 0)
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def root(tmp_path):
    write_coco(tmp_path)
    write_ade(tmp_path, split="validation")
    write_objects365(tmp_path)
    write_objects365(tmp_path, split="val", seed=1, masks=True)
    return tmp_path


def content(reader):
    """All that an index holds, as plain values."""
    found = []
    for i in range(len(reader)):
        part, _ = reader.index._find(i)
        columns = {
            name: reader.index.packed(i, name) if isinstance(c, Packed) else reader.index.column(i, name).tolist()
            for name, c in part.columns.items()
        }
        found.append((reader.index.image(i), columns))
    return found


def ready(reader, root):
    reader.setup(root)
    return reader


# ------------------------------------------------------------------------------------------------------ JSON

KEYS = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(VALUES, min_size=1, max_size=12) | st.lists(
    st.fixed_dictionaries({"id": VALUES, "segments": st.lists(st.fixed_dictionaries({"id": VALUES}), max_size=2)}),
    min_size=1,
    max_size=12,
)


@given(
    before=st.dictionaries(KEYS, VALUES, max_size=3),
    records=RECORDS,
    block=st.integers(1, 90),
    style=st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}]),
)
@settings(max_examples=300, deadline=None)
def test_a_stream_gives_what_the_whole_file_gives(tmp_path_factory, before, records, block, style):
    before.pop("annotations", None)
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(json.dumps({**before, "annotations": records, "after": 1}, **style), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_stream, "BLOCK", block)
        found = list(stream_records(path, "annotations"))
    assert [record for _, batch in found for record in batch] == records
    assert [first for first, _ in found] == np.cumsum([0, *(len(batch) for _, batch in found)])[:-1].tolist()


@given(data=st.binary(max_size=60) | st.text('{}[]",:1ae\\u ', max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_anything_else_is_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "broken.json"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_stream, "BLOCK", 5)
        with pytest.raises(UserError, match=r"broken\.json"):
            list(stream_records(path, "annotations"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"annotations": [{"a": 1}, {"a": 2}, {"a" 3}]}', "near record 0|':' delimiter"),
        ('{"annotations": [{"a": 1}', "ends too early"),
        ('{"annotations": {}}', "must be a list with at least one record"),
        ('{"annotations": []}', "must be a list with at least one record"),
        ("[1]", "must hold an object"),
        ('{"annotations": [' + "[" * 100_000, "recursion|nest"),
        ("", "must hold an object"),
    ],
)
def test_broken_files_say_where(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"(?s)a\.json.*({words})"):
        list(stream_records(path, "annotations"))


def test_a_mistake_far_inside_is_found_without_reading_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(record_stream, "BLOCK", 1000)
    path = tmp_path / "a.json"
    good = '{"id": 1, "bbox": [1, 2, 3, 4]}'
    path.write_text(f'{{"annotations": [{", ".join([good] * 500)}, {{"id": 5 5}}, {", ".join([good] * 500_000)}]}}')
    read = []
    with pytest.raises(UserError, match=r"a\.json.*near record \d+"):
        list(stream_records(path, "annotations", advance=read.append))
    assert sum(read) < 3 << 20 < path.stat().st_size


def test_progress_covers_the_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"annotations": [{"id": i} for i in range(1000)]}))
    read = []
    list(stream_records(path, "annotations", advance=read.append))
    assert sum(read) == path.stat().st_size


# ------------------------------------------------------------------------------------------------------ index


@given(st.lists(st.lists(st.binary(max_size=5), max_size=4), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_an_index_gives_back_what_was_put_in(tmp_path_factory, rows, per_batch):
    flat = [value for row in rows for value in row]
    numbers = np.arange(len(flat), dtype=np.int64)
    boxes = np.random.default_rng(0).random((len(flat), 4)).astype(np.float32)
    ends = np.cumsum([0, *map(len, rows)])
    batches = []
    for start in range(0, len(rows), per_batch):
        end = min(start + per_batch, len(rows))
        a, b = ends[start], ends[end]
        names = [str(i).encode() for i in range(start, end)]
        columns = {"n": numbers[a:b], "xyxy": boxes[a:b], "is_crowd": numbers[a:b] % 2 == 0, "rle": flat[a:b]}
        sizes = np.array([(i + 1, i + 2) for i in range(start, end)], np.int32)
        batches.append(image_batch(names, names, sizes, np.diff(ends[start : end + 1]), columns, names))
    table = Index(batches)
    for found in (table, pickle.loads(pickle.dumps(table))):
        assert len(found) == len(rows)
        for i, row in enumerate(rows):
            assert found.image(i) == (str(i), str(i), (i + 1, i + 2), str(i))
            assert found.packed(i, "rle") == row
            assert found.column(i, "n").tolist() == numbers[ends[i] : ends[i + 1]].tolist()
            assert found.column(i, "is_crowd").dtype == np.bool_
            assert np.array_equal(found.column(i, "xyxy"), boxes[ends[i] : ends[i + 1]])
        assert found.all("n").tolist() == numbers.tolist()
        with pytest.raises(IndexError):
            found.image(len(rows))
        with pytest.raises(TypeError):
            found.column(0, "rle")


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="3 segments but 2"):
        image_batch([b"a"], [b"a"], np.ones((1, 2), np.int32), np.array([3]), {"label": np.arange(2)})


@given(st.lists(st.binary(max_size=9), max_size=20))
@settings(deadline=None)
def test_packed_bytes(values):
    builder = PackedBuilder()
    builder.extend(values[:7])
    builder.extend(values[7:])
    for packed in (builder.finish(), Packed.of(values)):
        assert [packed[i] for i in range(len(packed))] == values
        assert packed.arrow(1, len(values)).to_pylist() == values[1:] if values else True


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_grouping_by_image_is_a_stable_sort(image, step):
    table = AnnotationTable.__new__(AnnotationTable)
    table.rows = np.zeros(len(image), dtype=coco_json.RECORD)
    table.rows["image"] = image
    table.per_image = np.bincount(image, minlength=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coco_json, "_STEP", step)
        assert table.by_image().tolist() == np.argsort(image, kind="stable").tolist()


@pytest.mark.parametrize("annotations_first", [False, True])
def test_order_within_the_file_does_not_matter(tmp_path, annotations_first):
    base = write_objects365(tmp_path)
    path = base / "train/zhiyuan_objv2_train.json"
    expected = content(ready(Objects365Boxes(), tmp_path))
    whole = json.loads(path.read_text())
    if annotations_first:
        whole = dict(reversed(whole.items()))
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random(len(whole["annotations"])) + [a["id"] * 1.5 for a in whole["annotations"]])
    whole["annotations"] = [whole["annotations"][k] for k in order]
    path.write_text(json.dumps(whole))
    found = content(ready(Objects365Boxes(), tmp_path))
    assert [row for row, _ in found] == [row for row, _ in expected]
    for (_, a), (_, b) in zip(found, expected, strict=True):
        assert sorted(map(tuple, a["xyxy"])) == sorted(map(tuple, b["xyxy"]))


def test_blocks_of_images_do_not_change_the_index(root, monkeypatch):
    whole = [content(ready(make(), root)) for make in READERS]
    monkeypatch.setattr(table, "BLOCK", 2)
    monkeypatch.setattr(coco_json, "BLOCK", 2)
    monkeypatch.setattr("data_modules.formats.panoptic_reader.BLOCK", 2)
    monkeypatch.setattr(record_stream, "_BATCH", 1)
    readers = [ready(make(), root) for make in READERS]
    assert [content(reader) for reader in readers] == whole
    assert len(readers[2].index._parts) > 1


# ------------------------------------------------------------------------------------------------------ cache


def test_cached_indexes_are_equal_and_used_again(root, cache, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "CACHED_FROM", 1 << 40)
        plain = [ready(make(), root) for make in READERS]
    first = [ready(make(), root) for make in READERS]
    assert len([p for p in cache.iterdir() if p.is_dir()]) == len(READERS)
    monkeypatch.setattr(build, "_build", lambda *args: pytest.fail("built again"))
    again = [ready(make(), root) for make in READERS]
    for a, b, c in zip(plain, first, again, strict=True):
        assert content(a) == content(b) == content(c) == content(pickle.loads(pickle.dumps(c)))
        assert a.counts == b.counts == c.counts
        for i in range(len(a)):
            image, target = c.load(i)
            assert np.array_equal(image, a.load(i)[0])
            assert target.labels.equal(a.load(i)[1].labels)
    assert not list(cache.glob(".*")), "no temporary files are left"


def test_the_cache_follows_file_settings_and_reader(root, cache, monkeypatch):
    def folders():
        return {p for p in cache.iterdir() if p.is_dir()}

    path = root / "objects365/train/zhiyuan_objv2_train.json"
    ready(Objects365Boxes(), root)
    one = folders()
    reader = ready(Objects365Boxes(skip=["patch1/objects365_v1_00000003.jpg"]), root)
    assert len(reader) == 6
    assert len(folders()) == 2
    content_ = json.loads(path.read_text())
    content_["annotations"] = content_["annotations"][:3]
    path.write_text(json.dumps(content_))
    assert len(ready(Objects365Boxes(), root).index.all("label")) == 3
    assert len(folders()) == 2, "the index of the older file is gone"
    assert not folders() & one
    os.utime(path, ns=(1, 1))
    two = folders()
    ready(Objects365Boxes(), root)
    assert len(folders() - two) == 1
    monkeypatch.setattr(build, "READER_VERSION", 99)
    three = folders()
    ready(Objects365Boxes(), root)
    assert len(folders() - three) == 1


def test_damaged_caches_are_built_anew(root, cache):
    expected = content(ready(CocoPanoptic(), root))
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    for name, damage in [("index.arrow", b"x" * 99), ("index.arrow", b""), ("about.json", b"{")]:
        (folder / name).write_bytes(damage)
        assert content(ready(CocoPanoptic(), root)) == expected
    (folder / "index.arrow").unlink()
    assert content(ready(CocoPanoptic(), root)) == expected


@pytest.mark.parametrize("part", [".", "index.arrow", "about.json"])
def test_what_others_could_have_made_is_not_used(root, cache, part, monkeypatch, caplog):
    expected = content(ready(CocoPanoptic(), root))
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    (folder / part).chmod(0o777)
    assert content(ready(CocoPanoptic(), root)) == expected
    assert "can be written to by others" in caplog.text
    (folder / part).chmod(0o755)
    if os.getuid() == 0:
        os.chown(folder / part, 4321, -1)
        caplog.clear()
        assert content(ready(CocoPanoptic(), root)) == expected
        assert "belongs to user 4321" in caplog.text
    (own,) = [p for p in cache.iterdir() if p.name.endswith(f"-u{os.getuid()}")]
    monkeypatch.setattr(build, "_build", lambda *args: pytest.fail("built again"))
    (folder / part).chmod(0o777)
    assert content(ready(CocoPanoptic(), root)) == expected
    assert own.is_dir()


def test_a_changed_index_is_built_anew(root, cache, caplog):
    """Of the same size and still an index."""
    expected = content(ready(CocoPanoptic(), root))
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    whole = (folder / "index.arrow").read_bytes()
    name = expected[0][0].file_name.encode()
    (folder / "index.arrow").write_bytes(whole.replace(name, b"../" + name[3:]))
    assert content(ready(CocoPanoptic(), root)) == expected
    assert "its hash is another than was noted" in caplog.text
    assert (folder / "index.arrow").read_bytes() == whole


def test_a_failed_build_leaves_nothing(root, cache):
    path = root / "objects365/train/zhiyuan_objv2_train.json"
    path.write_text(path.read_text().replace('"category_id": 5', '"category_id": 999'))
    with pytest.raises(UserError, match=r"zhiyuan_objv2_train\.json: annotation \d+ .*999"):
        Objects365Boxes().setup(root)
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []


def test_a_cache_that_cannot_be_written_is_named(root, cache):
    cache.parent.write_text("a file")
    with pytest.raises(UserError, match=r"cannot keep its index.*DATASEG_CACHE"):
        CocoPanoptic().setup(root)


def test_a_finished_index_needs_no_lock(root, cache, monkeypatch):
    expected = content(ready(CocoPanoptic(), root))
    monkeypatch.setattr(build, "alone", lambda *args: pytest.fail("a read-only cache refuses the lock"))
    assert content(ready(CocoPanoptic(), root)) == expected


def _setup(root, barrier, results, log):
    logging.basicConfig(level=logging.INFO, stream=(text := io.StringIO()), force=True)
    build.CACHED_FROM = 0
    slow = build._build

    def counted(*args):
        with log.get_lock():
            log.value += 1
        time.sleep(0.5)
        slow(*args)

    build._build = counted
    reader = Objects365Boxes()
    barrier.wait()
    reader.setup(root)
    results.put((len(reader), len(reader.index.all("label")), "waiting" in text.getvalue()))


def test_one_process_builds_while_the_others_wait(root, cache):
    context = multiprocessing.get_context("fork")
    results, builds, barrier = context.SimpleQueue(), context.Value("i", 0), context.Barrier(3)
    workers = [context.Process(target=_setup, args=(root, barrier, results, builds)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert builds.value == 1
    assert {f[:2] for f in found} == {(7, 24)}
    assert sum(waited for *_, waited in found) == 2


def test_small_files_are_read_each_time(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DATASEG_CACHE", str(tmp_path / "cache"))
    ready(CocoPanoptic(), root)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------- records, run lengths


def test_all_mistakes_are_collected_when_asked(tmp_path):
    base = write_objects365(tmp_path, 3)
    path = base / "train/zhiyuan_objv2_train.json"
    whole = json.loads(path.read_text())
    whole["annotations"][2]["category_id"] = 999
    whole["annotations"][4]["bbox"] = [1, 2, 3, float("inf")]
    whole["annotations"][9]["image_id"] = 77
    del whole["images"][1]["height"]
    path.write_text(json.dumps(whole))
    reader = Objects365Boxes()
    reader.locate(tmp_path)
    heard = []
    reader.read(lambda message, benign=False: heard.append(message))
    assert len(reader) == 2
    assert "images/v1/patch1/objects365_v1_00000001.jpg' states height none and width 56" in heard[0]
    assert any("annotation 9" in h and "77" in h for h in heard)
    with pytest.raises(UserError, match="image 1"):
        reader.read()


def test_an_image_table_in_the_mixed_case(tmp_path):
    path = tmp_path / "a.json"
    names = ["a/b/1.jpg", "b/2.jpg", "3.jpg"]
    images = [{"id": k, "file_name": n, "height": 1, "width": 1} for k, n in enumerate(names)]
    path.write_text(json.dumps({"images": images}))
    table = ImageTable(path, frozenset({"b/1.jpg"}), pytest.fail)
    assert [table.row_of[k] for k in (0, 1, 2, 1.0)] == [-1, 0, 1, 0]
    assert table.row_of.all([2, 0]).tolist() == [1, -1]
    for unknown in (3, 0.5, "0", None, float("nan"), 10**30):
        with pytest.raises(KeyError):
            table.row_of[unknown]
    for unknown in ([3], [0.5], ["0"], [None], [10**30]):
        with pytest.raises((KeyError, TypeError)):
            table.row_of.all(unknown)
    assert [table.file_names[i] for i in range(2)] == [b"b/2.jpg", b"3.jpg"]


def test_bad_run_lengths_name_file_and_record(tmp_path):
    base = write_objects365(tmp_path, split="val", masks=True)
    path = base / "o365_instance_seg_val.json"
    whole = json.loads(path.read_text())
    whole["annotations"][3]["segmentation"] = {"size": [40, 56], "counts": "abc"}
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=r"o365_instance_seg_val\.json: annotation 3 \(id \d+\): .*run lengths"):
        Objects365Instances().setup(tmp_path)


def test_coco_boxes_and_instances(tmp_path):
    base = write_objects365(tmp_path, split="val", masks=True)
    annotations, images = str(base / "o365_instance_seg_val.json"), str(base / "val")
    options = {"annotations": annotations, "images": images, "vocabulary": "objects365_v2_365"}
    boxes = ready(CocoBoxes(root=str(base), **options), tmp_path)
    masks = ready(CocoInstances(root=str(base), **options), tmp_path)
    reference = ready(Objects365Boxes(split="val"), tmp_path)
    assert len(boxes) == len(masks) == 7
    assert content(boxes) == content(reference)
    assert boxes.counts == reference.counts
    image, target = boxes.load(2)
    assert image.shape == (40, 56, 3)
    assert target.xyxy.tolist() == reference.load(2)[1].xyxy.tolist()
    assert masks.load(2)[1].is_crowd.sum() == 1


def test_the_mini_suite_starts_at_once(root):
    start = time.perf_counter()
    for make in READERS:
        ready(make(), root)
    assert time.perf_counter() - start < 1

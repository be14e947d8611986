import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.structures import (
    VOID,
    Batch,
    Boxes,
    ClassEmbeddings,
    ClassSpec,
    InstanceMasks,
    Proposals,
    Sample,
    SegmentMap,
    Task,
    Vocabulary,
)

NAMES = st.text(min_size=1, max_size=8).filter(str.strip)
COLORS = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def vocabularies(draw):
    ids = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True))
    prompts = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
    classes = tuple(ClassSpec(i, draw(NAMES), draw(st.booleans()), draw(prompts), draw(COLORS)) for i in ids)
    return Vocabulary(draw(NAMES), classes)


@settings(deadline=None, max_examples=50)
@given(vocabularies())
def test_vocabulary_round_trip(vocabulary):
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    assert again.digest == vocabulary.digest
    assert len(again.digest) == 12
    count = len(vocabulary)
    assert vocabulary.is_thing.shape == (count,)
    assert vocabulary.is_thing.dtype == torch.bool
    assert vocabulary.colors.shape == (count, 3)
    assert vocabulary.colors.dtype == torch.uint8
    assert [vocabulary.index_of[c.id] for c in vocabulary.classes] == list(range(count))


def one_class(**changes):
    record = {"id": 3, "name": "cat", "is_thing": True, "color": [1, 2, 3]}
    return {"name": "pets", "classes": [{**record, **changes}]}


def test_vocabulary_from_file(tmp_path):
    path = tmp_path / "pets.json"
    path.write_text(json.dumps(one_class()), encoding="utf-8")
    vocabulary = Vocabulary.load(path)
    assert vocabulary.classes == (ClassSpec(3, "cat", True, ("cat",), (1, 2, 3)),)
    assert vocabulary.names == ["cat"]


def test_digest_sees_what_the_classifier_sees():
    digests = {
        Vocabulary.from_json(one_class(**c)).digest
        for c in ({}, {"id": 4}, {"name": "dog"}, {"is_thing": False}, {"prompts": ["kitten"]})
    }
    assert len(digests) == 5
    assert Vocabulary.from_json(one_class(color=[9, 9, 9])).digest == Vocabulary.from_json(one_class()).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a vocabulary file"),
        ("[]", "not a vocabulary file"),
        ("{}", "classes"),
        (json.dumps(one_class(color=[0, 0, 300])), r"'pets', class 0.*color must be three values 0-255"),
        (json.dumps(one_class(id="x")), "'pets', class 0.*invalid literal"),
        (json.dumps(one_class(prompts=["cat", " "])), "class 0.*needs at least one non-empty prompt"),
        (json.dumps({"name": "pets", "classes": []}), "has no class"),
        (json.dumps({"name": "pets", "classes": one_class()["classes"] * 2}), r"lists the ids \[3\] twice"),
    ],
)
def test_malformed_vocabulary_names_file_and_fault(tmp_path, content, message):
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        Vocabulary.load(path)
    assert str(error.value).startswith(f"{path}: not a vocabulary file")
    with pytest.raises(ValueError, match=r"missing\.json: not a vocabulary file"):
        Vocabulary.load(tmp_path / "missing.json")


def test_class_map():
    ids = torch.tensor([[0, 1, VOID], [2, 2, 1]], dtype=torch.int16)
    plain = SegmentMap(ids, torch.tensor([7, 5, 7]))
    assert plain.class_map().tolist() == [[7, 5, VOID], [7, 7, 5]]
    assert plain.class_map().dtype == torch.int64
    assert plain.size == (2, 3)
    assert len(plain) == 3
    crowd = SegmentMap(ids, torch.tensor([7, 5, 7]), is_crowd=torch.tensor([False, False, True]))
    assert crowd.class_map().tolist() == [[7, 5, VOID], [VOID, VOID, 5]]
    empty = SegmentMap(torch.full((2, 2), VOID), torch.zeros(0, dtype=torch.int64))
    assert empty.class_map().tolist() == [[VOID, VOID]] * 2


LABELS = torch.tensor([1, 2])
RLE = {"size": [2, 3], "counts": b"6"}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SegmentMap(torch.zeros(1, 2, 2, dtype=torch.int64), LABELS), r"must be \[H, W\]"),
        (lambda: SegmentMap(torch.zeros(2, 2), LABELS), "must be integers"),
        (
            lambda: SegmentMap(torch.zeros(2, 2, dtype=torch.int64), LABELS, scores=torch.ones(3)),
            "2 labels but 3 scores",
        ),
        (lambda: SegmentMap(torch.zeros(2, 2, dtype=torch.int64), LABELS, areas=torch.ones(1)), "2 labels but 1 areas"),
        (lambda: Boxes(torch.zeros(2, 5), LABELS), r"must be \[K, 4\]"),
        (lambda: Boxes(torch.zeros(3, 4), LABELS), "2 labels but 3 xyxy"),
        (lambda: InstanceMasks([RLE], LABELS, (2, 3)), "2 labels but 1 rles"),
        (lambda: InstanceMasks([RLE, RLE], LABELS, (3, 2)), "an RLE of size"),
        (lambda: InstanceMasks([RLE, None], LABELS, (2, 3), is_crowd=torch.tensor([True])), "2 labels but 1 is_crowd"),
        (lambda: Proposals(torch.zeros(2, 3), torch.zeros(2, 3, 4, 4)), r"need \[B, Q, C \+ 1\]"),
        (lambda: Proposals(torch.zeros(2, 3, 5), torch.zeros(2, 4, 4, 4)), "differ in batch or queries"),
        (lambda: ClassEmbeddings(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)), r"need vectors \[S, D\]"),
        (lambda: sample(torch.zeros(3, 4, 4)), "must be uint8"),
        (lambda: sample(torch.zeros(1, 4, 4, dtype=torch.uint8)), "must be uint8"),
    ],
)
def test_records_refuse_what_does_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def sample(image, name="a", **fields):
    target = SegmentMap(torch.zeros(image.shape[-2:], dtype=torch.int32), torch.tensor([4]))
    return Sample(image, target, name, original_size=(9, 9), **fields)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    size=st.sampled_from([None, (40, 48)]),
)
def test_collate_pads_below_and_to_the_right(sizes, size):
    images = [torch.full((3, *size), i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    samples = [
        sample(image, str(i), seed=i, counts={"seen": 1, f"only_{i}": i}, is_padding=i == 1)
        for i, image in enumerate(images)
    ]
    batch = Batch.collate(samples, "toy", Task.PANOPTIC, size)
    count, channels, rows, columns = batch.images.shape
    assert (count, channels) == (len(sizes), 3)
    assert batch.images.dtype == torch.uint8
    if size:
        assert (rows, columns) == size
    else:
        assert rows % 32 == columns % 32 == 0
        assert 0 <= rows - max(s[0] for s in sizes) < 32
        assert 0 <= columns - max(s[1] for s in sizes) < 32
    for padded, image, (height, width) in zip(batch.images, images, sizes, strict=True):
        assert torch.equal(padded[:, :height, :width], image)
    assert len(batch) == len(sizes)
    assert (batch.dataset, batch.task) == ("toy", Task.PANOPTIC)
    assert batch.sizes == sizes
    assert batch.image_ids == [str(i) for i in range(count)]
    assert batch.seeds == list(range(count))
    assert batch.is_padding == [i == 1 for i in range(count)]
    assert batch.original_sizes == [(9, 9)] * count
    assert batch.counts == {"seen": count, **{f"only_{i}": i for i in range(count)}}


def test_batch_refuses_fields_of_another_length():
    batch = Batch.collate([sample(torch.zeros(3, 4, 4, dtype=torch.uint8))], "toy", Task.SEMANTIC)
    with pytest.raises(ValueError, match="Batch of 1 images has 2 seeds"):
        Batch(**{**vars(batch), "seeds": [1, 2]})


def test_records_move_field_by_field():
    """To the "meta" device, which every machine has: each tensor goes there, at any depth, and the rest stays."""
    batch = Batch.collate([sample(torch.zeros(3, 4, 4, dtype=torch.uint8), seed=3)], "toy", Task.SEMANTIC)
    batch.targets = [InstanceMasks([RLE, None], LABELS, (2, 3), boxes=torch.zeros(2, 4))]
    moved = batch.to("meta")
    assert moved.images.device.type == moved.targets[0].labels.device.type == "meta"
    assert moved.targets[0].boxes.device.type == "meta"
    assert moved.targets[0].rles == [RLE, None]
    assert moved.targets[0].scores is None
    assert moved.seeds == [3]
    assert batch.images.device.type == batch.targets[0].labels.device.type == "cpu", "the original stays"
    assert Boxes(torch.zeros(2, 4), LABELS).to("meta").xyxy.device.type == "meta"
    assert ClassEmbeddings(torch.zeros(2, 4), LABELS).to("meta").vectors.device.type == "meta"

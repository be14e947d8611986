import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataseg.losses.points import (
    MaskTargets,
    SharedPoints,
    check_geometry,
    sample_logits,
    select_uncertain,
    target_labels,
    uniform_points,
)
from dataseg.structures import VOID, InstanceMasks, SegmentMap
from dataseg.structures.geometry import ImageGeometry

CPU = torch.device("cpu")


def at(target, geometry, points):
    """Values and validity of one target at points of the padded input."""
    values, valid = MaskTargets.of([target], [geometry.size], geometry.padded).at(points[None])
    return values[0], valid[0]


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    count=st.integers(0, 5),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.int64]),
)
def test_map_equals_k_masks_equals_grid_sample(height, width, count, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, count, (height, width), generator=generator).to(dtype) if count else None
    ids = torch.full((height, width), VOID, dtype=dtype) if ids is None else ids
    points = torch.rand(33, 2, generator=generator)
    points[0], points[1] = 0.0, 1.0  # corners of the image: half of the bilinear support lies outside

    geometry = ImageGeometry((height, width), (height, width))
    values, valid = at(SegmentMap(ids, torch.arange(count)), geometry, points)

    assert values.shape == (count, 33)
    assert values.dtype == torch.float32
    assert valid.shape == (33,)
    assert valid.dtype == torch.bool
    masks = torch.stack([ids == k for k in range(count)]) if count else torch.zeros(0, height, width, dtype=torch.bool)
    as_masks = MaskTargets(None, masks[None].to(torch.uint8), (ids == VOID)[None], count)
    dense, dense_valid = (found[0] for found in as_masks.at(points[None]))
    torch.testing.assert_close(values, dense)
    assert torch.equal(valid, dense_valid)
    if count:
        expected = sample_logits(masks[None].float(), points[None])[0]
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    void = sample_logits((ids == VOID)[None, None].float(), points[None])[0, 0]
    assert torch.equal(valid[void > 1e-5], torch.zeros(int((void > 1e-5).sum()), dtype=torch.bool))
    assert valid[void == 0].all() or (void[valid].max() < 1e-5)


def test_sample_logits_shape_and_value():
    logits = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(2, 3, 1, 1)
    centre = torch.full((2, 5, 2), 0.5)
    sampled = sample_logits(logits, centre)
    assert sampled.shape == (2, 3, 5)
    torch.testing.assert_close(sampled, torch.full((2, 3, 5), 1.5))


@settings(deadline=None, max_examples=40)
@given(
    images=st.integers(1, 3),
    maps=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 10_000),
)
def test_shared_points_equal_grid_sample(images, maps, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, maps, height, width, generator=generator)
    points = torch.rand(images, 33, 2, generator=generator)
    points[:, 0], points[:, 1] = 0.0, 1.0
    sampled = SharedPoints.of(points, height, width).sample(logits)
    assert sampled.shape == (images, maps, 33)
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled, sample_logits(logits, points), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (29, 18)])
def test_instances_equal_map(toys, size):
    target = toys.map(size, 6, 4, seed=1)
    frame = ImageGeometry((32, 32), tuple(size))
    points = uniform_points(5, 0, (200,), CPU)
    from_map = at(target, frame, points)
    from_rle = at(toys.instances(target), frame, points)
    torch.testing.assert_close(from_map[0], from_rle[0])
    assert torch.equal(from_map[1], from_rle[1])
    assert not from_map[1].all(), "the toy has void"
    assert torch.equal(target_labels(toys.instances(target)), target.labels)


def test_several_targets_are_filled_up(toys):
    """Of other sizes and numbers, maps and masks: each as alone, and nothing beyond its own."""
    maps = [toys.map((20, 24), 3, 4, seed=1), toys.map((32, 18), 6, 4, seed=2)]
    points = torch.rand(2, 50, 2)
    sizes, padded = [(20, 24), (32, 18)], (32, 32)
    for targets in (maps, [toys.instances(maps[0]), toys.instances(maps[1])], [toys.instances(maps[0]), maps[1]]):
        values, valid = MaskTargets.of(targets, sizes, padded).at(points)
        assert values.shape == (2, 6, 50)
        assert valid.shape == (2, 50)
        for i, target in enumerate(maps):
            alone = at(target, ImageGeometry(padded, sizes[i]), points[i])
            torch.testing.assert_close(values[i, : len(target)], alone[0])
            assert not values[i, len(target) :].any()
            assert torch.equal(valid[i], alone[1])


def test_padding_of_the_target_is_not_looked_at(toys):
    target = toys.map((20, 24), 3, 4)
    padded = torch.full((32, 32), VOID, dtype=torch.int32)
    padded[:20, :24] = target.ids
    points = uniform_points(5, 0, (100,), CPU)
    frame = ImageGeometry((32, 32), (20, 24))
    alone = at(target, frame, points)
    inside = at(SegmentMap(padded, target.labels), frame, points)
    assert torch.equal(alone[0], inside[0])
    assert torch.equal(alone[1], inside[1])


def test_unknown_masks_and_crowds_are_void_but_not_targets(toys):
    left = torch.zeros(8, 8)
    left[:, :3] = 1
    crowd = torch.zeros(8, 8)
    crowd[:4] = 1
    target = InstanceMasks(
        rles=[toys.rle(left), None, toys.rle(crowd)],
        labels=torch.tensor([4, 5, 6]),
        size=(8, 8),
        is_crowd=torch.tensor([False, False, True]),
        boxes=torch.tensor([[0.0, 0, 3, 8], [5.5, 5.5, 7.5, 7.5], [0, 0, 8, 4]]),
    )
    centres = (torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="xy"), -1) + 0.5) / 8
    values, valid = at(target, ImageGeometry((8, 8), (8, 8)), centres.reshape(-1, 2))
    assert target_labels(target).tolist() == [4]
    torch.testing.assert_close(values.reshape(1, 8, 8), left[None])
    expected = torch.ones(8, 8, dtype=torch.bool)
    expected[:4, 3:] = False  # crowd, less the instance that lies on it
    expected[5:, 5:] = False  # box of the unknown mask, outwards to whole pixels
    assert torch.equal(valid.reshape(8, 8), expected)


def test_no_known_mask(toys):
    target = InstanceMasks([None], torch.tensor([0]), (8, 8))
    values, valid = at(target, ImageGeometry((8, 8), (8, 8)), torch.rand(5, 2))
    assert values.shape == (0, 5)
    assert valid.all()
    assert target_labels(target).shape == (0,)


def test_uniform_points_are_a_function_of_seed_and_stream():
    points = uniform_points(7, 0, (3, 50), CPU)
    assert points.shape == (3, 50, 2)
    assert points.dtype == torch.float32
    assert (points >= 0).all()
    assert (points < 1).all()
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(points, uniform_points(7, 0, (3, 50), CPU))
    assert not torch.equal(points, uniform_points(7, 1, (3, 50), CPU))
    assert not torch.equal(points, uniform_points(8, 0, (3, 50), CPU))
    assert uniform_points(2**63 + 5, 0, (1,), CPU).shape == (1, 2)


def test_uncertain_points_are_the_least_certain_valid_ones():
    logits = torch.tensor([[[5.0, -0.1, 3.0, 0.2, -2.0], [0.0, 1.0, -0.5, 4.0, 9.0]]])
    valid = torch.tensor([[True, False, True, True, True]])
    chosen = select_uncertain(logits, valid, 2)
    assert chosen.shape == (1, 2, 2)
    assert set(chosen[0, 0].tolist()) == {3, 4}
    assert set(chosen[0, 1].tolist()) == {0, 2}
    assert select_uncertain(logits, valid, 5).shape == (1, 2, 5)  # void ones fill up; their weight is 0


@settings(deadline=None, max_examples=80)
@given(rows=st.integers(1, 64), columns=st.integers(1, 64), step=st.sampled_from([4, 8]))
def test_cells_are_those_whose_centre_lies_in_the_image(rows, columns, step):
    cells = ImageGeometry((64, 64), (rows, columns)).cells(64 // step, 64 // step)
    for got, extent in zip(cells, (rows, columns), strict=True):
        assert got == max(1, sum((c + 0.5) * step < extent for c in range(64 // step)))


def test_target_of_another_size_is_refused(toys):
    with pytest.raises(ValueError, match=r"image 0042: its target is 10 x 12 .* 16 x 16 .* 32 x 32"):
        check_geometry(toys.map((10, 12), 1, 1), ImageGeometry((32, 32), (16, 16)), "0042")

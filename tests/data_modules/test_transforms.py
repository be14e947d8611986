import io
import math

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest
import torch
from fake_data import write_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from PIL import Image
from pycocotools import mask as coco_mask

from data_modules.formats import AdeSemantic, CocoPanoptic, Objects365Boxes
from data_modules.transforms import TrainTransform, compact
from dataseg.inference.resize import ResizeShortestEdge, to_tensor
from dataseg.io.images import encoded_image
from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, UserError

SIZES = st.tuples(st.integers(3, 90), st.integers(3, 90))


def scene(size, seed=0, blocks=4):
    """An image whose colour tells the row of the id map: value of red = 40 * (row + 1), void is black."""
    rng = np.random.default_rng(seed)
    ids = np.full(size, VOID, dtype=np.int16)
    for k in range(blocks):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        h, w = rng.integers(1, size[0] + 1), rng.integers(1, size[1] + 1)
        ids[y : y + h, x : x + w] = k
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = 40 * (ids + 1)
    labels = torch.arange(blocks) * 7
    return image, SegmentMap(ids=torch.from_numpy(ids), labels=labels)


@given(SIZES, st.integers(0, 2**63 - 1), st.sampled_from([16, 33, 64]))
@settings(max_examples=60, deadline=None)
def test_maps_come_out_of_the_images_size_and_compact(size, seed, out_size):
    image, target = scene(size, seed % 1000)
    transform = TrainTransform(out_size, (0.1, 2.0))
    pixels, moved, counts = transform(image, target, seed)
    assert max(pixels.shape[1:]) <= out_size
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert moved.ids.shape == pixels.shape[1:]
    assert moved.ids.dtype == torch.int16
    present = sorted(set(moved.ids.unique().tolist()) - {VOID})
    assert present == list(range(len(moved)))
    before = set(target.ids.unique().tolist()) - {VOID}
    assert set(moved.labels.tolist()) <= {7 * k for k in before}
    assert counts.get("emptied_by_crop", 0) == 4 - len(moved)


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=40, deadline=None)
def test_image_and_map_stay_aligned(seed):
    """Enlarged without colours, each pixel away from an edge still tells its class."""
    image, target = scene((60, 80), seed % 997)
    pixels, moved, _ = TrainTransform(96, (1.0, 2.0))(image, target, seed)
    expected = torch.cat([moved.labels // 7 + 1, torch.zeros(1, dtype=torch.long)])[moved.ids.long()] * 40
    agree = (pixels[0].long() - expected).abs() <= 1
    assert agree.float().mean() > 0.75  # the rest: blended edges


def test_the_seed_decides_everything():
    image, target = scene((50, 70))
    transform = TrainTransform(64, color_jitter=0.4)

    def run(seed, transform=transform):
        pixels, moved, _ = transform(image, target, seed)
        return pixels.numpy().tobytes() + moved.ids.numpy().tobytes()

    first = [run(s) for s in range(20)]
    assert len(set(first)) == 20
    np.random.seed(3)
    torch.manual_seed(3)
    assert [run(s) for s in reversed(range(20))] == first[::-1]
    assert [run(s, TrainTransform(64, color_jitter=0.4)) for s in range(20)] == first


def test_scale_and_flip_are_independent():
    """Half of the enlarged and half of the reduced images are flipped."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, :32] = 255
    target = SegmentMap(ids=torch.zeros(64, 64, dtype=torch.int16), labels=torch.tensor([0]))
    transform = TrainTransform(64, (0.5, 1.0))
    sizes, flipped = [], []
    for seed in range(400):
        pixels, moved, _ = transform(image, target, seed)
        width = int((moved.ids[0] != VOID).sum())
        sizes.append(width)
        flipped.append(int(pixels[0, 0, 1]) < 128)
    large = np.array(sizes) > np.median(sizes)
    for part in (large, ~large):
        assert 0.4 < np.mean(np.array(flipped)[part]) < 0.6
    assert 30 <= min(sizes) < 36
    assert 60 < max(sizes) <= 64


@given(SIZES, st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_boxes_follow_their_pixels(size, seed):
    """A box around a rectangle of the map is the box around the moved rectangle, within a pixel of rounding."""
    rng = np.random.default_rng(seed % 1000)
    y0, x0 = rng.integers(0, size[0] - 2), rng.integers(0, size[1] - 2)
    y1, x1 = rng.integers(y0 + 2, size[0] + 1), rng.integers(x0 + 2, size[1] + 1)
    ids = np.full(size, VOID, np.int16)
    ids[y0:y1, x0:x1] = 0
    image = np.zeros((*size, 3), np.uint8)
    boxes = Boxes(xyxy=torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32), labels=torch.tensor([5]))
    transform = TrainTransform(64, (0.5, 2.0))
    _, map_, _ = transform(image, SegmentMap(ids=torch.from_numpy(ids), labels=torch.tensor([5])), seed)
    _, moved, counts = transform(image, boxes, seed)
    assert len(moved) + counts.get("emptied_by_crop", 0) == 1
    assert moved.xyxy.dtype == torch.float32
    if len(moved):
        assert moved.labels.tolist() == [5]
        x0, y0, x1, y1 = moved.xyxy[0].tolist()
        assert 0 <= x0 <= x1 - 1.99
        assert x1 <= 64
        assert 0 <= y0 <= y1 - 1.99
        assert y1 <= 64
        rows, columns = torch.nonzero(map_.ids == 0, as_tuple=True)
        if len(rows):
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.allclose([x0, y0, x1, y1], [float(v) for v in found], atol=1.01)


def test_boxes_outside_the_crop_are_counted():
    image = np.zeros((100, 100, 3), np.uint8)
    corners = torch.tensor([[0, 0, 4, 4], [96, 96, 100, 100], [0, 0, 100, 100]], dtype=torch.float32)
    boxes = Boxes(xyxy=corners, labels=torch.tensor([1, 2, 3]))
    _, moved, counts = TrainTransform(50, (2.0, 2.0), flip=0)(image, boxes, 0)
    assert counts["emptied_by_crop"] >= 1
    assert 3 in moved.labels
    assert len(moved) + counts["emptied_by_crop"] == 3
    whole = moved.xyxy[moved.labels == 3]
    assert whole.tolist() == [[0, 0, 50, 50]]


@pytest.mark.parametrize("seed", range(5))
def test_samples_without_targets_survive(seed):
    image = np.full((20, 30, 3), 9, np.uint8)
    transform = TrainTransform(16)
    empty = SegmentMap(ids=torch.full((20, 30), VOID, dtype=torch.int16), labels=torch.zeros(0, dtype=torch.long))
    _, moved, counts = transform(image, empty, seed)
    assert len(moved) == 0
    assert moved.ids.eq(VOID).all()
    _, boxes, _ = transform(image, Boxes(xyxy=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)), seed)
    assert boxes.xyxy.shape == (0, 4)
    assert boxes.labels.dtype == torch.int64
    masks = InstanceMasks(rles=[None], labels=torch.tensor([1]), size=(20, 30))
    _, none, _ = transform(image, masks, seed)
    assert len(none) == 0
    assert none.size == moved.size
    assert counts == {}


def test_crowds_become_void():
    ids = torch.tensor([[0, 0, 1, 1, 2, VOID]], dtype=torch.int16)
    target = SegmentMap(ids=ids, labels=torch.tensor([4, 5, 6]), is_crowd=torch.tensor([False, True, False]))
    moved, counts = compact(ids.numpy(), target)
    assert moved.ids.tolist() == [[0, 0, VOID, VOID, 1, VOID]]
    assert moved.labels.tolist() == [4, 6]
    assert moved.is_crowd is None
    assert counts == {}


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_masks_go_the_way_of_maps(seed):
    image, target = scene((40, 60), seed % 997)
    rles = [coco_mask.encode(np.asfortranarray(target.ids.numpy() == k, dtype=np.uint8)) for k in range(4)]
    masks = InstanceMasks(rles=rles, labels=target.labels, size=(40, 60), is_crowd=torch.tensor([False] * 3 + [True]))
    target.is_crowd = masks.is_crowd
    transform = TrainTransform(48, (0.5, 2.0))
    _, map_, _ = transform(image, target, seed)
    _, moved, _ = transform(image, masks, seed)
    crowd = moved.is_crowd.tolist()
    assert moved.labels[~moved.is_crowd].tolist() == map_.labels.tolist()
    for k, rle in enumerate(moved.rles):  # the crowd comes last
        assert (coco_mask.decode(rle).astype(bool) <= (map_.ids == (VOID if crowd[k] else k)).numpy()).all()
        assert crowd[k] or (coco_mask.decode(rle) == (map_.ids == k).numpy()).all()


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_instances_without_a_mask_go_the_way_of_boxes(seed):
    image, target = scene((40, 60), seed % 997)
    rles = [coco_mask.encode(np.asfortranarray(target.ids.numpy() == k, dtype=np.uint8)) for k in range(2)]
    boxes = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [5, 5, 30, 25], [40, 10, 59, 39]])
    labels = torch.tensor([1, 2, 3, 4])
    wrong = torch.tensor([[70.0, 5, 80, 9], [5, 5, 5, 9], [-9, -9, -1, -1]])  # beside the image, or without a width
    masks = InstanceMasks(
        rles=[*rles, *[None] * 5],
        labels=torch.cat([labels, torch.tensor([5, 6, 7])]),
        size=(40, 60),
        boxes=torch.cat([boxes[:3], boxes[3:] + torch.tensor([0, 0, 9, 9]), wrong]),
    )
    boxes[3] = torch.tensor([40, 10, 60, 40])
    transform = TrainTransform(48, (0.5, 2.0))
    _, moved, _ = transform(image, masks, seed)
    _, alone, _ = transform(image, Boxes(xyxy=boxes[2:], labels=labels[2:]), seed)
    unknown = [k for k, rle in enumerate(moved.rles) if rle is None]
    assert moved.labels[unknown].tolist() == alone.labels.tolist()
    assert moved.boxes[unknown].equal(alone.xyxy)
    _, without, _ = transform(image, InstanceMasks(rles=rles, labels=labels[:2], size=(40, 60)), seed)
    assert [rle for rle in moved.rles if rle is not None] == without.rles


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_evaluation_resizes_the_shorter_side(size):
    out = to_tensor(ResizeShortestEdge(32, 64).resize(np.zeros((*size, 3), np.uint8)))
    short, long = sorted(out.shape[1:])
    assert out.dtype == torch.uint8
    assert long <= 64
    assert short == 32 or long == 64
    assert abs(short / long - min(size) / max(size)) < 0.03


@pytest.mark.parametrize("options", [{"scale_range": (0.0, 1.0)}, {"color_jitter": 1.0}, {"image_size": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"scale_range|color_jitter"):
        TrainTransform(**{"image_size": 8, **options})


def test_real_samples(real_data):
    ade, coco = AdeSemantic(), CocoPanoptic(split="val2017")
    boxes = Objects365Boxes(split="val", annotations="annotations/HANDMADE_zhiyuan_objv2_val_fixture.json")
    transform = TrainTransform(256, color_jitter=0.4)
    for reader in (ade, coco, boxes):
        reader.setup(real_data)
        for index in range(len(reader)):
            image, target = reader.load(index)
            kept = 0
            for seed in range(10):
                pixels, moved, _ = transform(image, target, seed)
                assert max(pixels.shape[1:]) <= 256
                kept += len(moved)
            assert kept > 0


@given(st.integers(0, 2**63 - 1), st.sampled_from([(300, 400), (397, 211), (64, 1000)]))
@settings(max_examples=40, deadline=None)
def test_reducing_an_image_when_it_is_decoded_changes_no_target(seed, size):
    """An image of `whole_size` gives nearly the same image and exactly the same target, at any scale of the jitter."""
    image, target = scene(size, seed % 997)
    image = cv2.GaussianBlur(image, (0, 0), 9)
    transform = TrainTransform(64, (0.1, 2.0), color_jitter=0.2)
    reduced = transform.whole_size(size, seed) or size
    smaller = cv2.resize(image, reduced[::-1], interpolation=cv2.INTER_AREA)
    corners = torch.tensor([[3, 5, 60, 50], [20, 8, size[1], size[0]]], dtype=torch.float32)
    for kind in (target, Boxes(xyxy=corners, labels=torch.tensor([1, 2]))):
        full, expected, counts = transform(image, kind, seed)
        small, found, counts_small = transform(smaller, kind, seed, size)
        assert counts == counts_small
        assert small.shape == full.shape
        assert max(full.shape[1:]) <= 64
        assert (full.float() - small.float()).abs().mean() < 3
        assert found.labels.equal(expected.labels)
        if isinstance(found, Boxes):
            assert torch.allclose(found.xyxy, expected.xyxy, atol=1e-2)
        else:
            assert found.ids.equal(expected.ids)


def test_the_size_of_a_whole_image_is_known_before_it_is_decoded():
    def whole(scale):
        return TrainTransform(100, (scale, scale)).whole_size((401, 800), 0)

    assert [whole(s) for s in (2.0, 1.01, 1.0, 0.5, 0.1)] == [None, None, (50, 100), (25, 50), (5, 10)]


def painted_discs(size, centers, radius):
    """Uint8 [H, W, 3] and bool [K, H, W]: the k-th disc is bright in the k-th channel, its segment's own colour."""
    y, x = np.ogrid[: size[0], : size[1]]
    masks = np.stack([(x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius**2 for cx, cy in centers])
    image = np.full((*size, 3), 64, np.uint8)
    image[..., : len(masks)] += 128 * masks.transpose(1, 2, 0).astype(np.uint8)
    return image, masks


def places(amounts):
    """Centres [K, 2] (x, y) of discs painted in float [K, H', W'], and their diameters [K], pixels."""
    found = []
    for amount in np.asarray(amounts, dtype=np.float64):
        total = amount.sum()
        center = [(amount.sum(axis) * (np.arange(n) + 0.5)).sum() / total for axis, n in enumerate(amount.shape[::-1])]
        found.append([*center, 2 * math.sqrt(total / math.pi)])
    return np.array(found)


def amounts_of(pixels):
    """Uint8 [3, H', W'] of `painted_discs`, once resized -> how much of each pixel the discs cover."""
    amounts = (pixels.numpy().astype(float) - 64) / 128
    return np.where(np.abs(amounts) > 0.05, amounts, 0)[:2]  # without what JPEG adds far from the discs


def jpeg(image, orientation=1):
    """An EncodedImage that shows ``image`` once it is turned by its EXIF orientation."""
    backward = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = Image.fromarray(image)
    stored = stored.transpose(backward[orientation]) if backward[orientation] is not None else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=100, subsampling=0, exif=exif)
    return encoded_image(file.getvalue(), "painted", image.shape[:2], upright=True)


@pytest.mark.parametrize("size", [(851, 1283), (1281, 957)])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_images_decoded_smaller_lie_where_their_targets_lie(size, divisor, orientation):
    """Painted discs: image, map, masks and boxes against the discs' own numbers, within 0.1 px.

    They are large, and reduced by no whole number, so that the rounding of maps to pixels averages out.
    """
    radius = min(size) // 3
    rows, columns = size
    centers = np.array([[radius + 3.0, radius + 4], [columns - radius - 1, rows - radius - 1]])
    image, discs = painted_discs(size, centers, radius)
    transform = TrainTransform(round(max(size) / divisor / 1.17), (1.0, 1.0), flip=0)
    encoded = jpeg(image, orientation)
    reduced = transform.whole_size(encoded.size, 0)
    ratio = np.array([reduced[1] / columns, reduced[0] / rows])
    expected = np.column_stack([centers * ratio, np.full(2, 2 * radius * math.sqrt(ratio.prod()))])
    labels = torch.arange(2)
    decoded = encoded.decode(reduced)
    assert decoded.shape[:2] == (reduced if divisor > 1 else size)

    ids = np.full(size, VOID, np.int16)
    ids[discs[1]], ids[discs[0]] = 1, 0
    pixels, moved, _ = transform(decoded, SegmentMap(torch.from_numpy(ids), labels), 0, encoded.size)
    assert pixels.shape[1:] == reduced
    assert np.abs(places(amounts_of(pixels)) - expected).max() < 0.1
    assert np.abs(places([moved.ids.numpy() == k for k in range(2)]) - expected).max() < 0.1

    rles = [coco_mask.encode(np.asfortranarray(disc, dtype=np.uint8)) for disc in discs]
    _, masks, _ = transform(decoded, InstanceMasks(rles=rles, labels=labels, size=size), 0, encoded.size)
    assert np.abs(places([coco_mask.decode(rle) for rle in masks.rles]) - expected).max() < 0.1

    corners = torch.from_numpy(np.hstack([centers - radius, centers + radius])).float()
    _, boxes, _ = transform(decoded, Boxes(corners, labels), 0, encoded.size)
    assert np.abs(boxes.xyxy.numpy() - corners.numpy() * [*ratio, *ratio]).max() < 1e-3


@pytest.mark.parametrize("size", [(425, 640), (333, 201)])
def test_evaluation_images_lie_where_their_targets_lie(size):
    centers = np.array([[60.0, 51], [size[1] - 41, size[0] - 41]])
    image, _ = painted_discs(size, centers, 40)
    for shorter in (70, 160, 320):
        pixels = to_tensor(ResizeShortestEdge(shorter).resize(jpeg(image).decode()))
        ratio = np.array([pixels.shape[2] / size[1], pixels.shape[1] / size[0]])
        expected = np.column_stack([centers * ratio, np.full(2, 80 * math.sqrt(ratio.prod()))])
        assert np.abs(places(amounts_of(pixels)) - expected).max() < 0.1


def test_transform_does_not_change_its_input(tmp_path):
    write_coco(tmp_path, 2)
    reader = CocoPanoptic()
    reader.setup(tmp_path)
    image, target = reader.load(1)
    image_before, ids_before = image.copy(), target.ids.clone()
    TrainTransform(32, color_jitter=0.4)(image, target, 5)
    assert (image == image_before).all()
    assert target.ids.equal(ids_before)


# ------------------------------------------------------------------------------------------------------ augmentation

GEOMETRIC = [
    A.HorizontalFlip(p=1.0),
    A.Rotate(limit=(20, 20), p=1.0),
    A.Affine(rotate=(-30, 30), scale=(0.7, 1.3), translate_percent=(-0.1, 0.1), shear=(-8, 8), p=1.0),
    A.OneOf([A.VerticalFlip(p=1.0), A.Transpose(p=1.0)], p=1.0),
    A.ElasticTransform(alpha=30, sigma=6, p=1.0),
]


@pytest.mark.parametrize("added", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_an_augmentation_moves_image_maps_boxes_and_masks_together(added):
    """Painted pictures: the colour of a pixel says which segment it is of, black is outside."""
    ids = np.full((150, 200), VOID, np.int16)
    ids[20:70, 30:90], ids[60:130, 100:180] = 0, 1
    image = np.zeros((150, 200, 3), np.uint8)
    image[ids == 0], image[ids == 1] = (200, 0, 0), (0, 200, 0)
    labels = torch.tensor([3, 5])
    transform = TrainTransform(128, (0.8, 1.0), augmentation=[added])
    rles = [coco_mask.encode(np.asfortranarray(ids == k, dtype=np.uint8)) for k in (0, 1)]
    boxes = torch.tensor([[30.0, 20, 90, 70], [100, 60, 180, 130]])
    for seed in range(5):
        pixels, moved, _ = transform(image, SegmentMap(torch.from_numpy(ids), labels), seed)
        painted = torch.stack([pixels[0], pixels[1]]) > 100
        found = torch.stack([moved.ids == 0, moved.ids == 1])
        _, masks, _ = transform(image, InstanceMasks(rles=rles, labels=labels, size=(150, 200)), seed)
        assert masks.labels.tolist() == moved.labels.tolist() == [3, 5]
        decoded = torch.from_numpy(np.stack([coco_mask.decode(rle) for rle in masks.rles])).bool()
        assert (decoded & found).sum() > 0.98 * (decoded | found).sum()  # int16 and uint8 are rounded differently
        _, around, _ = transform(image, Boxes(boxes, labels), seed)
        for k, corners in enumerate(around.xyxy):
            same = (found[k] & painted[k]).sum() / (found[k] | painted[k]).sum()
            assert same > 0.95  # the rest are blended edges
            rows, columns = painted[k].nonzero(as_tuple=True)
            inside = [columns.min(), rows.min(), -columns.max() - 1, -rows.max() - 1]  # a rotated box grows
            outer = torch.cat([corners[:2], -corners[2:]])
            assert (outer <= torch.tensor(inside) + 1.5).all()


def test_augmentation_is_seeded_and_leaves_all_else_as_it_was():
    image, target = scene((90, 120))
    image[:] = np.random.default_rng(0).integers(60, 200, image.shape)

    def make():
        return TrainTransform(
            64, color_jitter=0.3, augmentation=[A.RandomBrightnessContrast(p=0.7), A.GaussNoise(p=0.5)]
        )

    transform, plain = make(), TrainTransform(64, color_jitter=0.3)
    first = [transform(image, target, seed) for seed in range(12)]
    np.random.seed(3)
    again = [make()(image, target, seed) for seed in reversed(range(12))][::-1]
    changed = 0
    for seed, ((pixels, moved, _), (same, moved_again, _)) in enumerate(zip(first, again, strict=True)):
        assert pixels.equal(same)
        assert moved.ids.equal(moved_again.ids)
        before, moved_before, _ = plain(image, target, seed)
        assert moved.ids.equal(moved_before.ids)
        changed += not pixels.equal(before)
    assert 6 < changed < 12


def test_augmentation_comes_from_yaml():
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    entries = [{"class_path": "albumentations.RandomBrightnessContrast", "init_args": {"p": 1.0}}]
    section = {"class_path": "data_modules.CoTraining", "init_args": {"train_transform": {"augmentation": entries}}}
    data = parser.instantiate(parser.parse_object({"data": section})).data
    assert [type(t).__name__ for t in data.train_transform.augmentation] == ["RandomBrightnessContrast"]


def test_augmentations_that_cannot_be_applied_are_refused_at_once():
    either = A.OneOf([A.MaskDropout(), A.HorizontalFlip()])
    added = [A.Normalize(), either, A.Affine(fill_mask=255), A.Resize(900, 900)]
    with pytest.raises(
        UserError, match=r"Normalize.*float32.*MaskDropout.*Affine.*fill_mask.*Resize.*900, 900"
    ) as error:
        TrainTransform(64, augmentation=added)
    assert "Flip" not in str(error.value)
    image, target = scene((30, 40))
    with pytest.raises(UserError, match="augmentation failed: CropSizeError"):
        TrainTransform(64, (0.5, 0.5), augmentation=[A.RandomCrop(48, 48)])(image, target, 0)

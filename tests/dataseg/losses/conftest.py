"""Small random batches with targets of every kind."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dataseg.structures import Batch, Boxes, InstanceMasks, Proposals, SegmentMap, Task


def make_batch(sizes, seeds=None, divisor_size=None):
    """A batch whose images have ``sizes``, padded to the largest (or to ``divisor_size``)."""
    rows, columns = divisor_size or (max(s[0] for s in sizes), max(s[1] for s in sizes))
    count = len(sizes)
    blocks = torch.randint(0, 256, (count, 3, 3, 3), generator=torch.Generator().manual_seed(3))
    images = torch.nn.functional.interpolate(blocks.float(), size=(rows, columns)).to(torch.uint8)
    empty = SegmentMap(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))
    return Batch(
        dataset="toy",
        task=Task.PANOPTIC,
        images=images,
        sizes=list(sizes),
        targets=[empty] * count,
        image_ids=[f"image-{i}" for i in range(count)],
        original_sizes=list(sizes),
        seeds=list(seeds if seeds is not None else range(10, 10 + count)),
        is_padding=[False] * count,
    )


def make_proposals(batch, queries, classes, layers=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count, _, rows, columns = batch.images.shape
    return [
        Proposals(
            class_logits=torch.randn(count, queries, classes + 1, generator=generator).requires_grad_(),
            mask_logits=(
                3 * torch.randn(count, queries, rows // 4, columns // 4, generator=generator)
            ).requires_grad_(),
        )
        for _ in range(layers)
    ]


def make_map(size, count, classes, seed=0, void=True):
    """A map of ``count`` segments, each at least one pixel, and VOID."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1 if void else 0, max(count, 1), (1, 1, 7, 7), generator=generator).float()
    ids = torch.nn.functional.interpolate(coarse, size=size)[0, 0].to(torch.int32)
    ids = ids if count else torch.full_like(ids, -1)
    ids.flatten()[:count] = torch.arange(count, dtype=torch.int32)
    return SegmentMap(ids=ids, labels=torch.randint(0, classes, (count,), generator=generator))


def binary_masks(target):
    """Float ``[K, H, W]`` of a map."""
    return torch.stack([target.ids == k for k in range(len(target))]).float()


def to_rle(mask_HW):
    return coco_mask.encode(np.asfortranarray(mask_HW.numpy().astype(np.uint8)))


def as_instances(target):
    """The same segments as RLE; the map's VOID becomes a crowd."""
    void = (target.ids == -1).any()
    masks = [*binary_masks(target), *([(target.ids == -1).float()] if void else [])]
    crowd = torch.tensor([False] * len(target) + [True] * int(void))
    labels = torch.cat([target.labels, target.labels.new_zeros(int(void))])
    return InstanceMasks([to_rle(m) for m in masks], labels, target.size, is_crowd=crowd)


def make_boxes(size, count, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([size[1], size[0]])
    return Boxes(xyxy=ends.flatten(1), labels=torch.randint(0, classes, (count,), generator=generator))


class Toys:
    batch = staticmethod(make_batch)
    proposals = staticmethod(make_proposals)
    map = staticmethod(make_map)
    boxes = staticmethod(make_boxes)
    masks = staticmethod(binary_masks)
    instances = staticmethod(as_instances)
    rle = staticmethod(to_rle)


@pytest.fixture(scope="session")
def toys():
    return Toys

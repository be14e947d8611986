"""How many operations a training step dispatches: on a GPU each is a launch, whatever its size."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dataseg.losses import Criterion
from dataseg.structures import Batch, Boxes, Proposals, SegmentMap, Task
from dataseg.training import optimization

VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class Counter(TorchDispatchMode):
    """Operations that compute."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation.overloadpacket.__name__ not in VIEWS
        return operation(*args, **(kwargs or {}))


def loss_operations(layers, queries, images=2, classes=19, segments=4, boxes=False):
    """Of forward and backward, of drawn proposals and targets."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        labels = torch.randint(0, classes, (segments,), generator=generator)
        if boxes:
            ends = 64 * torch.rand(segments, 2, 2, generator=generator).sort(1).values
            targets.append(Boxes(ends.flatten(1), labels))
        else:
            ids = torch.randint(0, segments, (64, 64), generator=generator, dtype=torch.int32)
            targets.append(SegmentMap(ids, labels))
    sizes = [(64, 64)] * images
    pixels = torch.zeros(images, 3, 64, 64, dtype=torch.uint8)
    batch = Batch("toy", Task.PANOPTIC, pixels, sizes, targets, [""] * images, sizes, list(range(images)),
                  [False] * images)  # fmt: skip
    proposals = [
        Proposals(
            torch.randn(images, queries, classes + 1, generator=generator).requires_grad_(),
            torch.randn(images, queries, 16, 16, generator=generator).requires_grad_(),
        )
        for _ in range(layers)
    ]
    criterion = Criterion(num_points=112)
    with Counter() as counter:
        torch.stack(list(criterion(proposals, batch).values())).sum().backward()
    return counter.count


@pytest.mark.parametrize(("layers", "queries"), [(4, 40), (10, 100)], ids=["mini", "r50"])
@pytest.mark.parametrize("boxes", [False, True], ids=["masks", "boxes"])
def test_loss(layers, queries, boxes):
    counts = {images: loss_operations(layers, queries, images, boxes=boxes) for images in (2, 8, 16)}
    assert max(counts.values()) <= 400
    assert counts[16] - counts[2] <= 14 * 5, "an image costs the drawing of its points and the copy of its target"


def test_loss_is_flat_in_classes_and_targets():
    few, many = loss_operations(4, 40), loss_operations(4, 40, classes=459, segments=100)
    assert abs(many / few - 1) <= 0.1


def test_optimizer():
    layers = [torch.nn.Linear(4, 4) for _ in range(100)]
    network = torch.nn.ModuleDict({"backbone": torch.nn.Sequential(*layers[:50]), "head": torch.nn.ModuleList(layers)})
    optimizer, _ = optimization.build(network, 10, optimization.Optimization())
    torch.stack([p.sum() for p in network.parameters()]).sum().backward()
    optimizer.step()
    with Counter() as counter:
        optimizer.step()
    assert counter.count <= 20

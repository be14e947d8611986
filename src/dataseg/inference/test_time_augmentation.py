"""From a batch to its segments: runs the network on the views of each image (test-time augmentation) and merges them.

Shape legend: ``H', W'`` = rows and columns of a scaled evaluation image, ``H, W`` = of the original image. Windows go
through the network one at a time, when the strip of the original image that needs them is due, and are forgotten
after it: memory depends neither on their number nor on the image's height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from dataseg.inference.postprocess import PostProcessor, semantic_of_views
from dataseg.inference.view_merging import View
from dataseg.structures import Batch, DatasetSpec, Proposals, Segments, Task, TestTimeAugmentation
from dataseg.structures.geometry import ImageGeometry, padded_size

Network = Callable[[Tensor, Sequence[tuple[int, int]]], Proposals]
"""Images uint8 ``[B, 3, H, W]``, and (rows, columns) of each that are image -> the last layer's proposals, with one
vocabulary."""


@torch.no_grad()
def segment(
    network: Network, batch: Batch, spec: DatasetSpec, postprocess: PostProcessor
) -> dict[Task, list[Segments]]:
    """Segments of each image at its original size, by task of the dataset.

    Only the semantic task uses ``spec.views``: segments of panoptic and instance tasks are single proposals, which
    cannot be averaged over views. They share one pass over the batch as it is.
    """
    results: dict[Task, list[Segments]] = {}
    plain: Proposals | None = None
    for task in spec.tasks:
        if task is Task.SEMANTIC and not spec.views.is_plain:
            views = [image_views(network, batch, i, spec.views) for i in range(len(batch))]
            results[task] = [semantic_of_views(some, postprocess.semantic) for some in views]
            continue
        if plain is None:
            plain = network(batch.images, batch.sizes)
        results[task] = postprocess(plain, batch, spec.vocabulary.is_thing, task)
    return results


def image_views(network: Network, batch: Batch, index: int, views: TestTimeAugmentation) -> list[View]:
    """The views of one image of a batch; the network runs when `View.propose` is called.

    Weights make the windows' sum their average over the windows that see a pixel, and over scales and mirror images;
    one view alone has none.
    """
    rows, columns = batch.sizes[index]
    image_3HW = batch.images[index, :, :rows, :columns]
    looks = list(product(views.scales, (False, True) if views.flip else (False,)))
    found: list[View] = []
    for scale, mirrored in looks:
        frame = max(1, round(rows * scale)), max(1, round(columns * scale))
        picture = _Picture(network, image_3HW, frame, mirrored)
        geometries = list(_geometries(frame, batch.original_sizes[index], views, mirrored))
        single = len(geometries) == len(looks) == 1
        weights = None if single else _weights(geometries, len(looks), batch.images.device)
        found += [View(geometry, partial(picture.propose, geometry), weights) for geometry in geometries]
    return found


def spans(length: int, window: int | None, overlap: float) -> list[tuple[int, int]]:
    """Start and end of each window along a side of ``length`` pixels; the last one is flush with the border."""
    if window is None or window >= length:
        return [(0, length)]
    stride = max(1, round(window * (1 - overlap)))
    starts = [*range(0, length - window, stride), length - window]
    return [(start, start + window) for start in starts]


def _geometries(
    frame: tuple[int, int], original: tuple[int, int], views: TestTimeAugmentation, mirrored: bool
) -> Iterator[ImageGeometry]:
    """One for each window of a scaled image; windows between the pixels of a far smaller original are left out."""
    rows, columns = (spans(length, views.window, views.overlap) for length in frame)
    for (top, bottom), (left, right) in product(rows, columns):
        size = bottom - top, right - left
        padded = padded_size(size)
        geometry = ImageGeometry(padded, size, original, frame, (top, left), mirrored)
        if geometry.rows.start < geometry.rows.stop and geometry.columns.start < geometry.columns.stop:
            yield geometry


def _weights(geometries: list[ImageGeometry], looks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One over the windows that see each row and each column, float ``[H]`` and ``[W]``; rows over ``looks`` too."""
    height, width = geometries[0].output
    rows_H, columns_W = torch.zeros(height), torch.zeros(width)
    for rows in {geometry.offset[0]: geometry.rows for geometry in geometries}.values():
        rows_H[rows] += looks
    for columns in {geometry.offset[1]: geometry.columns for geometry in geometries}.values():
        columns_W[columns] += 1
    return (1 / rows_H).to(device), (1 / columns_W).to(device)


class _Picture:
    """An image as one scale, mirrored or not, shows it; made when its first window is due.

    Args:
        network: see `Network`.
        image_3HW: the evaluation image, uint8, without padding.
        size: rows and columns to resize it to.
        mirrored: reverse its columns.
    """

    def __init__(self, network: Network, image_3HW: Tensor, size: tuple[int, int], mirrored: bool) -> None:
        self._network = network
        self._source_3HW = image_3HW
        self._size = size
        self._mirrored = mirrored

    @cached_property
    def image(self) -> Tensor:
        """Uint8 ``[3, H', W']``."""
        image_3HW = _resize(self._source_3HW, self._size)
        return image_3HW.flip(-1) if self._mirrored else image_3HW

    def propose(self, geometry: ImageGeometry) -> tuple[Tensor, Tensor]:
        """Run the network on one window: class logits ``[Q, C + 1]`` and mask logits ``[Q, h, w]``."""
        (top, left), (rows, columns) = geometry.offset, geometry.size
        window_3HW = self.image.new_zeros(3, *geometry.padded)
        window_3HW[:, :rows, :columns] = self.image[:, top : top + rows, left : left + columns]
        proposals = self._network(window_3HW[None], [geometry.size])
        return proposals.class_logits[0], proposals.mask_logits[0]


def _resize(image_3HW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased; uint8, as all images reach the network."""
    if image_3HW.shape[1:] == size:
        return image_3HW
    resized = functional.interpolate(image_3HW[None].float(), size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)

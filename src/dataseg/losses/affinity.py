"""The pairwise colour-affinity term of BoxInst (arXiv 2012.02310, section 3.2): off by default in the criterion.

Neighbours of similar colour should get the same side of the mask. Shape legend: ``h, w`` = rows and columns of the
mask logits, ``E = 8`` = neighbours of a cell, ``M`` = masks; ``...`` = any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DILATION = 2
SIMILARITY_SCALE = 2.0
OFFSETS = tuple((dy, dx) for dy in (-DILATION, 0, DILATION) for dx in (-DILATION, 0, DILATION) if (dy, dx) != (0, 0))

_RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)  # D65


def rgb_to_lab(rgb_3hw: Tensor) -> Tensor:
    """SRGB in [0, 1], ``[3, h, w]``, to CIE LAB (D65), ``[3, h, w]``: L in [0, 100], a and b about [-128, 127]."""
    linear = torch.where(rgb_3hw > 0.04045, ((rgb_3hw + 0.055) / 1.055) ** 2.4, rgb_3hw / 12.92)
    xyz = torch.einsum("ij,jhw->ihw", rgb_3hw.new_tensor(_RGB_TO_XYZ), linear) / rgb_3hw.new_tensor(_WHITE).view(
        3, 1, 1
    )
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _neighbours(maps_hw: Tensor, fill: float) -> Tensor:
    """The neighbours of every cell, ``[..., E, h, w]``; ``fill`` beyond the border."""
    height, width = maps_hw.shape[-2:]
    padded = functional.pad(maps_hw, (DILATION,) * 4, value=fill)
    return torch.stack(
        [padded[..., DILATION + dy :, DILATION + dx :][..., :height, :width] for dy, dx in OFFSETS], dim=-3
    )


def color_similarity(image_3HW: Tensor, cells: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Similarity of each cell to its neighbours, exp(-distance in LAB / 2), float32 ``[E, rows, columns]`` in [0, 1].

    Args:
        image_3HW: uint8 RGB, padded input.
        cells: rows and columns of the grid that belong to the image; edges that leave it have similarity 0.
        grid: rows and columns (h, w) over the padded input; colours are averaged over a cell.
    """
    rgb_3hw = functional.adaptive_avg_pool2d(image_3HW.float() / 255, grid)
    lab_3hw = rgb_to_lab(rgb_3hw[:, : cells[0], : cells[1]])
    distance_Ehw = (_neighbours(lab_3hw, torch.inf) - lab_3hw[:, None]).norm(dim=0)
    return torch.exp(-distance_Ehw / SIMILARITY_SCALE)


def affinity_loss(logits_Mhw: Tensor, similarity_Ehw: Tensor, inside_Mhw: Tensor, threshold: float) -> Tensor:
    """Mean of -log p(both cells on the same side) over the edges of similar colour that start in the box, ``[..., M]``.

    Args:
        logits_Mhw: mask logits of the image's cells, ``[..., M, h, w]``.
        similarity_Ehw: `color_similarity`.
        inside_Mhw: float ``[..., M, h, w]``, 1 inside the box.
        threshold: edges of at least this similarity count.

    A mask without such an edge has loss 0.
    """
    foreground, background = functional.logsigmoid(logits_Mhw), functional.logsigmoid(-logits_Mhw)
    both = foreground[..., None, :, :] + _neighbours(foreground, 0.0)
    neither = background[..., None, :, :] + _neighbours(background, 0.0)
    edges = (similarity_Ehw >= threshold) * inside_Mhw[..., None, :, :]
    loss = -(torch.logaddexp(both, neither) * edges).sum((-3, -2, -1))
    return loss / edges.sum((-3, -2, -1)).clamp(min=1)

"""Boxes that are written in another form than x, y, width, height in pixels: told by a dataset's boxes as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SLACK = 2.0  # pixels that tools round by, or draw beyond the edge
_MISFITS = 0.1  # share of boxes that must reach out of their images before another form is thought of
_SHARE_SLACK = 0.02
_MOSTLY = 0.5  # share of boxes that must lie within their images
_LEAST_SIDE = 8  # pixels of images in which boxes within 0..1 are no pixels
_LEAST_BOXES = 10  # from which it is no chance that all lie in the upper left corner


def other_form(xywh: NDArray[Any], sizes: NDArray[Any]) -> str | None:
    """What is wrong with boxes that were taken for x, y, width, height in pixels; None if they may be just that.

    Args:
        xywh: ``[K, 4]``, as stated.
        sizes: ``[K, 2]``, (H, W) of the image of each, pixels.
    """
    if not len(xywh):
        return None
    width, height = sizes[:, 1].astype(np.float64), sizes[:, 0].astype(np.float64)
    a, b, c, d = xywh.astype(np.float64).T
    if sizes.min() >= _LEAST_SIDE and xywh.min() >= -_SHARE_SLACK and 0 < xywh.max() <= 1 + _SHARE_SLACK:
        return "are shares of the image, 0 to 1: multiply by its width and height"

    def fit(
        left: NDArray[Any], top: NDArray[Any], right: NDArray[Any], bottom: NDArray[Any], turned: bool = False
    ) -> NDArray[np.bool_]:
        most = (height, width) if turned else (width, height)
        starts: NDArray[np.bool_] = (left >= -_SLACK) & (top >= -_SLACK) & (right > left) & (bottom > top)
        return starts & (right <= most[0] + _SLACK) & (bottom <= most[1] + _SLACK)

    wholes = 100 / width, 100 / height
    percent = fit(a / wholes[0], b / wholes[1], (a + c) / wholes[0], (b + d) / wholes[1])
    fitting = fit(a, b, a + c, b + d).mean()
    if fitting > 1 - _MISFITS:
        is_corner = len(xywh) >= _LEAST_BOXES and sizes.min() >= 200 and percent.all()
        return "are percent of the image: multiply by its width / 100 and height / 100" if is_corner else None
    forms = {
        "are corners (x1, y1, x2, y2): write x1, y1, x2 - x1, y2 - y1": fit(a, b, c, d),
        "are centres (x, y of the middle, width, height): write x - width / 2, y - height / 2, width, height": fit(
            a - c / 2, b - d / 2, a + c / 2, b + d / 2
        ),
        "fit images whose height and width are exchanged: mend these": fit(a, b, a + c, b + d, turned=True),
        "are percent of the image: multiply by its width / 100 and height / 100": percent,
    }
    found = "; or ".join(form for form, fits in forms.items() if fits.all())
    return found or ("reach out of them or have no extent" if fitting < _MOSTLY else None)

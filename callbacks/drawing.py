"""Pictures of segments: colour by class, a shade of its own for every instance, a line around each segment."""

from __future__ import annotations

import colorsys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Target, Vocabulary

Picture = npt.NDArray[np.uint8]

_LINE = (255, 255, 255)
_SHADES = (0.0, 0.12, -0.12, 0.24, -0.24)


def _shade(color: npt.NDArray[np.uint8], instance: int) -> npt.NDArray[np.uint8]:
    """The class colour, a little lighter or darker by instance; the first has it as it is."""
    if instance == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(color / 255.0))
    lightness = min(0.85, max(0.2, lightness + _SHADES[instance % len(_SHADES)]))
    return (255 * np.array(colorsys.hls_to_rgb(hue, lightness, saturation))).astype(np.uint8)


def _segment_colors(labels: list[int], vocabulary: Vocabulary) -> npt.NDArray[np.uint8]:
    """Uint8 ``[K, 3]``; instances of one class differ in shade, a class's only segment has its plain colour."""
    palette = vocabulary.colors.numpy()
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), np.uint8)
    for k, label in enumerate(labels):
        number = seen.get(label, 0)
        seen[label] = number + 1
        colors[k] = _shade(palette[label], number)
    return colors


def _caption(picture: Picture, text: str, x: float, y: float) -> None:
    scale = max(0.3, min(picture.shape[:2]) / 900)
    where = (int(x), int(max(y, 10)))
    cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 2, cv2.LINE_AA)
    cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, _LINE, 1, cv2.LINE_AA)


def enlarge(values: npt.NDArray[Any], zoom: int) -> npt.NDArray[Any]:
    """``[H, W, ...]`` -> ``[H * zoom, W * zoom, ...]``, every pixel repeated."""
    return values.repeat(zoom, axis=0).repeat(zoom, axis=1) if zoom > 1 else values


def draw(
    image: Picture, target: Target, vocabulary: Vocabulary, names: bool = True, alpha: float = 0.65, zoom: int = 1
) -> Picture:
    """Lay segments over an image.

    Args:
        image: uint8 ``[H, W, 3]`` RGB, of the size of the target.
        target: ground truth or prediction. Void stays plain image, crowds are drawn hatched.
        names: write class names.
        alpha: opacity of segments, in [0, 1].
        zoom: whole factor that small images are enlarged by, so that lines and names do not cover them.

    Returns:
        uint8 ``[H * zoom, W * zoom, 3]``.
    """
    labels = target.labels.tolist()
    colors = _segment_colors(labels, vocabulary)
    if isinstance(target, SegmentMap):
        return _draw_map(image, target, colors, vocabulary if names else None, alpha, zoom)
    picture = enlarge(image, zoom).copy()
    crowd = getattr(target, "is_crowd", None)
    for k in range(len(labels)):
        if isinstance(target, Boxes):
            x, y, right, bottom = (int(v * zoom) for v in target.xyxy[k].tolist())
            cv2.rectangle(picture, (x, y), (right, bottom), colors[k].tolist(), 2)
        else:
            decoded = _decode(target, k)
            if decoded is None:
                continue
            mask = enlarge(decoded, zoom)
            hatch = crowd is not None and bool(crowd[k])
            _paint(picture, mask & _hatching(mask.shape) if hatch else mask, colors[k], alpha)
            ys, xs = np.nonzero(mask)
            if not len(xs):
                continue
            x, y = int(xs.min()), int(ys.mean())
        if names:
            _caption(picture, vocabulary.names[labels[k]], x, y)
    return picture


def _decode(target: InstanceMasks, k: int) -> npt.NDArray[np.bool_] | None:
    rle: dict[str, Any] | None = target.rles[k]
    return None if rle is None else coco_mask.decode(rle).astype(bool)


def _hatching(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(shape[:2])
    hatched: npt.NDArray[np.bool_] = (rows + columns) % 8 < 4
    return hatched


def _paint(picture: Picture, mask: npt.NDArray[np.bool_], color: Picture, alpha: float) -> None:
    picture[mask] = ((1 - alpha) * picture[mask] + alpha * color).astype(np.uint8)
    edges, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, edges, -1, _LINE, 1)


def _draw_map(
    image: Picture, target: SegmentMap, colors: Picture, vocabulary: Vocabulary | None, alpha: float, zoom: int
) -> Picture:
    image, ids = enlarge(image, zoom), enlarge(target.ids.cpu().numpy(), zoom)
    table = np.concatenate([colors, np.zeros((1, 3), np.uint8)])
    covered = ids != VOID
    if target.is_crowd is not None and bool(target.is_crowd.any()):
        crowds = np.nonzero(target.is_crowd.numpy())[0]
        covered &= ~np.isin(ids, crowds) | _hatching(ids.shape)
    picture = np.where(covered[..., None], (1 - alpha) * image + alpha * table[ids], image).astype(np.uint8)
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = _LINE
    if vocabulary is not None:
        for k, label in enumerate(target.labels.tolist()):
            ys, xs = np.nonzero(ids == k)
            if len(xs) > 60 * zoom:  # smaller segments would disappear under their name
                _caption(picture, vocabulary.names[label], np.median(xs) - 12, np.median(ys))
    return picture

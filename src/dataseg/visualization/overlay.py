"""Pictures of segments: colour by class, a shade of its own for every instance, a line around each segment."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from dataseg.structures import VOID, Boxes, InstanceMasks, SegmentMap, Segments, Target, Vocabulary

Picture = npt.NDArray[np.uint8]

MIN_SCORE = 0.4
"""Predicted instances of a lower score are left out of pictures: there are up to 100, and most are nothing."""

LINE = (255, 255, 255)
NOTHING = (128, 128, 128)
"""Hatching of pixels for which nothing is predicted."""

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


_BEFORE = 12  # pixels that a name begins left of its segment's middle
Caption = tuple[str, float, float, float]
"""Name, left edge and middle in the picture, and pixels of the segment."""


def _write_captions(picture: Picture, captions: list[Caption], size: int) -> None:
    """Names of segments, the largest first; what would cover another name is left out, the legend has it."""
    if not captions:
        return
    font, outline = ImageFont.load_default(size), max(1, size // 10)
    sheet = Image.fromarray(picture)
    canvas = ImageDraw.Draw(sheet)
    taken: list[tuple[float, float, float, float]] = []
    for name, x, y, pixels in sorted(captions, key=lambda caption: -caption[3]):
        left, top, right, bottom = canvas.textbbox((0, 0), name, font=font, stroke_width=outline)
        width, height = right - left, bottom - top
        if pixels < width * height / 2:
            continue
        x, y = max(0.0, min(x, sheet.width - width)), max(0.0, min(y - height / 2, sheet.height - height))
        box = x, y, x + width, y + height
        if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            continue
        taken.append(box)
        canvas.text((x - left, y - top), name, LINE, font, stroke_width=outline, stroke_fill=(0, 0, 0))
    picture[:] = np.asarray(sheet)


def resize_picture(image: Picture, size: tuple[int, int]) -> Picture:
    """``[H, W, 3]`` -> ``[*size, 3]``: pixels repeated where a whole factor enlarges it, else smooth."""
    rows, columns = image.shape[:2]
    if (rows, columns) == size:
        return image
    whole = size[0] % rows == size[1] % columns == 0
    how = cv2.INTER_NEAREST if whole else cv2.INTER_LINEAR if size[0] > rows else cv2.INTER_AREA
    return cv2.resize(image, size[::-1], interpolation=how).astype(np.uint8, copy=False)


def shown_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Rows and columns of a picture of at most ``longest`` pixels a side.

    A small image is enlarged towards it by a whole factor, so that every pixel is a square.
    """
    scale = longest / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_map(target: SegmentMap, size: tuple[int, int]) -> SegmentMap:
    """The map at ``size`` = (rows, columns), every pixel with the segment of the nearest one."""
    if target.size == size:
        return target
    ids = target.ids.cpu().to(torch.int16 if len(target) < 2**15 else torch.int32)  # what OpenCV can resize
    return replace(target, ids=torch.from_numpy(cv2.resize(ids.numpy(), size[::-1], interpolation=cv2.INTER_NEAREST)))


def confident(prediction: Segments, min_score: float = MIN_SCORE) -> Segments:
    """A prediction without its instances of a lower score; maps, whose segments have been chosen, as they are."""
    if not isinstance(prediction, InstanceMasks) or prediction.scores is None:
        return prediction
    keep = torch.nonzero(prediction.scores >= min_score)[:, 0].tolist()
    return InstanceMasks(
        rles=[prediction.rles[k] for k in keep],
        labels=prediction.labels[keep],
        size=prediction.size,
        scores=prediction.scores[keep],
    )


def draw(
    image: Picture,
    target: Target,
    vocabulary: Vocabulary,
    names: bool = True,
    alpha: float = 0.65,
    is_prediction: bool = False,
    text_size: int | None = None,
) -> Picture:
    """Lay segments over an image.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        target: ground truth or prediction; maps and masks of another size are scaled to the image's, boxes are in its
            pixels. Void stays plain image, crowds are drawn hatched, instances without a mask as their box.
        names: write class names, where a segment has room for its own.
        alpha: opacity of segments, in [0, 1].
        is_prediction: hatch a map's void in grey: nothing is predicted there.
        text_size: height of names, pixels; None = a twentieth of the picture's shorter side, 13 at least.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    colors = _segment_colors(target.labels.tolist(), vocabulary)
    written = vocabulary.names if names else None
    size = text_size or max(13, min(image.shape[:2]) // 20)
    if isinstance(target, SegmentMap):
        return _draw_map(image, target, colors, written, size, alpha, is_prediction)
    picture = image.copy()
    if isinstance(target, Boxes):
        _draw_boxes(picture, target, colors, written, size)
    else:
        _draw_masks(picture, target, colors, written, size, alpha)
    return picture


def _draw_boxes(picture: Picture, boxes: Boxes, colors: Picture, names: list[str] | None, size: int) -> None:
    captions: list[Caption] = []
    for k, (corners, label) in enumerate(zip(boxes.xyxy.tolist(), boxes.labels.tolist(), strict=True)):
        captions += _draw_box(picture, corners, colors[k], names[label] if names else None)
    _write_captions(picture, captions, size)


def _draw_box(picture: Picture, corners: list[float], color: Picture, name: str | None) -> list[Caption]:
    """Its outline; the caption that belongs to it, if it has a name."""
    x, y, right, bottom = (int(v) for v in corners)
    cv2.rectangle(picture, (x, y), (right, bottom), color.tolist(), 2)
    return [] if name is None else [(name, x + 4, y + 12, (right - x) * (bottom - y))]


def _draw_masks(
    picture: Picture, masks: InstanceMasks, colors: Picture, names: list[str] | None, size: int, alpha: float
) -> None:
    captions: list[Caption] = []
    for k, (rle, label) in enumerate(zip(masks.rles, masks.labels.tolist(), strict=True)):
        if rle is None:
            if masks.boxes is not None:  # all that is known of it
                corners = (masks.boxes[k] * _zoom(masks.size, picture.shape).repeat(2)).tolist()
                captions += _draw_box(picture, corners, colors[k], names[label] if names else None)
            continue
        (x, y), mask = _part(rle, masks.size, picture.shape)
        if mask is None:
            continue
        rows, columns = mask.shape
        is_crowd = masks.is_crowd is not None and bool(masks.is_crowd[k])
        _paint(picture[y : y + rows, x : x + columns], mask, colors[k], alpha, is_crowd)
        if names is not None:
            inside = np.nonzero(mask)
            down, right = _nearest(inside, inside[0].mean(), inside[1].mean())
            captions.append((names[label], x + right - _BEFORE, y + down, len(inside[0])))
    _write_captions(picture, captions, size)  # last: masks may overlap


def _zoom(size: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """Factors on x and y from an image of ``size`` to a picture of ``shape``; ``[2]``."""
    return torch.tensor([shape[1] / size[1], shape[0] / size[0]])


def _part(
    rle: dict[str, Any], size: tuple[int, int], shape: tuple[int, ...]
) -> tuple[tuple[int, int], npt.NDArray[np.uint8] | None]:
    """Left upper corner of a mask in a picture of ``shape``, and the mask within its bounding box; None if empty."""
    x, y, width, height = (int(v) for v in coco_mask.toBbox(rle))
    if not width * height:
        return (0, 0), None
    across, down = _zoom(size, shape).tolist()
    left, top = int(x * across), int(y * down)
    right, bottom = max(left + 1, round((x + width) * across)), max(top + 1, round((y + height) * down))
    mask = coco_mask.decode(rle)[y : y + height, x : x + width]
    where = (right - left, bottom - top)
    return (left, top), cv2.resize(mask, where, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def _paint(part: Picture, mask: npt.NDArray[np.uint8], color: Picture, alpha: float, hatch: bool) -> None:
    """Draw into the part of a picture that a mask's bounding box cuts out."""
    inside = mask.astype(bool)
    if hatch:
        inside &= _hatching(inside.shape)
    blend = cv2.addWeighted(part, 1 - alpha, np.broadcast_to(color, part.shape).copy(), alpha, 0)
    np.copyto(part, blend, where=inside[..., None])
    outline = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) != mask
    part[outline] = LINE


def _hatching(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    hatched: npt.NDArray[np.bool_] = (rows + columns) % 8 < 4
    return hatched


def _draw_map(
    image: Picture,
    target: SegmentMap,
    colors: Picture,
    names: list[str] | None,
    size: int,
    alpha: float,
    is_prediction: bool,
) -> Picture:
    ids = resize_map(target, image.shape[:2]).ids.cpu().numpy()  # type: ignore[arg-type]
    table = np.concatenate([colors, np.zeros((1, 3), np.uint8)])  # VOID = -1 indexes the last
    plain = ids == VOID
    if target.is_crowd is not None and bool(target.is_crowd.any()):
        crowds = np.nonzero(target.is_crowd.cpu().numpy())[0]
        plain |= np.isin(ids, crowds) & ~_hatching(ids.shape)
    picture = np.asarray(cv2.addWeighted(image, 1 - alpha, table.take(ids, axis=0, mode="wrap"), alpha, 0), np.uint8)
    picture[plain] = image[plain]
    if is_prediction:
        picture[(ids == VOID) & _hatching(ids.shape)] = NOTHING
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = LINE
    if names is not None:
        _name_segments(picture, ids, [names[label] for label in target.labels.tolist()], size)
    return picture


def _name_segments(picture: Picture, ids: npt.NDArray[Any], names: list[str], size: int) -> None:
    """Write each segment's name at its centre of mass or, where that is another's, at its nearest pixel."""
    flat, width = ids.ravel() + 1, ids.shape[1]
    sizes = np.bincount(flat, minlength=len(names) + 1)
    ys = np.bincount(flat, np.repeat(np.arange(len(ids)), width), len(names) + 1)
    xs = np.bincount(flat, np.tile(np.arange(width), len(ids)), len(names) + 1)
    captions: list[Caption] = []
    for k, name in enumerate(names, start=1):
        if not sizes[k]:
            continue
        y, x = ys[k] / sizes[k], xs[k] / sizes[k]
        if ids[int(y), int(x)] != k - 1:
            y, x = _nearest(np.nonzero(ids == k - 1), y, x)
        captions.append((name, x - _BEFORE, y, sizes[k]))
    _write_captions(picture, captions, size)


def _nearest(pixels: tuple[npt.NDArray[Any], ...], y: float, x: float) -> tuple[int, int]:
    """Row and column of that one of the pixels, (rows ``[N]``, columns ``[N]``), which is nearest to a place."""
    rows, columns = pixels
    nearest = np.argmin((rows - y) ** 2 + (columns - x) ** 2)
    return int(rows[nearest]), int(columns[nearest])

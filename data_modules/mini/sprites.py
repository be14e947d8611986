"""Draws things of the mini suite: silhouettes made of a few coloured parts, at any size.

Coordinates of parts are fractions of the thing's box, x to the right and y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Rgb: TypeAlias = tuple[int, int, int]
Texture = Literal["plain", "bars", "columns", "dots", "checks"]

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Part:
    """One patch of a thing.

    Attributes:
        points: outline, floats ``[P, 2]`` in the unit box.
        color: RGB, "a" or "b" for the instance's own palette, "hole" to cut through what was drawn before.
        texture: pattern that modulates the brightness.
    """

    points: Array
    color: Rgb | Literal["a", "b", "hole"]
    texture: Texture = "plain"


@dataclass(frozen=True)
class Shape:
    """A kind of thing.

    Attributes:
        parts: drawn in order, later ones on top.
        aspect: width / height.
        heights: smallest and largest height, as a fraction of the image's shorter side.
        palettes: alternatives for the colours "a" and "b".
    """

    parts: tuple[Part, ...]
    aspect: float
    heights: tuple[float, float]
    palettes: tuple[tuple[Rgb, Rgb], ...]


def polygon(*points: tuple[float, float]) -> Array:
    return np.array(points, dtype=np.float64)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Array:
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> Array:
    """Outline of an ellipse; angles in degrees, clockwise from the right. A part of it is a sector."""
    angles = np.deg2rad(np.linspace(start, stop, 32))
    rim = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)
    return rim if stop - start >= 360 else np.concatenate([rim, [[x, y]]])


@dataclass(frozen=True)
class Sprite:
    """A thing drawn on its own.

    Attributes:
        rgb: float32 ``[h, w, 3]``, 0-255, meaningful where ``alpha`` > 0.
        alpha: float32 ``[h, w]`` in [0, 1].
    """

    rgb: Array
    alpha: Array


def draw(shape: Shape, height: float, rng: np.random.Generator, hue: float, tilt: float) -> Sprite:
    """Draw one instance.

    Args:
        height: pixels, before tilting.
        rng: chooses palette, mirroring, colour change and tilt.
        hue: largest change of hue, degrees.
        tilt: largest rotation, degrees.
    """
    scale = height * _SUPERSAMPLING
    size = np.array([scale * shape.aspect, scale])
    palette = shape.palettes[rng.integers(len(shape.palettes))]
    angle = np.deg2rad(rng.uniform(-tilt, tilt))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.abs(turn) @ size / 2 + _SUPERSAMPLING
    canvas = (half * 2).astype(int) // _SUPERSAMPLING * _SUPERSAMPLING + _SUPERSAMPLING
    index = np.zeros((int(canvas[1]), int(canvas[0])), dtype=np.uint8)
    for number, part in enumerate(shape.parts, start=1):
        local = (part.points - 0.5) * size * [mirror, 1.0]
        points = np.rint((local @ turn.T + canvas / 2) * 16).astype(np.int32)
        cv2.fillPoly(index, [points], 0 if part.color == "hole" else number, shift=4)
    rgb = _paint(index, shape, palette, size)
    rgb = np.clip(shift_hue(rgb, rng.uniform(-hue, hue)) * rng.uniform(0.88, 1.12), 0, 255)
    return _shrink(rgb, index > 0)


def _paint(index: Array, shape: Shape, palette: tuple[Rgb, Rgb], size: Array) -> Array:
    """Part numbers ``[H, W]`` -> float32 RGB ``[H, W, 3]``: colour, texture, and a shade from top to bottom."""
    named = {"a": palette[0], "b": palette[1], "hole": (0, 0, 0)}
    colors = [named[p.color] if isinstance(p.color, str) else p.color for p in shape.parts]
    table = np.array([(0, 0, 0), *colors], dtype=np.float32)
    rows, columns = index.shape
    v = ((np.arange(rows) - rows / 2) / size[1])[:, None]
    u = ((np.arange(columns) - columns / 2) / size[1])[None, :]
    light = np.broadcast_to(1.08 - 0.2 * v, index.shape).astype(np.float32)
    for number, part in enumerate(shape.parts, start=1):
        if part.texture != "plain":
            light = np.where(index == number, light * _texture(part.texture, u, v), light)
    return table[index] * light[..., None]


def _texture(name: Texture, u: Array, v: Array) -> Array:
    """Brightness factor of a pattern, broadcasting to ``[H, W]``; ``u``, ``v`` in heights of the thing."""
    wave_u, wave_v = np.sin(u * 2 * np.pi * 7), np.sin(v * 2 * np.pi * 7)
    patterns = {
        "bars": np.where(wave_v > 0, 1.1, 0.72),
        "columns": np.where(wave_u > 0, 1.1, 0.76),
        "checks": np.where(wave_u * wave_v > 0, 1.12, 0.6),
        "dots": np.where(wave_u * wave_v > 0.35, 0.6, 1.08),
    }
    return patterns[name]


def _shrink(rgb: Array, inside: Array) -> Sprite:
    """Average the supersampled drawing down to pixels, trimmed to what is inside."""
    target = (inside.shape[1] // _SUPERSAMPLING, inside.shape[0] // _SUPERSAMPLING)
    weight = inside.astype(np.float32)
    alpha = cv2.resize(weight, target, interpolation=cv2.INTER_AREA)
    color = cv2.resize((rgb * weight[..., None]).astype(np.float32), target, interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(alpha > 0)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return Sprite(rgb=(color / np.maximum(alpha, 1e-6)[..., None])[box], alpha=alpha[box])


def shift_hue(rgb: Array, degrees: float, saturation: float = 1.0) -> Array:
    """Turn the hue and scale the saturation of float RGB ``[..., 3]``, 0-255, keeping the luma."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) * saturation, np.sin(angle) * saturation
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    rotate = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.linalg.inv(to_yiq) @ rotate @ to_yiq
    return np.asarray(rgb @ matrix.T, dtype=np.float32)

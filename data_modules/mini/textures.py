"""Stuff of the mini suite: a texture for every kind, at the size of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data_modules.mini.sprites import Array, Rgb


def smooth_noise(rng: np.random.Generator, rows: int, columns: int, cell: float, stretch: float = 1.0) -> Array:
    """Random field ``[rows, columns]`` in about [-1, 1]; ``cell`` pixels per grid step, ``stretch`` times as wide."""
    grid = (max(2, int(rows / cell) + 2), max(2, int(columns / (cell * stretch)) + 2))
    coarse = rng.uniform(-1, 1, size=grid).astype(np.float32)
    return cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)


def _grid(rows: int, columns: int) -> tuple[Array, Array]:
    return np.arange(rows, dtype=np.float32)[:, None], np.arange(columns, dtype=np.float32)[None, :]


def _sky(rng: np.random.Generator, rows: int, columns: int) -> Array:
    clouds = smooth_noise(rng, rows, columns, rows / 5, 2.0)
    return 0.1 * np.linspace(-1, 1.2, rows)[:, None] + 0.16 * np.clip(clouds, 0, 1)


def _sea(rng: np.random.Generator, rows: int, columns: int) -> Array:
    y, x = _grid(rows, columns)
    return np.asarray(0.16 * np.sin(y * 0.9 + 1.6 * np.sin(x * 0.16 + rng.uniform(0, 6))))


def _sand(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return 0.1 * rng.standard_normal((rows, columns)) + 0.06 * smooth_noise(rng, rows, columns, 14)


def _grass(rng: np.random.Generator, rows: int, columns: int) -> Array:
    blades = cv2.blur(rng.standard_normal((rows, columns)).astype(np.float32), (1, 5))
    return 0.34 * blades + 0.08 * smooth_noise(rng, rows, columns, 18)


def _road(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return 0.12 * rng.standard_normal((rows, columns)) + 0.05 * smooth_noise(rng, rows, columns, 20)


def _mountain(rng: np.random.Generator, rows: int, columns: int) -> Array:
    y, x = _grid(rows, columns)
    bend = 3 * smooth_noise(rng, rows, columns, 10)
    return np.asarray(0.2 * np.sign(np.sin((x * rng.choice([-0.35, 0.35]) + y * 0.45) + bend)))


def _snow(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return 0.06 * smooth_noise(rng, rows, columns, 12, 3.0) + 0.02 * rng.standard_normal((rows, columns))


def _wall(rng: np.random.Generator, rows: int, columns: int) -> Array:
    _, x = _grid(rows, columns)
    return np.asarray(0.07 * np.sign(np.sin(x * 0.55 + rng.uniform(0, 6))))


def _floor(rng: np.random.Generator, rows: int, columns: int) -> Array:
    y, x = _grid(rows, columns)
    plank = y // 7
    seams = (y % 7 < 1) | ((x + plank * 17) % 34 < 1)
    grain = cv2.blur(rng.standard_normal((rows, columns)).astype(np.float32), (9, 1))
    return np.asarray(np.where(seams, -0.35, 0.0) + 0.16 * grain + 0.08 * np.sin(plank * 2.3 + rng.uniform(0, 6)))


def _rug(rng: np.random.Generator, rows: int, columns: int) -> Array:
    y, x = _grid(rows, columns)
    diamonds = np.sign(np.sin((x + y) * 0.5) * np.sin((x - y) * 0.5))
    return np.asarray(0.3 * diamonds + 0.05 * rng.standard_normal((rows, columns)))


def _ceiling(rng: np.random.Generator, rows: int, columns: int) -> Array:
    y, x = _grid(rows, columns)
    return np.where((y % 10 < 1.5) | ((x + 0.6 * y) % 20 < 1.5), -0.3, 0.0)


@dataclass(frozen=True)
class Stuff:
    """A kind of stuff: alternative colours, and a pattern, broadcasting to ``[H, W]``, that brightens (> 0) them."""

    colors: tuple[Rgb, ...]
    pattern: Callable[[np.random.Generator, int, int], Array]


STUFF: dict[str, Stuff] = {
    "sky": Stuff(((120, 176, 240), (140, 190, 244), (106, 160, 230)), _sky),
    "sea": Stuff(((22, 92, 150), (20, 110, 150), (30, 84, 140)), _sea),
    "sand": Stuff(((226, 200, 140), (218, 186, 122)), _sand),
    "grass": Stuff(((98, 168, 56), (124, 178, 60), (86, 152, 60)), _grass),
    "road": Stuff(((92, 92, 96), (80, 80, 86)), _road),
    "mountain": Stuff(((126, 110, 140), (116, 106, 126)), _mountain),
    "snow": Stuff(((236, 240, 248), (228, 234, 246)), _snow),
    "wall": Stuff(((232, 206, 176), (206, 214, 180), (226, 190, 186)), _wall),
    "floor": Stuff(((162, 104, 58), (144, 92, 54), (176, 118, 72)), _floor),
    "rug": Stuff(((134, 28, 46), (110, 30, 70)), _rug),
    "ceiling": Stuff(((214, 216, 216), (222, 218, 208)), _ceiling),
}


def paint(name: str, rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Float32 RGB ``[rows, columns, 3]`` of a kind of stuff; values may leave 0-255 by a little."""
    stuff = STUFF[name]
    base = np.array(stuff.colors[rng.integers(len(stuff.colors))], dtype=np.float32) * rng.uniform(0.9, 1.1)
    pattern = np.broadcast_to(stuff.pattern(rng, rows, columns), (rows, columns))
    return np.asarray(base * (1 + pattern)[..., None], dtype=np.float32)

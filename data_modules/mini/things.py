"""Things of the mini suite, as data.

A thing keeps its parts, proportions and texture in every dataset; palette, hue, tilt and mirroring vary from one
instance to the next.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from data_modules.mini.sprites import Part, Rgb, Shape, ellipse, polygon, rectangle

_DARK: Rgb = (38, 38, 44)
_GLASS: Rgb = (172, 216, 236)
_SKIN: Rgb = (232, 184, 148)


def _sectors(x: float, y: float, rx: float, ry: float, start: float, stop: float, count: int) -> tuple[Part, ...]:
    edges = np.linspace(start, stop, count + 1)
    return tuple(
        Part(ellipse(x, y, rx, ry, lo, hi), "a" if i % 2 else "b") for i, (lo, hi) in enumerate(pairwise(edges))
    )


SHAPES: dict[str, Shape] = {
    "person": Shape(
        (
            Part(rectangle(0.24, 0.55, 0.47, 1.0), "b"),
            Part(rectangle(0.53, 0.55, 0.76, 1.0), "b"),
            Part(polygon((0.22, 0.25), (0.36, 0.28), (0.2, 0.62), (0.02, 0.58)), _SKIN),
            Part(polygon((0.78, 0.25), (0.64, 0.28), (0.8, 0.62), (0.98, 0.58)), _SKIN),
            Part(polygon((0.14, 0.24), (0.86, 0.24), (0.78, 0.62), (0.22, 0.62)), "a", "bars"),
            Part(ellipse(0.5, 0.12, 0.26, 0.12), _SKIN),
            Part(ellipse(0.5, 0.09, 0.27, 0.1, 180, 360), (70, 44, 30)),
        ),
        aspect=0.45,
        heights=(0.26, 0.56),
        palettes=(((214, 60, 52), (44, 54, 110)), ((232, 130, 40), (44, 54, 110)), ((200, 60, 120), (50, 50, 70))),
    ),
    "car": Shape(
        (
            Part(polygon((0.18, 0.45), (0.32, 0.05), (0.7, 0.05), (0.85, 0.45)), "a"),
            Part(polygon((0.27, 0.42), (0.36, 0.14), (0.49, 0.14), (0.49, 0.42)), _GLASS),
            Part(polygon((0.54, 0.42), (0.54, 0.14), (0.66, 0.14), (0.75, 0.42)), _GLASS),
            Part(polygon((0.0, 0.5), (0.08, 0.42), (0.92, 0.42), (1.0, 0.55), (1.0, 0.82), (0.0, 0.82)), "a"),
            Part(rectangle(0.0, 0.68, 1.0, 0.78), "b"),
            Part(ellipse(0.23, 0.82, 0.12, 0.18), _DARK),
            Part(ellipse(0.77, 0.82, 0.12, 0.18), _DARK),
            Part(ellipse(0.23, 0.82, 0.05, 0.08), (190, 190, 196)),
            Part(ellipse(0.77, 0.82, 0.05, 0.08), (190, 190, 196)),
        ),
        aspect=2.0,
        heights=(0.15, 0.34),
        palettes=(((206, 36, 36), (120, 20, 24)), ((38, 84, 196), (20, 40, 110)), ((226, 226, 230), (130, 130, 136))),
    ),
    "bus": Shape(
        (
            Part(rectangle(0.0, 0.02, 1.0, 0.86), "a"),
            Part(rectangle(0.0, 0.56, 1.0, 0.66), "b"),
            *(Part(rectangle(x, 0.14, x + 0.15, 0.46), _GLASS) for x in (0.04, 0.23, 0.42, 0.61)),
            Part(rectangle(0.82, 0.14, 0.95, 0.82), _GLASS),
            Part(ellipse(0.22, 0.86, 0.1, 0.14), _DARK),
            Part(ellipse(0.68, 0.86, 0.1, 0.14), _DARK),
        ),
        aspect=1.75,
        heights=(0.26, 0.46),
        palettes=(((246, 190, 36), (60, 60, 66)), ((250, 160, 30), (90, 40, 20))),
    ),
    "dog": Shape(
        (
            Part(polygon((0.02, 0.18), (0.12, 0.12), (0.26, 0.45), (0.14, 0.52)), "a"),
            *(Part(rectangle(x, 0.62, x + 0.1, 1.0), "b") for x in (0.16, 0.29, 0.56, 0.68)),
            Part(ellipse(0.44, 0.55, 0.34, 0.22), "a", "dots"),
            Part(polygon((0.6, 0.5), (0.66, 0.2), (0.82, 0.3), (0.78, 0.64)), "a"),
            Part(ellipse(0.79, 0.26, 0.16, 0.19), "a"),
            Part(rectangle(0.85, 0.22, 1.0, 0.4), "a"),
            Part(ellipse(0.68, 0.24, 0.07, 0.18), "b"),
            Part(ellipse(0.97, 0.26, 0.04, 0.06), _DARK),
        ),
        aspect=1.3,
        heights=(0.2, 0.42),
        palettes=(((176, 112, 56), (96, 56, 28)), ((200, 146, 84), (110, 66, 36))),
    ),
    "bird": Shape(
        (
            Part(polygon((0.0, 0.42), (0.06, 0.78), (0.36, 0.62)), "b"),
            Part(ellipse(0.5, 0.58, 0.3, 0.24), "a"),
            Part(ellipse(0.78, 0.4, 0.16, 0.22), "a"),
            Part(polygon((0.3, 0.55), (0.66, 0.55), (0.36, 0.0), (0.24, 0.06)), "b", "columns"),
            Part(polygon((0.9, 0.34), (1.0, 0.44), (0.9, 0.52)), (250, 170, 30)),
            Part(rectangle(0.46, 0.8, 0.54, 1.0), (250, 170, 30)),
        ),
        aspect=1.35,
        heights=(0.13, 0.28),
        palettes=(((128, 44, 150), (76, 20, 100)), ((150, 40, 120), (90, 16, 76))),
    ),
    "fish": Shape(
        (
            Part(polygon((0.0, 0.14), (0.0, 0.88), (0.3, 0.5)), "b"),
            Part(polygon((0.4, 0.2), (0.7, 0.2), (0.5, 0.0)), "b"),
            Part(ellipse(0.6, 0.52, 0.4, 0.36), "a"),
            Part(polygon((0.42, 0.2), (0.52, 0.17), (0.52, 0.87), (0.42, 0.84)), (248, 248, 248)),
            Part(polygon((0.68, 0.18), (0.77, 0.22), (0.77, 0.82), (0.68, 0.86)), (248, 248, 248)),
            Part(ellipse(0.87, 0.44, 0.04, 0.07), _DARK),
        ),
        aspect=1.6,
        heights=(0.15, 0.3),
        palettes=(((250, 122, 24), (200, 70, 10)), ((252, 150, 40), (210, 84, 20))),
    ),
    "boat": Shape(
        (
            Part(rectangle(0.46, 0.02, 0.54, 0.72), (92, 60, 36)),
            Part(polygon((0.56, 0.04), (0.92, 0.62), (0.56, 0.62)), "b"),
            Part(polygon((0.44, 0.12), (0.44, 0.62), (0.14, 0.62)), "b"),
            Part(polygon((0.0, 0.68), (1.0, 0.68), (0.84, 1.0), (0.16, 1.0)), "a", "bars"),
        ),
        aspect=1.1,
        heights=(0.24, 0.46),
        palettes=(((150, 46, 34), (250, 248, 240)), ((120, 52, 40), (252, 236, 190))),
    ),
    "ball": Shape(
        (*_sectors(0.5, 0.5, 0.5, 0.5, 0, 360, 6), Part(ellipse(0.5, 0.5, 0.12, 0.12), (250, 250, 250))),
        aspect=1.0,
        heights=(0.12, 0.24),
        palettes=(((30, 160, 220), (252, 220, 50)), ((230, 50, 60), (250, 250, 250))),
    ),
    "tree": Shape(
        (
            Part(rectangle(0.4, 0.6, 0.6, 1.0), (104, 70, 40)),
            Part(ellipse(0.3, 0.5, 0.3, 0.2), "a", "dots"),
            Part(ellipse(0.7, 0.5, 0.3, 0.2), "a", "dots"),
            Part(ellipse(0.5, 0.28, 0.36, 0.28), "a", "dots"),
        ),
        aspect=0.75,
        heights=(0.36, 0.66),
        palettes=(((22, 92, 48), (0, 0, 0)), ((36, 104, 40), (0, 0, 0))),
    ),
    "house": Shape(
        (
            Part(rectangle(0.1, 0.4, 0.9, 1.0), "a", "bars"),
            Part(polygon((0.0, 0.44), (0.5, 0.0), (1.0, 0.44)), "b"),
            Part(rectangle(0.42, 0.64, 0.6, 1.0), (92, 56, 34)),
            Part(rectangle(0.18, 0.56, 0.34, 0.76), _GLASS),
            Part(rectangle(0.68, 0.56, 0.84, 0.76), _GLASS),
        ),
        aspect=1.1,
        heights=(0.34, 0.6),
        palettes=(((244, 222, 160), (172, 52, 40)), ((240, 200, 180), (140, 44, 50))),
    ),
    "sofa": Shape(
        (
            Part(rectangle(0.08, 0.84, 0.16, 1.0), _DARK),
            Part(rectangle(0.84, 0.84, 0.92, 1.0), _DARK),
            Part(rectangle(0.08, 0.02, 0.92, 0.6), "a", "columns"),
            Part(rectangle(0.12, 0.5, 0.88, 0.86), "b"),
            Part(ellipse(0.08, 0.62, 0.09, 0.28), "a"),
            Part(ellipse(0.92, 0.62, 0.09, 0.28), "a"),
        ),
        aspect=1.9,
        heights=(0.24, 0.42),
        palettes=(((24, 128, 124), (14, 92, 94)), ((40, 140, 110), (20, 100, 84))),
    ),
    "chair": Shape(
        (
            Part(rectangle(0.04, 0.0, 0.96, 0.5), "a"),
            Part(rectangle(0.2, 0.1, 0.4, 0.42), "hole"),
            Part(rectangle(0.6, 0.1, 0.8, 0.42), "hole"),
            Part(rectangle(0.0, 0.48, 1.0, 0.66), "b"),
            Part(rectangle(0.06, 0.64, 0.24, 1.0), "a"),
            Part(rectangle(0.76, 0.64, 0.94, 1.0), "a"),
        ),
        aspect=0.7,
        heights=(0.28, 0.5),
        palettes=(((222, 120, 30), (246, 172, 80)), ((208, 100, 28), (236, 150, 66))),
    ),
    "lamp": Shape(
        (
            Part(rectangle(0.41, 0.34, 0.59, 0.95), "b"),
            Part(ellipse(0.5, 0.95, 0.36, 0.05), "b"),
            Part(polygon((0.26, 0.0), (0.74, 0.0), (1.0, 0.38), (0.0, 0.38)), "a", "columns"),
        ),
        aspect=0.6,
        heights=(0.34, 0.6),
        palettes=(((255, 236, 110), (60, 56, 70)), ((255, 224, 80), (80, 60, 50))),
    ),
    "vase": Shape(
        (
            Part(polygon((0.3, 0.0), (0.7, 0.0), (0.62, 0.24), (0.38, 0.24)), "a"),
            Part(ellipse(0.5, 0.6, 0.48, 0.4), "a", "bars"),
            Part(rectangle(0.04, 0.54, 0.96, 0.68), "b"),
            Part(rectangle(0.28, 0.9, 0.72, 1.0), "a"),
        ),
        aspect=0.68,
        heights=(0.2, 0.38),
        palettes=(((48, 88, 206), (244, 246, 252)), ((30, 66, 170), (226, 236, 250))),
    ),
    "painting": Shape(
        (
            Part(rectangle(0.0, 0.0, 1.0, 1.0), (198, 152, 48)),
            Part(rectangle(0.09, 0.11, 0.91, 0.89), "a"),
            Part(polygon((0.09, 0.89), (0.09, 0.6), (0.4, 0.36), (0.64, 0.62), (0.91, 0.48), (0.91, 0.89)), "b"),
            Part(ellipse(0.72, 0.3, 0.09, 0.11), (252, 238, 120)),
        ),
        aspect=1.25,
        heights=(0.2, 0.36),
        palettes=(((240, 128, 130), (88, 40, 110)), ((120, 200, 190), (30, 80, 60))),
    ),
    "cup": Shape(
        (
            Part(ellipse(0.74, 0.48, 0.26, 0.32), "b"),
            Part(ellipse(0.74, 0.48, 0.12, 0.16), "hole"),
            Part(polygon((0.0, 0.06), (0.74, 0.06), (0.64, 1.0), (0.1, 1.0)), "a", "dots"),
            Part(ellipse(0.37, 0.07, 0.37, 0.07), (70, 40, 24)),
        ),
        aspect=1.1,
        heights=(0.15, 0.28),
        palettes=(((246, 132, 168), (214, 84, 130)), ((250, 150, 160), (220, 96, 120))),
    ),
    "umbrella": Shape(
        (
            Part(rectangle(0.46, 0.3, 0.55, 0.96), (90, 70, 60)),
            Part(rectangle(0.46, 0.9, 0.7, 1.0), (90, 70, 60)),
            *_sectors(0.5, 0.5, 0.5, 0.5, 180, 360, 5),
        ),
        aspect=1.05,
        heights=(0.26, 0.46),
        palettes=(((226, 40, 60), (250, 246, 240)), ((40, 130, 80), (250, 240, 200))),
    ),
    "clock": Shape(
        (
            Part(ellipse(0.5, 0.5, 0.5, 0.5), "a"),
            Part(ellipse(0.5, 0.5, 0.39, 0.39), (250, 250, 244)),
            Part(polygon((0.46, 0.54), (0.46, 0.2), (0.54, 0.2), (0.54, 0.54)), _DARK),
            Part(polygon((0.46, 0.46), (0.76, 0.6), (0.72, 0.68), (0.46, 0.54)), _DARK),
            *(Part(ellipse(x, y, 0.04, 0.04), _DARK) for x, y in ((0.5, 0.18), (0.82, 0.5), (0.5, 0.82), (0.18, 0.5))),
        ),
        aspect=1.0,
        heights=(0.18, 0.32),
        palettes=(((40, 40, 48), (0, 0, 0)), ((110, 30, 34), (0, 0, 0))),
    ),
    "balloon": Shape(
        (
            Part(rectangle(0.46, 0.8, 0.54, 1.0), (240, 240, 240)),
            Part(ellipse(0.5, 0.42, 0.5, 0.42), "a"),
            Part(polygon((0.4, 0.9), (0.5, 0.8), (0.6, 0.9)), "b"),
            Part(ellipse(0.34, 0.28, 0.12, 0.14), (255, 236, 246)),
        ),
        aspect=0.68,
        heights=(0.2, 0.36),
        palettes=(((240, 30, 140), (190, 10, 100)), ((250, 50, 170), (190, 20, 120))),
    ),
    "mushroom": Shape(
        (
            Part(polygon((0.34, 0.45), (0.66, 0.45), (0.74, 1.0), (0.26, 1.0)), (246, 236, 214)),
            Part(ellipse(0.5, 0.52, 0.5, 0.5, 180, 360), "a"),
            *(
                Part(ellipse(x, y, 0.08, 0.08), (252, 250, 246))
                for x, y in ((0.5, 0.16), (0.25, 0.32), (0.75, 0.32), (0.5, 0.4))
            ),
        ),
        aspect=1.1,
        heights=(0.16, 0.32),
        palettes=(((208, 30, 30), (0, 0, 0)), ((190, 24, 40), (0, 0, 0))),
    ),
    "butterfly": Shape(
        (
            Part(ellipse(0.25, 0.3, 0.25, 0.3), "a", "checks"),
            Part(ellipse(0.75, 0.3, 0.25, 0.3), "a", "checks"),
            Part(ellipse(0.3, 0.75, 0.2, 0.24), "b", "checks"),
            Part(ellipse(0.7, 0.75, 0.2, 0.24), "b", "checks"),
            Part(ellipse(0.5, 0.5, 0.07, 0.42), _DARK),
        ),
        aspect=1.15,
        heights=(0.15, 0.28),
        palettes=(((80, 220, 240), (30, 150, 220)), ((90, 236, 210), (30, 170, 190))),
    ),
    "rock": Shape(
        (
            Part(
                polygon((0.0, 1.0), (0.06, 0.5), (0.34, 0.1), (0.66, 0.0), (0.92, 0.36), (1.0, 1.0)),
                "a",
                "dots",
            ),
        ),
        aspect=1.3,
        heights=(0.1, 0.2),
        palettes=(((112, 110, 106), (0, 0, 0)), ((134, 124, 112), (0, 0, 0))),
    ),
    "crate": Shape(
        (
            Part(rectangle(0.0, 0.0, 1.0, 1.0), "a"),
            Part(rectangle(0.1, 0.1, 0.9, 0.9), "b", "columns"),
            Part(polygon((0.1, 0.0), (0.24, 0.0), (0.9, 1.0), (0.76, 1.0)), "a"),
        ),
        aspect=1.0,
        heights=(0.12, 0.24),
        palettes=(((168, 150, 70), (126, 108, 44)),),
    ),
}
"""The suite's kinds of thing. "rock" and "crate" belong to no vocabulary: they are clutter in every dataset."""

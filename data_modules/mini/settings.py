"""What the pictures of the mini suite are composed of: layouts, looks, and how hard they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """How hard the suite is; every number that a calibration may want to turn.

    Attributes:
        things: fewest and most things in an image.
        thing_scale: factor on all heights.
        max_overlap: largest share of a thing's box that another one's box may cover.
        hue: largest hue change of a thing, degrees.
        tilt: largest rotation of a thing, degrees.
        background_hue: largest hue change of the stuff in an image, degrees.
        noise: factor on every domain's noise and blur.
        clutter: chance that a thing of the image is of a kind the dataset's vocabulary lacks.
        crowd: chance that an image holds a crowd (where the dataset marks crowds).
        min_visible: things with fewer visible pixels lose their label (VOID, other, or no box).
    """

    things: tuple[int, int] = (2, 6)
    thing_scale: float = 0.8
    max_overlap: float = 0.5
    hue: float = 20.0
    tilt: float = 14.0
    background_hue: float = 16.0
    noise: float = 1.3
    clutter: float = 0.2
    crowd: float = 0.15
    min_visible: int = 48


@dataclass(frozen=True)
class Band:
    """A strip of stuff.

    Attributes:
        top: lowest and highest start of the strip, fractions of the image's height; it ends where the next starts.
        things: kinds that may stand (or float) in it.
        chance: how often the layout has this strip.
        jagged: straight slopes for a border, in place of waves.
        floating: things have their centre in the strip, not their foot.
        straight: a level border.
    """

    stuff: str
    top: tuple[float, float]
    things: tuple[str, ...] = ()
    chance: float = 1.0
    jagged: bool = False
    floating: bool = False
    straight: bool = False


_SKY = Band("sky", (0, 0), ("bird", "balloon", "butterfly"), floating=True)

LAYOUTS: dict[str, tuple[Band, ...]] = {
    "beach": (
        _SKY,
        Band("sea", (0.3, 0.42), ("boat", "fish"), straight=True),
        Band("sand", (0.58, 0.7), ("person", "ball", "umbrella", "dog", "chair")),
    ),
    "street": (
        _SKY,
        Band("mountain", (0.2, 0.32), chance=0.4, jagged=True),
        Band("grass", (0.44, 0.54), ("house", "tree")),
        Band("road", (0.62, 0.72), ("car", "bus", "person")),
    ),
    "meadow": (
        _SKY,
        Band("mountain", (0.2, 0.36), chance=0.6, jagged=True),
        Band("grass", (0.44, 0.58), ("tree", "house", "person", "dog", "mushroom", "ball", "umbrella")),
    ),
    "room": (
        Band("ceiling", (0, 0), chance=0.6),
        Band("wall", (0.1, 0.18), ("painting", "clock"), floating=True, straight=True),
        Band("floor", (0.56, 0.68), ("sofa", "chair", "lamp", "vase", "cup", "person"), straight=True),
        Band("rug", (0.78, 0.86), ("chair", "vase", "cup", "dog", "ball"), chance=0.5),
    ),
    "snowfield": (
        _SKY,
        Band("mountain", (0.22, 0.36), chance=0.6, jagged=True),
        Band("snow", (0.46, 0.6), ("tree", "house", "person", "dog", "car")),
    ),
    "underwater": (
        Band("sky", (0, 0), ("bird",), chance=0.3, floating=True),
        Band("sea", (0.16, 0.24), ("fish",), floating=True, straight=True),
        Band("sand", (0.76, 0.86)),
    ),
    # Of mini-Open alone: bands that never meet elsewhere, and things where they never stand.
    "frozen lake": (
        _SKY,
        Band("snow", (0.24, 0.36), ("tree", "bus", "sofa"), jagged=True),
        Band("sea", (0.54, 0.68), ("boat", "fish", "dog", "umbrella")),
    ),
    "indoor garden": (
        Band("ceiling", (0, 0)),
        Band("wall", (0.12, 0.2), ("painting", "clock", "butterfly", "balloon"), floating=True, straight=True),
        Band("grass", (0.52, 0.64), ("sofa", "chair", "lamp", "vase", "mushroom", "dog", "cup")),
    ),
    "flooded room": (
        Band("wall", (0, 0), ("clock", "painting", "bird"), floating=True),
        Band("sea", (0.46, 0.58), ("boat", "sofa", "chair", "lamp", "fish", "ball"), straight=True),
        Band("floor", (0.78, 0.86), ("cup", "mushroom", "vase"), chance=0.6, straight=True),
    ),
    "desert road": (
        _SKY,
        Band("mountain", (0.18, 0.3), jagged=True, chance=0.6),
        Band("sand", (0.4, 0.52), ("house", "tree", "lamp")),
        Band("road", (0.62, 0.72), ("car", "bus", "dog", "boat", "person")),
    ),
    "roof terrace": (
        _SKY,
        Band("floor", (0.42, 0.54), ("car", "tree", "house", "person", "clock"), straight=True),
        Band("rug", (0.7, 0.8), ("umbrella", "person", "mushroom", "ball", "cup")),
    ),
}


@dataclass(frozen=True)
class Domain:
    """How one dataset looks.

    Attributes:
        layouts: how often each layout occurs.
        noise: standard deviation of the pixel noise, 0-255.
        blur: largest standard deviation of the Gaussian blur, pixels.
        exposure: largest relative change of brightness; gamma and white balance follow it.
        saturation, contrast: factors.
        vignette: how much darker the corners are, 0-1.
        quality: lowest and highest JPEG quality.
    """

    layouts: Mapping[str, float]
    noise: float
    blur: float
    exposure: float
    saturation: float
    contrast: float
    vignette: float
    quality: tuple[int, int]

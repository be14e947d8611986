"""Composes one picture of the mini suite: bands of stuff with wavy borders, and things standing in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data_modules.mini.settings import LAYOUTS, Band, Difficulty, Domain
from data_modules.mini.sprites import Array, Sprite, draw, shift_hue
from data_modules.mini.textures import paint, smooth_noise
from data_modules.mini.things import SHAPES

VOID = -1
CLUTTER = ("rock", "crate")
_CROWDABLE = frozenset({"person", "bird", "fish", "car", "dog"})
_ATTEMPTS = 12


@dataclass(frozen=True)
class Region:
    """One segment of a scene: a kind of stuff, an instance of a thing, or a crowd of things."""

    kind: str
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """One picture with everything that is known of it.

    Attributes:
        rgb: uint8 ``[H, W, 3]``.
        ids: int32 ``[H, W]``, row of ``regions`` that is visible, or `VOID`.
        quality: JPEG quality to store it with.
    """

    rgb: Array
    ids: Array
    regions: tuple[Region, ...]
    quality: int


@dataclass(frozen=True)
class _Placed:
    region: Region
    sprite: Sprite
    left: int
    top: int
    depth: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        rows, columns = self.sprite.alpha.shape
        return self.left, self.top, self.left + columns, self.top + rows


@dataclass(frozen=True)
class _Stage:
    """Where things can stand: bands and their borders (`_borders`), and the rules for placing."""

    bands: Sequence[Band]
    borders: Sequence[Array]
    size: tuple[int, int]
    kinds: frozenset[str]
    rarity: Mapping[str, float]
    difficulty: Difficulty

    def places(self, kinds: frozenset[str], wanted: bool = True) -> list[tuple[int, str]]:
        """(band, kind of thing) for things whose kind is, or is not, among ``kinds``."""
        return [(i, kind) for i, band in enumerate(self.bands) for kind in band.things if (kind in kinds) == wanted]


def compose(
    rng: np.random.Generator,
    size: tuple[int, int],
    domain: Domain,
    kinds: frozenset[str],
    crowds: bool,
    difficulty: Difficulty,
) -> Scene:
    """Make up a picture.

    Args:
        size: (H, W).
        kinds: what the dataset has names for; other kinds occur as clutter only.
        crowds: whether groups of small things are marked as crowds.
    """
    names = list(domain.layouts)
    weights = np.array([domain.layouts[n] for n in names])
    layout = LAYOUTS[names[rng.choice(len(names), p=weights / weights.sum())]]
    bands = [b for b in layout if rng.random() < b.chance]
    borders = _borders(rng, bands, size)
    hue = rng.uniform(-difficulty.background_hue, difficulty.background_hue)
    rgb, ids = _paint_bands(rng, bands, borders, size, hue)
    regions = [Region(b.stuff) for b in bands]
    stage = _Stage(bands, borders, size, kinds, _rarity(domain, kinds), difficulty)
    placed = _place_things(rng, stage)
    if crowds and rng.random() < difficulty.crowd:
        placed += _place_crowd(rng, stage)
    for thing in sorted(placed, key=lambda p: p.depth):
        if thing.region.is_crowd and thing.region in regions:
            number = regions.index(thing.region)
        else:
            number = len(regions)
            regions.append(thing.region)
        _paste(rgb, ids, thing, number)
    count = np.bincount(ids.ravel() + 1, minlength=len(regions) + 1)[1:]
    ids[np.isin(ids, np.flatnonzero(count < difficulty.min_visible))] = VOID
    return Scene(
        rgb=_finish(rng, rgb, domain, difficulty.noise),
        ids=ids,
        regions=tuple(regions),
        quality=int(rng.integers(domain.quality[0], domain.quality[1] + 1)),
    )


def _borders(rng: np.random.Generator, bands: Sequence[Band], size: tuple[int, int]) -> list[Array]:
    """Row at which each band starts, float ``[W]`` per band, plus the bottom of the image."""
    rows, columns = size
    borders = [np.zeros(columns, dtype=np.float32)]
    for band in bands[1:]:
        level = rng.uniform(*band.top) * rows
        if band.straight:
            wave = rng.uniform(-0.03, 0.03) * (np.arange(columns, dtype=np.float32) - columns / 2)
        elif band.jagged:
            peaks = rng.uniform(-0.13, 0.08, size=rng.integers(4, 8)) * rows
            wave = np.interp(np.linspace(0, len(peaks) - 1, columns), np.arange(len(peaks)), peaks)
        else:
            wave = 0.035 * rows * smooth_noise(rng, 4, columns, columns / 4)[1]
        borders.append(np.clip(level + wave, borders[-1] + 2, rows))
    return [*borders, np.full(columns, rows, dtype=np.float32)]


def _paint_bands(
    rng: np.random.Generator, bands: Sequence[Band], borders: Sequence[Array], size: tuple[int, int], hue: float
) -> tuple[Array, Array]:
    rgb = np.zeros((*size, 3), dtype=np.float32)
    ids = np.zeros(size, dtype=np.int32)
    row = np.arange(size[0])[:, None]
    for number, band in enumerate(bands):
        inside = row >= borders[number][None, :]
        rgb = np.where(inside[..., None], shift_hue(paint(band.stuff, rng, *size), hue), rgb)
        ids[inside] = number
    return rgb, ids


def _place_things(rng: np.random.Generator, stage: _Stage) -> list[_Placed]:
    difficulty = stage.difficulty
    known = stage.places(stage.kinds)
    foreign = stage.places(stage.kinds, wanted=False) + [(len(stage.bands) - 1, kind) for kind in CLUTTER]
    placed: list[_Placed] = []
    for _ in range(rng.integers(difficulty.things[0], difficulty.things[1] + 1)):
        choices = foreign if not known or rng.random() < difficulty.clutter else known
        number, kind = _choose(rng, choices, stage)
        for _ in range(_ATTEMPTS):
            thing = _place(rng, kind, number, stage)
            if all(_overlap(thing.box, p.box) <= difficulty.max_overlap for p in placed):
                placed.append(thing)
                break
    return placed


def _choose(rng: np.random.Generator, choices: Sequence[tuple[int, str]], stage: _Stage) -> tuple[int, str]:
    weights = np.array([stage.rarity.get(kind, 1.0) for _, kind in choices])
    return choices[rng.choice(len(choices), p=weights / weights.sum())]


def _rarity(domain: Domain, kinds: frozenset[str]) -> dict[str, float]:
    """Weights that bring kinds which few layouts have nearer to the others: 1 / expected share."""
    share = dict.fromkeys(sorted(kinds), 1e-3)
    for name, weight in domain.layouts.items():
        known = [kind for band in LAYOUTS[name] for kind in band.things if kind in kinds]
        for kind in known:
            share[kind] += weight / len(known)
    return {kind: 1 / value for kind, value in share.items()}


def _place(rng: np.random.Generator, kind: str, number: int, stage: _Stage) -> _Placed:
    """Put one thing into a band: nearer (lower) things are larger."""
    rows, columns = stage.size
    x = int(rng.uniform(0.06, 0.94) * columns)
    top, bottom = float(stage.borders[number][x]), float(stage.borders[number + 1][x])
    nearness = rng.random()
    low, high = SHAPES[kind].heights
    blend = 0.5 * nearness + 0.5 * rng.random()
    height = (low + (high - low) * blend) * min(rows, columns) * stage.difficulty.thing_scale
    sprite = draw(SHAPES[kind], height, rng, stage.difficulty.hue, stage.difficulty.tilt)
    h, w = sprite.alpha.shape
    if stage.bands[number].floating:
        foot = top + (0.2 + 0.7 * rng.random()) * (bottom - top) + h / 2
        foot = max(foot, top + 0.8 * h)
    else:
        foot = top + (0.15 + 0.8 * nearness) * (bottom - top)
    return _Placed(Region(kind), sprite, left=x - w // 2, top=int(foot) - h, depth=number + nearness)


def _place_crowd(rng: np.random.Generator, stage: _Stage) -> list[_Placed]:
    """A huddle of small things of one kind, which are one region."""
    choices = stage.places(stage.kinds & _CROWDABLE)
    if not choices:
        return []
    number, kind = _choose(rng, choices, stage)
    first = _place(rng, kind, number, stage)
    height = SHAPES[kind].heights[0] * min(stage.size) * stage.difficulty.thing_scale * 0.75
    members = []
    for _ in range(rng.integers(5, 9)):
        sprite = draw(SHAPES[kind], height, rng, stage.difficulty.hue, stage.difficulty.tilt)
        left = first.left + int(rng.normal(0, height * SHAPES[kind].aspect))
        top = first.top + int(rng.normal(0, height * 0.3))
        members.append(_Placed(Region(kind, is_crowd=True), sprite, left, top, first.depth))
    return members


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _paste(rgb: Array, ids: Array, thing: _Placed, number: int) -> None:
    """Draw a thing over the picture, in place; what lies outside the image is cut off."""
    rows, columns = ids.shape
    x0, y0, x1, y1 = thing.box
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, columns), min(y1, rows)
    if left >= right or top >= bottom:
        return
    alpha = thing.sprite.alpha[top - y0 : bottom - y0, left - x0 : right - x0]
    color = thing.sprite.rgb[top - y0 : bottom - y0, left - x0 : right - x0]
    area = np.s_[top:bottom, left:right]
    rgb[area] += (color - rgb[area]) * alpha[..., None]
    ids[area][alpha >= 0.5] = number


def _finish(rng: np.random.Generator, rgb: Array, domain: Domain, strength: float) -> Array:
    """The camera of a domain: light, lens and sensor. Float ``[H, W, 3]`` -> uint8."""
    rows, columns = rgb.shape[:2]
    y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
    slope = rng.uniform(-0.1, 0.1, size=2)
    light = 1 + slope[0] * x + slope[1] * y - domain.vignette * 0.5 * (x**2 + y**2)
    balance = 1 + rng.uniform(-0.4, 0.4, size=3) * domain.exposure
    rgb = shift_hue(rgb, 0.0, domain.saturation) * light[..., None] * balance
    rgb = 128 + (rgb * (1 + rng.uniform(-1, 1) * domain.exposure) - 128) * domain.contrast
    gamma = np.exp(rng.uniform(-1, 1) * domain.exposure)
    rgb = 255 * (np.clip(rgb, 0, 255) / 255) ** gamma
    sigma = rng.uniform(0, domain.blur) * strength
    if sigma > 0.2:
        rgb = cv2.GaussianBlur(rgb, (0, 0), sigma)
    rgb = rgb + rng.normal(0, 1, size=rgb.shape) * domain.noise * strength
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)

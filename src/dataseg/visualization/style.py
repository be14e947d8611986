"""How figures and pages look: one palette for light and for dark, and matplotlib figures drawn in it.

matplotlib takes a third of a second to import, so it is imported where a figure is made, not with this module.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

LIGHT = {
    "paper": "#ffffff", "panel": "#f5f6f8", "ink": "#17202c", "muted": "#566173", "rule": "#d9dee6", "link": "#1d56b8",
    "up": "#0b6b3a", "down": "#b3261e", "warn": "#fff4d6", "warn-ink": "#6b4700",
    "c0": "#1f5fd0", "c1": "#c2410c", "c2": "#15803d", "c3": "#a21caf", "c4": "#0e7490",
    "c5": "#8a6100", "c6": "#be123c", "c7": "#5b4bc4", "c8": "#4b5563", "c9": "#4d7c0f",
}  # fmt: skip
"""Colours by role: no two are equal, since the colours of a figure are told apart by them."""

DARK = {
    "paper": "#12161c", "panel": "#1b212a", "ink": "#e7ebf1", "muted": "#a3aebd", "rule": "#333c49", "link": "#8ab8ff",
    "up": "#6fd79b", "down": "#ff9288", "warn": "#3a2f12", "warn-ink": "#ffdf94",
    "c0": "#79aaff", "c1": "#ff9a5a", "c2": "#5ecf86", "c3": "#ee8df0", "c4": "#4fcbe0",
    "c5": "#e0bb4a", "c6": "#ff8398", "c7": "#b3a6ff", "c8": "#b5bfcc", "c9": "#b3d65c",
}  # fmt: skip

SERIES = 10
"""Colours ``c0`` to ``c9`` of curves."""

_SETTINGS: dict[Any, Any] = {
    "figure.dpi": 72,  # a point of a font is a pixel
    "font.sans-serif": ["DejaVu Sans"],  # the one that matplotlib brings
    "font.size": 12,
    "text.parse_math": False,  # names are no formulas
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dataseg",  # the same figure gives the same file
    "pdf.fonttype": 42,  # fonts that journals take
}
_TITLE = "title: "
_LINK = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def style() -> Iterator[None]:
    """Settings of matplotlib for our figures, while they are made and while they are saved; also a decorator."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure of ``width`` by ``height`` pixels, without pyplot's global state; call it inside `style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout=layout)


def series_color(number: int) -> str:
    """The colour of a curve; they repeat after `SERIES`."""
    return LIGHT[f"c{number % SERIES}"]


def css_color(rgb: Sequence[int]) -> str:
    """``#rrggbb`` of three values in [0, 255]."""
    return "#" + bytes(rgb).hex()


def tooltip(artist: Artist, text: str) -> None:
    """Text that a page shows while the pointer is on a part of a figure."""
    artist.set_gid(_TITLE + text)


@style()
def raster(figure: Figure) -> NDArray[np.uint8]:
    """A figure's pixels, uint8 ``[H, W, 3]``, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@style()
def save(figure: Figure, path: Path) -> None:
    """Write a figure; the ending says which kind, e.g. ``.pdf``. The same figure gives the same bytes."""
    dated = {".pdf": "CreationDate", ".svg": "Date"}.get(path.suffix)
    figure.savefig(path, metadata={dated: None} if dated else None)


@style()
def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an ``<svg>`` element for a page, in the page's colours and font.

    Args:
        name: prefix of its ids, unique in the page.
        label: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("metadata", "style")):  # that style would hold for the whole page
                parent.remove(child)
    for element in list(root.iter()):
        _simplify(element, name)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for role, color in LIGHT.items():
        text = text.replace(color, f"var(--{role})")
    return text


def _simplify(element: ElementTree.Element, name: str) -> None:
    """Without namespaces and long numbers; the ids that are used become unique, tooltips become titles."""
    attributes = element.attrib
    element.tag = element.tag.rpartition("}")[2]
    element.text, element.tail = (text and text.strip() for text in (element.text, element.tail))
    identity = attributes.pop("id", "")
    if identity.startswith(_TITLE):
        title = ElementTree.Element("title")
        title.text = identity.removeprefix(_TITLE)
        element.insert(0, title)
    elif element.tag == "path" and identity:
        attributes["id"] = f"{name}-{identity}"
    if _LINK in attributes:
        attributes["href"] = f"#{name}-{attributes.pop(_LINK)[1:]}"
    for key in {"d", "x", "y", "transform"} & set(attributes):
        attributes[key] = " ".join(re.sub(r"(\.\d\d)\d+", r"\1", attributes[key]).split())
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]

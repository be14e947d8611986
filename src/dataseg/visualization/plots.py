"""Line, dot and bar charts, as matplotlib figures of a width that a page can show four of beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataseg.visualization.style import LIGHT, new_figure, series_color, style, tooltip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 350
_LINE = 15  # pixels of a line of text
_NAME = 24  # characters of a line of a name; longer names take several
_MOST_DOTS = 12  # points of a curve that are marked


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: shown in the legend and while the pointer is on it.
        points: (x, y), by x.
        color: number of the colour; any.
        is_dashed: a second kind of line.
        is_thin: background, such as a single seed; has no label.
    """

    label: str
    points: Sequence[tuple[float, float]]
    color: int
    is_dashed: bool = False
    is_thin: bool = False


@dataclass(frozen=True)
class Dots:
    """A line of a dot chart: one dot a value, a large one at ``center``; without values, ``note`` in their place."""

    label: str
    values: Sequence[float]
    center: float
    color: int
    note: str = ""


@style()
def line_chart(curves: Sequence[Curve], x_label: str, y_label: str) -> Figure:
    """Curves over a common axis that starts at 0; thin ones behind. The points of short curves are marked."""
    figure = new_figure(_WIDTH, 250)
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    for curve in curves:
        color, dashes = series_color(curve.color), (0, (4, 3)) if curve.is_dashed else "-"
        if curve.is_thin:
            axes.plot(*zip(*curve.points, strict=True), color=color, linestyle=dashes, linewidth=1, alpha=0.4)
            continue
        (line,) = axes.plot(*zip(*curve.points, strict=True), color=color, linestyle=dashes, linewidth=2.2)
        line.set(label=curve.label, zorder=3)
        tooltip(line, curve.label)
        for x, y in curve.points if len(curve.points) <= _MOST_DOTS else ():
            (dot,) = axes.plot(x, y, "o", color=color, markersize=5, zorder=4)
            tooltip(dot, f"{curve.label}, step {x:,.0f}: {y:.1f}")
    axes.set_xlim(left=min(0, axes.get_xlim()[0]) if _least(curves) < 0 else 0)
    axes.locator_params(nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: _tick(x))
    return _unclipped(figure, axes)


def _least(curves: Sequence[Curve]) -> float:
    return min((x for curve in curves for x, _ in curve.points), default=0.0)


@style()
def dot_chart(entries: Sequence[Dots], reference: float | None, x_label: str) -> Figure:
    """One line an entry: its values, their range, their centre; a vertical line at ``reference``."""
    figure, axes = _rows([entry.label for entry in entries], 22, x_label)
    for row, entry in enumerate(entries):
        color = series_color(entry.color)
        if not entry.values:
            axes.annotate(entry.note, (0, row), (6, 0), ("axes fraction", "data"), "offset points", va="center")
            continue
        axes.plot([min(entry.values), max(entry.values)], [row, row], color=color, linewidth=2.2)
        axes.plot(entry.values, [row] * len(entry.values), "o", color=color, markersize=6, alpha=0.55, linewidth=0)
        (center,) = axes.plot(entry.center, row, "o", color=color, markersize=10)
        tooltip(center, f"{entry.label}: {entry.note}")
    if reference is not None:
        axes.axvline(reference, color=LIGHT["muted"], linestyle=(0, (3, 3)), linewidth=1.4, zorder=1)
    return _unclipped(figure, axes)


@style()
def bar_chart(entries: Sequence[tuple[str, float]], x_label: str) -> Figure:
    """Horizontal bars to both sides of 0 with their values, one line an entry (name, value), in the order given."""
    figure, axes = _rows([name for name, _ in entries], 18, x_label)
    values = [value for _, value in entries]
    bars = axes.barh(range(len(values)), values, 0.65, color=[LIGHT["up" if v >= 0 else "down"] for v in values])
    axes.bar_label(bars, [f"{v:+.1f}".replace("-", "\N{MINUS SIGN}") for v in values], padding=3, fontsize=11)
    for bar, (name, value) in zip(bars, entries, strict=True):
        tooltip(bar, f"{name}: {value:+.1f}")
    axes.axvline(0, color=LIGHT["muted"], linewidth=1)
    axes.margins(x=0.16)  # room for the values
    return _unclipped(figure, axes)


@style()
def add_legend(figure: Figure) -> None:
    """Name the curves below a chart, once; a chart without named curves stays as it is."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if not labels or figure.legends:
        return
    columns = 2 if max(map(len, labels)) <= _NAME else 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + (1.5 * _LINE * rows + 10) / 72)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _rows(names: Sequence[str], height: int, x_label: str) -> tuple[Figure, Axes]:
    """A chart with one row a name, the first at the top."""
    wrapped = [textwrap.fill(name, _NAME) for name in names]
    lines = max((text.count("\n") for text in wrapped), default=0)
    figure = new_figure(_WIDTH, (height + _LINE * lines) * len(names) + 50)
    axes = figure.add_subplot(xlabel=x_label)
    axes.grid(axis="x")
    axes.set_yticks(range(len(names)), wrapped)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: _tick(x))
    return figure, axes


def _tick(value: float) -> str:
    """A tick's number; thousands as k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _unclipped(figure: Figure, axes: Axes) -> Figure:
    """Nothing lies outside its axes; without clipping, an SVG needs no paths for it."""
    for artist in (*axes.lines, *axes.patches, *axes.texts, *axes.get_xgridlines(), *axes.get_ygridlines()):
        artist.set_clip_on(False)
    return figure

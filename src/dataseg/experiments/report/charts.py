"""Charts as inline SVG. Colours are classes ``c0`` to ``c9`` and roles, which the page's style gives values to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dataseg.experiments.report.statistics import number, signed

COLORS = 10
"""Distinct line colours in the style."""

_WIDTH = 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 40
_ROW = 22  # height of a line of text charts
_LONGEST = 20  # characters of a name; longer ones are cut short
_CHARACTER = 6.4  # width of one at 12 pixels, for margins


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: shown while the pointer is on it.
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
    """A line of a dot chart: one dot a value, a large one at ``center``."""

    label: str
    values: Sequence[float]
    center: float
    color: int
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers; the first is at most ``low``, the last at least ``high``."""
    largest = max(abs(low), abs(high))
    span = high - low if high - low > 1e-6 * largest else largest
    span = span if span > 1e-300 else 1.0  # nothing, or too little to be divided
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, name: str) -> str:
    """Curves over a common axis; thin ones behind. Points that stand alone get a dot."""
    height = 250
    points = [point for curve in curves for point in curve.points]
    if not points:
        return _nothing(name)
    xs, ys = (ticks(min(v), max(v)) for v in zip(*points, strict=True))
    if min(x for x, _ in points) >= 0:
        xs = ticks(0, max(x for x, _ in points))
    x_of = _Scale(xs[0], xs[-1], _LEFT, _WIDTH - _RIGHT)
    y_of = _Scale(ys[0], ys[-1], height - _BOTTOM, _TOP)
    parts = []
    for y in ys:
        parts.append(f'<path class=grid d="M{_LEFT} {y_of(y):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y_of(y) + 4, _short(y), "end"))
    for x in xs:
        parts.append(f'<path class=tick d="M{x_of(x):.1f} {height - _BOTTOM}v4"/>')
        parts.append(_text(x_of(x), height - _BOTTOM + 17, _short(x), "middle"))
    parts.append(f'<path class=axis d="M{_LEFT} {height - _BOTTOM}H{_WIDTH - _RIGHT}"/>')
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, height - 5, x_label, "middle"))
    parts.append(
        f'<text text-anchor=middle transform="translate(9 {(_TOP + height - _BOTTOM) / 2:.0f}) rotate(-90)">'
        f"{escape(y_label)}</text>"
    )
    for curve in sorted(curves, key=lambda curve: not curve.is_thin):
        parts.append(_curve(curve, [(x_of(x), y_of(y)) for x, y in curve.points]))
    return _svg(_WIDTH, height, "".join(parts), name)


def _curve(curve: Curve, places: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    kind = f"c{curve.color % COLORS}" + (" dashed" if curve.is_dashed else "") + (" thin" if curve.is_thin else "")
    line = f'<path class="line {kind}" d="{path}"/>'
    if curve.is_thin:
        return line
    dots = []
    if len(places) <= 12:
        for (x, y), (at, value) in zip(places, curve.points, strict=True):
            title = escape(f"{curve.label}, step {at:,.0f}: {number(value)}")
            dots.append(f'<circle class="dot {kind}" cx={x:.1f} cy={y:.1f} r=3><title>{title}</title></circle>')
    reach = f'<path class=reach d="{path}"/>'  # a broad one, so that the pointer finds it
    return f"<g><title>{escape(curve.label)}</title>{line}{reach}{''.join(dots)}</g>"


def dot_chart(entries: Sequence[Dots], reference: float | None, x_label: str, name: str) -> str:
    """One line an entry: its values, their range, their centre; a vertical line at ``reference``."""
    values = [value for entry in entries for value in entry.values]
    if not values:
        return _nothing(name)
    left = _margin([entry.label for entry in entries])
    xs = ticks(min(values), max(values), 4)
    x_of = _Scale(xs[0], xs[-1], left, _WIDTH - _RIGHT - 8)
    bottom = _TOP + _ROW * len(entries)
    parts = []
    for x in xs:
        parts.append(f'<path class=grid d="M{x_of(x):.1f} {_TOP}V{bottom}"/>')
        parts.append(_text(x_of(x), bottom + 15, _short(x), "middle"))
    if reference is not None:
        parts.append(f'<path class=reference d="M{x_of(reference):.1f} {_TOP - 4}V{bottom}"/>')
    for k, entry in enumerate(entries):
        y = _TOP + _ROW * (k + 0.5)
        parts.append(_name(left - 8, y + 4, entry.label))
        if not entry.values:
            parts.append(_text(left + 6, y + 4, entry.note, "start"))
            continue
        kind = f"c{entry.color % COLORS}"
        low, high = x_of(min(entry.values)), x_of(max(entry.values))
        dots = "".join(f'<circle class="seed {kind}" cx={x_of(v):.1f} cy={y:.1f} r=3 />' for v in entry.values)
        parts.append(
            f'<g><title>{escape(f"{entry.label}: {entry.note}")}</title><path class="line {kind}" d="M{low:.1f} {y:.1f}'
            f'H{high:.1f}"/>{dots}<circle class="dot {kind}" cx={x_of(entry.center):.1f} cy={y:.1f} r=5 /></g>'
        )
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, bottom + 32, x_label, "middle"))
    return _svg(_WIDTH, bottom + 38, "".join(parts), name)


def bar_chart(entries: Sequence[tuple[str, float]], x_label: str, name: str) -> str:
    """Horizontal bars to both sides of 0, one line an entry (name, value), in the order given."""
    if not entries:
        return _nothing(name)
    row = 18
    left = _margin([label for label, _ in entries])
    values = [value for _, value in entries]
    xs = ticks(min(0.0, *values), max(0.0, *values), 4)
    room = 34  # for the number beside a bar
    x_of = _Scale(xs[0], xs[-1], left + room * (min(values) < 0), _WIDTH - room)
    bottom = _TOP + row * len(entries)
    parts = [f'<path class=grid d="M{x_of(x):.1f} {_TOP}V{bottom}"/>' for x in xs]
    parts += [_text(x_of(x), bottom + 15, _short(x), "middle") for x in xs]
    for k, (label, value) in enumerate(entries):
        top, start, end = _TOP + row * k, x_of(min(0.0, value)), x_of(max(0.0, value))
        side, anchor = (end + 4, "start") if value >= 0 else (start - 4, "end")
        parts.append(_name(left - 4, top + 13, label))
        parts.append(
            f"<rect class={'gain' if value >= 0 else 'loss'} x={start:.1f} y={top + 3} rx=2 "
            f"width={max(end - start, 1):.1f} height={row - 6}><title>{escape(label)}: {signed(value)}</title></rect>"
        )
        parts.append(_text(side, top + 13, signed(value), anchor))
    parts.append(f'<path class=axis d="M{x_of(0.0):.1f} {_TOP}V{bottom}"/>')
    parts.append(_text((left + _WIDTH - _RIGHT) / 2, bottom + 32, x_label, "middle"))
    return _svg(_WIDTH, bottom + 38, "".join(parts), name)


@dataclass(frozen=True)
class _Scale:
    """Values to places."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _margin(labels: Sequence[str]) -> float:
    return 12 + _CHARACTER * min(_LONGEST, max(len(label) for label in labels))


def _short(value: float) -> str:
    """A tick's number; thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x={x:.1f} y={y:.1f} text-anchor={anchor}>{escape(text)}</text>"


def _name(x: float, y: float, name: str) -> str:
    """Of a row or class, to the left of ``x``."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"
    title = f"<title>{escape(name)}</title>" if short != name else ""
    return f"<text x={x:.1f} y={y:.1f} text-anchor=end>{title}{escape(short)}</text>"


def _svg(width: float, height: float, body: str, name: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role=img aria-label="{escape(name)}">{body}</svg>'


def _nothing(name: str) -> str:
    return f"<p class=note>{escape(name)}: nothing to draw.</p>"

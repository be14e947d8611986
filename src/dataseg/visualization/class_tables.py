"""Per-class figures and confusion matrices as markdown and as pictures, for TensorBoard and the command line.

Legend: C = classes. Figures are percent; counts (pixels, instances, tp, fp, fn) are shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COUNTS = frozenset({"pixels", "instances", "tp", "fp", "fn"})
Picture = NDArray[np.uint8]

_FONT_SIZE = 12
_LINE = 16
_INK, _PAPER, _BAR, _GRID = (30, 30, 30), (255, 255, 255), (120, 170, 220), (225, 225, 225)


def is_count(column: str) -> bool:
    """Whether a column of ``per_class`` counts something, and is no fraction (suffixes like ``_stored`` aside)."""
    return column.split("_")[0] in COUNTS


def figures_of_class(columns: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """``{class: {column: percent or count}}``, None where undefined: what goes into a JSON file."""
    table: dict[str, dict[str, float | None]] = {}
    for c, name in enumerate(names):
        key = name if name not in table else f"{name} ({c})"  # some vocabularies have a name twice
        table[key] = {column: _value(column, float(values[c])) for column, values in columns.items()}
    return table


def _value(column: str, value: float) -> float | None:
    if value != value:
        return None
    return value if is_count(column) else 100 * value


def _text(column: str, value: float) -> str:
    if value != value:
        return "-"
    return f"{value:,.0f}" if is_count(column) else f"{100 * value:.2f}"


def _escape(name: str) -> str:
    return name.replace("|", "\\|").replace("\n", " ")


def per_class_markdown(columns: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """A markdown table, one line a class in the order of the vocabulary; "-" where undefined.

    Args:
        columns: ``[C]`` each, as a metric's ``per_class`` gives them.
        names: C class names.
    """
    lines = ["| class | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for c, name in enumerate(names):
        cells = (_text(column, float(values[c])) for column, values in columns.items())
        lines.append(f"| {_escape(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def confusion_markdown(confusion: Tensor, names: Sequence[str], top: int = 30) -> str:
    """The ``top`` largest confusions, as share of the ground-truth class's pixels.

    Args:
        confusion: ``[C, C + 1]``, rows ground truth, last column "nothing".
        names: C class names.
    """
    columns = [*names, "(nothing)"]
    share = _row_shares(confusion)
    np.fill_diagonal(share, 0.0)
    lines = ["| ground truth | predicted as | % of its pixels | pixels |", "|---|---|---:|---:|"]
    for flat in np.argsort(-share, axis=None, kind="stable")[:top]:
        row, column = divmod(int(flat), share.shape[1])
        if share[row, column] > 0:
            cells = f"{100 * share[row, column]:.2f} | {int(confusion[row, column]):,}"
            lines.append(f"| {_escape(names[row])} | {_escape(columns[column])} | {cells} |")
    return "\n".join(lines)


def _row_shares(confusion: Tensor) -> NDArray[np.float64]:
    counts = confusion.cpu().double().numpy()
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def per_class_picture(columns: Mapping[str, Tensor], names: Sequence[str], sort_by: str | None = None) -> Picture:
    """A table with a bar behind each percentage, uint8 ``[rows, columns, 3]``, RGB.

    Args:
        columns: ``[C]`` each.
        names: C class names.
        sort_by: column to sort by, best first, undefined last; None = order of the vocabulary.
    """
    order = list(range(len(names)))
    if sort_by is not None:
        keys = [float(v) for v in columns[sort_by]]
        order.sort(key=lambda c: (keys[c] != keys[c], -keys[c] if keys[c] == keys[c] else 0.0))
    font = ImageFont.load_default(_FONT_SIZE)
    name_width = 12 + max(int(font.getlength(name)) for name in ("class", *names))
    widths = [max(96, 16 + int(font.getlength(column))) for column in columns]
    sheet = Image.new("RGB", (name_width + sum(widths), _LINE * (len(names) + 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 1), "class", fill=_INK, font=font)
    for line, c in enumerate(order, start=1):
        draw.text((4, line * _LINE + 1), names[c], fill=_INK, font=font)
    left = name_width
    for (column, values), width in zip(columns.items(), widths, strict=True):
        draw.text((left + 4, 1), column, fill=_INK, font=font)
        for line, c in enumerate(order, start=1):
            value, top = float(values[c]), line * _LINE
            if value == value and not is_count(column):
                draw.rectangle(
                    (left, top + 1, left + (width - 8) * min(max(value, 0.0), 1.0), top + _LINE - 2), fill=_BAR
                )
            draw.text((left + 4, top + 1), _text(column, value), fill=_INK, font=font)
        left += width
    return np.asarray(sheet).copy()


def confusion_picture(confusion: Tensor, names: Sequence[str], cell: int | None = None) -> Picture:
    """Heat map of the shares of each ground-truth class's pixels, uint8 ``[rows, columns, 3]``, RGB.

    Rows are ground truth, columns predictions, the last one "nothing"; darker is more; a class without ground truth is
    grey. Names stand beside the rows and above the columns.

    Args:
        confusion: ``[C, C + 1]``.
        names: C class names.
        cell: pixels a cell; None = as many as keep the picture near 1600 pixels, at least 10.
    """
    share = _row_shares(confusion)
    cell = cell or max(10, min(32, 1600 // share.shape[1]))
    heat = (255 * (1 - np.sqrt(share)))[..., None].repeat(3, 2)
    heat[..., 2] = 255 - 0.35 * (255 - heat[..., 2])  # towards blue
    heat[confusion.cpu().numpy().sum(1) == 0] = _GRID
    blocks = heat.astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    columns = [*names, "(nothing)"]
    beside, above = (_name_strip(columns, cell, at_end) for at_end in (True, False))
    margin = beside.width
    sheet = Image.new("RGB", (margin + blocks.shape[1], margin + blocks.shape[0]), _PAPER)
    sheet.paste(beside.crop((0, 0, margin, blocks.shape[0])), (0, margin))
    sheet.paste(above.transpose(Image.Transpose.ROTATE_90), (margin, 0))  # reads upwards from its column
    sheet.paste(Image.fromarray(blocks), (margin, margin))
    return np.asarray(sheet).copy()


def _name_strip(names: Sequence[str], cell: int, at_end: bool) -> Image.Image:
    """Names below each other, one a cell, at the right end of the strip or at the left."""
    font = ImageFont.load_default(min(_FONT_SIZE, cell))
    width = 10 + max(int(font.getlength(name)) for name in names)
    strip = Image.new("RGB", (width, cell * len(names)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for c, name in enumerate(names):
        place = (width - 5 if at_end else 5, c * cell + cell / 2)
        draw.text(place, name, fill=_INK, font=font, anchor="rm" if at_end else "lm")
    return strip

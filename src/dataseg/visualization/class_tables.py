"""Per-class scores and confusion matrices as markdown and as pictures, for TensorBoard and the command line.

Legend: C = classes. Scores are percent; counts (pixels, instances, tp, fp, fn) are shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataseg.visualization.style import LIGHT, new_figure, raster, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTS = frozenset({"pixels", "instances", "tp", "fp", "fn"})
Picture = NDArray[np.uint8]

_FONT = 12
_LINE = 16
_BAR = "#a9c8ea"
_MOST_ROWS = 60  # of a picture: 365 classes would take seconds after each validation, and nobody reads so many


def is_count(column: str) -> bool:
    """Whether a column of ``per_class`` counts something, and is no fraction (suffixes like ``_stored`` aside)."""
    return column.split("_")[0] in COUNTS


def scores_of_class(columns: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
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


@style()
def per_class_picture(columns: Mapping[str, Tensor], names: Sequence[str], sort_by: str | None = None) -> Picture:
    """A table with a bar behind each percentage, uint8 ``[rows, columns, 3]``, RGB.

    Of more than 60 classes the first and the last 30 are shown; the markdown has all.

    Args:
        columns: ``[C]`` each.
        names: C class names.
        sort_by: column to sort by, best first, undefined last; None = order of the vocabulary.
    """
    order = np.argsort(-columns[sort_by].cpu().double().numpy(), kind="stable") if sort_by else np.arange(len(names))
    if len(order) > _MOST_ROWS:
        order = np.concatenate([order[: _MOST_ROWS // 2], order[-_MOST_ROWS // 2 :]])
    left = _room([*names, "class"], _FONT)
    widths = [max(96, _room([column], _FONT)) for column in columns]
    figure = new_figure(left + sum(widths), _LINE * (len(order) + 1), layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, left + sum(widths)), ylim=(len(order) + 0.5, -0.5))
    axes.set_axis_off()
    rows = range(1, len(order) + 1)
    _write_column(axes, 4, ["class", *(names[c] for c in order)])
    for (column, values), width in zip(columns.items(), widths, strict=True):
        found = values.cpu().double().numpy()[order]
        if not is_count(column):
            axes.barh(rows, (width - 8) * np.clip(np.nan_to_num(found), 0, 1), 0.85, left, color=_BAR)
        _write_column(axes, left + 4, [column, *(_text(column, value) for value in found.tolist())])
        left += width
    return raster(figure)


def _write_column(axes: Axes, x: float, texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        axes.text(x, row, text, va="center_baseline")


def _room(texts: Sequence[str], size: float) -> float:
    """Pixels that the longest text takes, about, with a margin on both sides."""
    from matplotlib.textpath import TextPath

    longest = sorted(texts, key=len)[-8:]
    return 10 + max(round(float(TextPath((0, 0), text, size=size).get_extents().x1)) for text in longest)


@style()
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
    columns, size = [*names, "(nothing)"], min(_FONT, cell)
    margin = _room(columns, size)
    width, height = (margin + cell * count for count in reversed(share.shape))
    figure = new_figure(width, height, layout=None)
    axes = figure.add_axes((margin / width, 0, 1 - margin / width, 1 - margin / height))
    empty = np.broadcast_to(confusion.cpu().numpy().sum(1, keepdims=True) == 0, share.shape)
    axes.imshow(np.ma.array(np.sqrt(share), mask=empty), "Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    axes.set_facecolor(LIGHT["rule"])  # shows where the map is masked
    axes.set_xticks(range(len(columns)), columns, rotation=90, size=size)
    axes.set_yticks(range(len(names)), names, size=size)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return raster(figure)

"""Panels: pictures of one image side by side, under their titles and above a legend of what they show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from dataseg.structures import VOID, SegmentMap, Target, Vocabulary
from dataseg.visualization.overlay import NOTHING, Picture
from dataseg.visualization.style import css_color, new_figure, raster, style

GAP = 4
"""Pixels between two pictures."""


def present(targets: Iterable[Target], vocabulary: Vocabulary) -> list[int]:
    """Labels that occur in any of the targets: things first, then stuff, each in the vocabulary's order."""
    found: set[int] = set()
    for target in targets:
        labels = target.labels
        if isinstance(target, SegmentMap):  # may list classes that have no pixel
            sizes = torch.bincount(target.ids.flatten().long() - VOID, minlength=len(labels) + 1)
            labels = labels[sizes[1:] > 0]
        found |= set(labels.tolist())
    return sorted(found, key=lambda label: (not vocabulary.classes[label].is_thing, label))


def text_size(width: int, count: int) -> int:
    """Height of the text of a panel of ``count`` pictures: readable when it is shown at a third of its size; pixels."""
    return round(min(max((count * (width + GAP) - GAP) / 50, 9), 30))


@style()
def panel(
    pictures: Mapping[str, Picture], labels: Sequence[int], vocabulary: Vocabulary, nothing: bool = False
) -> Picture:
    """Pictures side by side with titles and legend.

    Args:
        pictures: uint8 ``[H, W, 3]`` by title, all of one size.
        labels: classes that the legend names, all of them.
        nothing: the legend also explains the hatching where nothing is predicted.

    Returns:
        uint8 ``[rows, len(pictures) * (W + GAP) - GAP, 3]``; the pictures stand in it pixel by pixel.
    """
    from matplotlib.patches import Patch

    height, width = next(iter(pictures.values())).shape[:2]
    total = len(pictures) * (width + GAP) - GAP
    size = text_size(width, len(pictures))
    line = round(1.5 * size)
    names = [vocabulary.names[label] for label in labels]
    patches = [
        Patch(facecolor=css_color(vocabulary.classes[label].color), label=vocabulary.names[label]) for label in labels
    ]
    if nothing:
        names.append("nothing predicted")
        patches.append(Patch(facecolor="white", edgecolor=css_color(NOTHING), hatch="////", label=names[-1]))
    columns = max(1, int(total / (size * (3 + 0.62 * max(map(len, names), default=1)))))
    rows = -(-len(patches) // columns)
    figure = new_figure(total, line + height + rows * line, layout=None)
    canvas_height = figure.get_figheight() * figure.dpi
    for number, title in enumerate(pictures):
        middle = number * (width + GAP) + width / 2
        figure.text(middle / total, 1 - line / 2 / canvas_height, title, size=size, ha="center", va="center")
    if patches:
        figure.legend(
            handles=patches,
            loc="upper left",
            bbox_to_anchor=(0, rows * line / canvas_height),
            ncols=columns,
            fontsize=size,
            handlelength=1,
            handleheight=0.8,
            handletextpad=0.5,
            columnspacing=1.2,
            labelspacing=0.32,
            borderpad=0,
            borderaxespad=0.1,
        )
    result = raster(figure)
    for number, picture in enumerate(pictures.values()):
        left = number * (width + GAP)
        result[line : line + height, left : left + width] = picture
    return result

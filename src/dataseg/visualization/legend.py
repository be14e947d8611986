"""What stands around a panel: titles above its pictures, class colours and names below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch

from dataseg.structures import VOID, SegmentMap, Target, Vocabulary
from dataseg.visualization.overlay import FONT, Picture

BACKGROUND = 255
_TEXT = (40, 40, 40)
MAX_ROWS = 3


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


def titles(words: Sequence[str], width: int, gap: int, text: float) -> Picture:
    """Words centred above pictures of equal width.

    Args:
        width: of one picture, pixels.
        gap: between two pictures, pixels.
        text: font scale.

    Returns:
        uint8 ``[rows, len(words) * width + (len(words) - 1) * gap, 3]``.
    """
    row = _row_height(text)
    strip = _blank(row, len(words) * width + (len(words) - 1) * gap)
    for i, word in enumerate(words):
        left = i * (width + gap) + (width - _width(word, text)) // 2
        _write(strip, word, max(0, left), 0, text)
    return strip


def legend(labels: Sequence[int], vocabulary: Vocabulary, width: int, text: float) -> Picture:
    """A swatch and the name of each class, wrapped to the width; what `MAX_ROWS` cannot hold is counted.

    Returns:
        uint8 ``[rows, width, 3]``; no rows without labels.
    """
    row = _row_height(text)
    entries = [(vocabulary.names[label], vocabulary.classes[label].color) for label in labels]
    places, left_out = _arrange([_entry_width(name, text) for name, _ in entries], width, text)
    strip = _blank(row * (1 + places[-1][0]) if places else 0, width)
    for (name, color), (line, x) in zip(entries[: len(entries) - left_out], places, strict=False):
        top = line * row
        inset = max(2, row // 6)
        corner = (x + row - 2 * inset, top + row - inset)
        cv2.rectangle(strip, (x, top + inset), corner, color, cv2.FILLED)
        cv2.rectangle(strip, (x, top + inset), corner, _TEXT, 1)
        _write(strip, name, x + row - inset, top, text)
    if left_out:
        line, x = places[-1]
        _write(strip, _more(left_out), x, line * row, text)
    return strip


def _arrange(widths: list[int], width: int, text: float) -> tuple[list[tuple[int, int]], int]:
    """Row and left edge of each entry that fits, then, if any is left out, of the count; and how many are left out."""
    places: list[tuple[int, int]] = []
    line, x = 0, 0
    for entry in widths:
        if x and x + entry > width:
            line, x = line + 1, 0
        if line == MAX_ROWS:
            break
        places.append((line, x))
        x += entry
    left_out = len(widths) - len(places)
    while left_out:
        line, x = places[-1][0], places[-1][1] + widths[len(places) - 1]
        if x + _width(_more(left_out), text) <= width or len(places) == 1:
            return [*places, (line, x)], left_out
        places.pop()
        left_out += 1
    return places, 0


def _more(count: int) -> str:
    return f"+ {count} more"


def _blank(rows: int, columns: int) -> Picture:
    return np.full((rows, columns, 3), BACKGROUND, np.uint8)


def _row_height(text: float) -> int:
    return round(34 * text)


def _width(word: str, text: float) -> int:
    return int(cv2.getTextSize(word, FONT, text, 1)[0][0])


def _entry_width(name: str, text: float) -> int:
    row = _row_height(text)
    return row + _width(name, text) + row // 2


def _write(strip: Picture, word: str, x: int, top: int, text: float) -> None:
    cv2.putText(strip, word, (x, top + round(24 * text)), FONT, text, _TEXT, 1, cv2.LINE_AA)

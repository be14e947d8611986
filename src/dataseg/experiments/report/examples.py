"""Example predictions of two rows side by side, small enough for a page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from dataseg.experiments.report.collect import Run
from dataseg.experiments.report.comparison import Comparison
from dataseg.metrics.by_task import task_of

_SIZES = ((960, 80), (800, 72), (640, 66), (480, 60), (360, 50))  # width in pixels, JPEG quality: the largest that fit


@dataclass(frozen=True)
class Example:
    """One image, as two rows or more see it.

    Attributes:
        group: ``<dataset>.<task>``.
        image_id: of the dataset.
        panels: encoded pictures by label of the row, the baseline first.
    """

    group: str
    image_id: str
    panels: dict[str, bytes]


def examples_of(comparisons: Sequence[Comparison], most: int) -> list[Example]:
    """Images that the baseline and the rows it is compared with show, from the first seed of each.

    Args:
        most: pictures of each dataset and task, about; two an image for two rows.
    """
    merged: dict[tuple[str, str], dict[str, bytes]] = {}
    for comparison in comparisons:
        dataset, _, name = comparison.column.metric.partition(".")
        group = f"{dataset}.{task_of(name)}"
        base, other = (_panels(line.runs, group) for line in (comparison.base, comparison.other))
        for image_id in sorted(set(base) & set(other)):
            panels = merged.setdefault((group, image_id), {comparison.base.label: base[image_id]})
            panels[comparison.other.label] = other[image_id]
    examples: list[Example] = []
    shown: Counter[str] = Counter()
    for (group, image_id), panels in merged.items():
        if shown[group] == 0 or shown[group] + len(panels) <= most:
            examples.append(Example(group, image_id, panels))
            shown[group] += len(panels)
    return examples


def _panels(runs: Sequence[Run], group: str) -> dict[str, bytes]:
    pictures = runs[0].events.pictures if runs else {}
    return {tag.removeprefix(f"{group}/"): picture for tag, picture in pictures.items() if tag.startswith(f"{group}/")}


def data_uris(pictures: Sequence[bytes], budget: int) -> dict[bytes, str]:
    """JPEG data URIs by picture, in the largest of a few sizes in which all fit.

    Args:
        pictures: encoded, e.g. PNG; each as often as it is shown.
        budget: bytes of all URIs together, as often as they are shown. What does not fit in the smallest size, and
            what cannot be read, is left out.
    """
    uris: dict[bytes, str] = {}
    for width, quality in _SIZES:
        uris = {picture: uri for picture in dict.fromkeys(pictures) if (uri := _jpeg(picture, width, quality))}
        if sum(len(uris.get(picture, "")) for picture in pictures) <= budget:
            return uris
    total = 0
    for picture, times in Counter(pictures).items():
        total += times * len(uris.get(picture, ""))
        if total > budget:
            uris.pop(picture, None)
    return uris


def _jpeg(picture: bytes, width: int, quality: int) -> str | None:
    """A data URI; None if the picture cannot be read."""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            height = round(image.height * width / image.width)
            shown = image.convert("RGB")
            if width < image.width:
                shown = shown.resize((width, height), Image.Resampling.LANCZOS)
    except OSError:
        return None
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

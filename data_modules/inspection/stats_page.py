"""The page of `data_modules.inspection.statistics`: one HTML file, bars drawn by the browser, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # stats imports this module
    from data_modules.inspection.statistics import Pair, Statistics

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2430; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #d6dae0; padding-top: 1rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem } .note { color: #5b6573 } .bad { color: #a3201a; white-space: pre-wrap }
table { border-collapse: collapse } td, th { padding: .15rem .7rem .15rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { display: inline-block; height: .75rem; min-width: 1px; vertical-align: middle; border-radius: 2px }
.columns { columns: 3 20rem } .columns div { break-inside: avoid; display: flex; gap: .5rem; align-items: center }
.columns .name { width: 9rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
img { max-width: 100%; margin-top: .8rem } details { margin: .4rem 0 } summary { cursor: pointer }
"""
_BAR = 160  # pixels of the longest bar
_LISTED = 100


def page(
    experiment: str, found: Sequence[Statistics], similar: Mapping[tuple[str, str], Sequence[Pair]], note: str
) -> str:
    """The whole page.

    Args:
        found: one entry a dataset.
        similar: by names of two vocabularies, the classes they nearly share.
        note: how similarity was measured.
    """
    title = f"Data of {escape(experiment)}"
    parts = [f"<h1>{title}</h1>", _overview(found), *(_data_set(s) for s in found), _similar(similar, note)]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _overview(found: Sequence[Statistics]) -> str:
    columns = ("images", "classes", "segments", "an image", "classes seen", "median size")
    head = "<th>dataset<th>" + "".join(f"<th class=n>{column}" for column in columns)
    rows = []
    for s in found:
        segments = int(s.per_class.sum())
        estimated = "" if s.counted == s.images else " *"
        cells = (
            f"{s.images:,}",
            f"{len(s.vocabulary):,}",
            f"{segments:,}{estimated}",
            f"{segments / max(1, s.counted):.1f}",
            f"{int((s.per_class > 0).sum()):,}",
            f"{np.median(s.sizes):.0f}" if len(s.sizes) else "",
        )
        numbers = "".join(f"<td class=n>{cell}" for cell in cells)
        rows.append(f"<tr><td>{escape(s.name)}<td>{escape(s.title)}{numbers}")
    note = "Sizes are the square root of the area, in pixels. * counted in a part of the images, evenly spaced."
    return f"<table><tr>{head}{''.join(rows)}</table><p class=note>{note}</p>"


def _data_set(s: Statistics) -> str:
    if s.problem:
        return f"<h2>{escape(s.name)}</h2><p class=bad>{escape(s.problem)}</p>"
    dropped = ", ".join(f"{count:,} {escape(what.replace('_', ' '))}" for what, count in s.counts.items() if count)
    per_image = np.percentile(s.per_image, [0, 50, 95, 100]).astype(int).tolist() if len(s.per_image) else [0] * 4
    text = "segments an image: {} at least, {} median, {} in 95 of 100, {} at most".format(*per_image)
    parts = [
        f"<h2>{escape(s.name)}: {escape(s.title)}</h2>",
        f"<p class=note>{s.images:,} images, {s.counted:,} counted; {text}{'; ' + dropped if dropped else ''}</p>",
        "<h3>Sizes of segments, pixels</h3>",
        _bars(s.size_histogram(), ["#5778a4"] * len(s.size_histogram()), keep_order=True),
        _classes(s),
    ]
    if s.pictures is not None:
        parts.append(_picture(s.pictures))
    return "".join(parts)


def _classes(s: Statistics) -> str:
    colors = ["#{:02x}{:02x}{:02x}".format(*c.color) for c in s.vocabulary.classes]
    kinds = ["thing" if c.is_thing else "stuff" for c in s.vocabulary.classes]
    order = np.argsort(-s.per_class, kind="stable").tolist()
    entries = [(f"{s.vocabulary.names[k]} ({kinds[k]})", int(s.per_class[k])) for k in order]
    bars = _bars(entries, [colors[k] for k in order], [f"in {s.images_per_class[k]:,} images" for k in order])
    unseen = [s.vocabulary.names[k] for k in order if not s.per_class[k]]
    never = f"<p class=note>never: {escape(', '.join(unseen))}</p>" if unseen else ""
    return f"<details {'open' if len(entries) <= 40 else ''}><summary><b>Classes</b></summary>{bars}{never}</details>"


def _bars(
    entries: Sequence[tuple[str, int]], colors: Sequence[str], hints: Sequence[str] = (), keep_order: bool = False
) -> str:
    most = max((count for _, count in entries), default=0) or 1
    rows = []
    for k, (name, count) in enumerate(entries):
        if not count and not keep_order:
            continue
        hint = f' title="{escape(hints[k])}"' if hints else ""
        bar = f'<span class=bar style="width:{_BAR * count / most:.0f}px;background:{colors[k]}"></span>'
        rows.append(f"<div{hint}><span class=name>{escape(name)}</span>{bar}<span>{count:,}</span></div>")
    return f"<div class=columns>{''.join(rows)}</div>"


def _picture(image: NDArray[np.uint8]) -> str:
    _, content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return f'<img alt="examples" src="data:image/jpeg;base64,{base64.b64encode(content.tobytes()).decode()}">'


def _similar(similar: Mapping[tuple[str, str], Sequence[Pair]], note: str) -> str:
    parts = ["<h2>What vocabularies share</h2>", f"<p class=note>{escape(note)}. A report only: none is joined.</p>"]
    for (first, second), pairs in similar.items():
        rows = "".join(
            f"<tr><td>{escape(p.first)}<td>{escape(p.second)}<td class=n>{p.similarity:.3f}" for p in pairs[:_LISTED]
        )
        title = f"{escape(first)} and {escape(second)}: {len(pairs):,} pairs"
        parts.append(f"<details><summary>{title}</summary><table>{rows}</table></details>")
    return "".join(parts)

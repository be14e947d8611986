"""What a report takes from a run's TensorBoard files: curves, pictures, and how long the run took."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataseg.checkpoint.run_folder import RunFolder

PREFIXES = ("loss/", "sampling/", "throughput/images_per_second")
"""Scalars that are kept."""

PICTURES = "pictures."
"""Starts the tags of pictures, whose groups TensorBoard then shows below losses and metrics; not those of 0.1."""

_GUIDANCE = {"scalars": 0, "images": 1, "tensors": 1, "histograms": 1, "audio": 1}  # 0 = all, 1 = the newest


@dataclass(frozen=True)
class Events:
    """A run's curves and pictures.

    Attributes:
        scalars: (step, value) in order of steps, by tag.
        pictures: the newest encoded picture by tag, which is without `PICTURES`.
        seconds: from each file's first scalar to its last one, summed: pauses between files do not count.
    """

    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    def last(self, tag: str) -> float | None:
        """The newest value."""
        return self.scalars[tag][-1][1] if tag in self.scalars else None


def read_events(folder: Path) -> Events:
    """Read a run's event files, in the order they were written in; a later file's step replaces an earlier one's.

    A file that breaks off is read as far as it goes, as TensorBoard does.
    """
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a file that breaks off is no news to a report
    points: dict[str, dict[int, float]] = {}
    pictures: dict[str, bytes] = {}
    seconds = 0.0
    for file in RunFolder(folder).events():
        accumulator = EventAccumulator(str(file), size_guidance=_GUIDANCE)
        accumulator.Reload()
        tags = accumulator.Tags()
        times = []
        for tag in tags["scalars"]:
            events = accumulator.Scalars(tag)
            times += [event.wall_time for event in events]
            if tag.startswith(PREFIXES):
                points.setdefault(tag, {}).update({event.step: event.value for event in events})
        for tag in tags["images"]:
            pictures[tag.removeprefix(PICTURES)] = accumulator.Images(tag)[-1].encoded_image_string
        seconds += max(times, default=0.0) - min(times, default=0.0)
    return Events({tag: sorted(found.items()) for tag, found in points.items()}, pictures, seconds)

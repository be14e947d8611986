"""Tasks, and how a dataset is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from dataseg.structures.errors import UserError
from dataseg.structures.vocabulary import Vocabulary


class Task(StrEnum):
    """What counts as one segment (method: MERGE), and how proposals are post-processed."""

    SEMANTIC = "semantic"
    PANOPTIC = "panoptic"
    INSTANCE = "instance"


@dataclass(frozen=True)
class TestTimeAugmentation:
    """What the network is shown of each evaluation image in semantic tasks; other tasks always use the plain image.

    Class scores are averaged over the windows that see a pixel, then over scales and mirror images (as Mask2Former and
    mmsegmentation do).

    Attributes:
        scales: factors on the evaluation image's size, each one more view.
        flip: every scale mirrored too.
        window: side of square windows that are shown one by one in place of the whole scaled image, pixels.
        overlap: share of a window's side that the next one overlaps at least; in [0, 1).
    """

    __test__ = False  # its name is no test's, whatever pytest thinks

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.scales or len(set(self.scales)) != len(self.scales) or not all(0 < s <= 16 for s in self.scales):
            raise UserError(f"evaluation scales must be different numbers in (0, 16], got {list(self.scales)}")
        if self.window is not None and self.window < 32:
            raise UserError(f"the evaluation window's side must be 32 pixels or more, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"the overlap of evaluation windows must be in [0, 1), got {self.overlap}")

    @property
    def is_plain(self) -> bool:
        """One view: the evaluation image as it is."""
        return self.scales == (1.0,) and not self.flip and self.window is None

    def __str__(self) -> str:
        """In words, to stand beside a score."""
        window = f", windows of {self.window} px with overlap {self.overlap:.3g}" if self.window else ""
        return f"scales {', '.join(f'{s:g}' for s in self.scales)}{', mirrored too' if self.flip else ''}{window}"


@dataclass(frozen=True)
class DatasetSpec:
    """What the network's surroundings need to know of one dataset.

    Attributes:
        vocabulary: its classes.
        tasks: what it is evaluated by; empty for a set that is only trained on.
        views: how its semantic task looks at an image.
        areas: of its panoptic segments: "stored" as its files state them, or "recounted" in its maps.
        resize: how its evaluation images are resized, in words; stands beside its scores.
        is_trained: whether it is trained on.
    """

    vocabulary: Vocabulary
    tasks: tuple[Task, ...] = ()
    views: TestTimeAugmentation = TestTimeAugmentation()
    areas: Literal["stored", "recounted"] = "stored"
    resize: str = ""
    is_trained: bool = True

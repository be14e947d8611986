"""Where an image lies: in its padded input, in the evaluation image, on disk."""

from __future__ import annotations

from dataclasses import dataclass

DIVISOR = 32
"""Sides of the network's input are multiples of it: the largest stride of its feature maps."""


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """The smallest (rows, columns) that are multiples of `DIVISOR` and hold ``size``."""
    return -(-size[0] // DIVISOR) * DIVISOR, -(-size[1] // DIVISOR) * DIVISOR


@dataclass(frozen=True)
class ImageGeometry:
    """How an image came into the network, and the size its segments are wanted at; all (rows, columns) in pixels.

    The network's image is all of the evaluation image, or a window of it, and that as it is or mirrored.

    Attributes:
        padded: of the network's input.
        size: of the image in its top left corner.
        original: of the image on disk; None = ``size``.
        frame: of the evaluation image that ``size`` is a window of; None = all of it.
        offset: of the window's first pixel in the frame.
        mirrored: the frame is the evaluation image with its columns reversed.
    """

    padded: tuple[int, int]
    size: tuple[int, int]
    original: tuple[int, int] | None = None
    frame: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)
    mirrored: bool = False

    @property
    def output(self) -> tuple[int, int]:
        """Size that segments are wanted at."""
        return self.original or self.size

    @property
    def rows(self) -> slice:
        """Rows of the original image whose centres lie in the window."""
        return slice(*self.seen(0))

    @property
    def columns(self) -> slice:
        """Columns of the original image whose centres lie in the window."""
        start, stop = self.seen(1)
        return slice(self.output[1] - stop, self.output[1] - start) if self.mirrored else slice(start, stop)

    def seen(self, axis: int) -> tuple[int, int]:
        """First original pixel in the window and the first behind it; of the mirrored image if it is."""
        length, original = (self.frame or self.size)[axis], self.output[axis]
        ends = self.offset[axis], self.offset[axis] + self.size[axis]
        start, stop = (
            -((length - 2 * end * original) // (2 * length)) for end in ends
        )  # round(end / scale), half down
        return start, stop

    def cells(self, grid_rows: int, grid_columns: int) -> tuple[int, int]:
        """Rows and columns of a grid over the padded input whose centres lie in the image; at least one of each."""
        rows = -(-(2 * self.size[0] * grid_rows - self.padded[0]) // (2 * self.padded[0]))
        columns = -(-(2 * self.size[1] * grid_columns - self.padded[1]) // (2 * self.padded[1]))
        return max(1, rows), max(1, columns)

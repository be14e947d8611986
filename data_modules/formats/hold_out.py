"""A validation part of a dataset that has none."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class HoldOut:
    """A part of a dataset's images, chosen by a hash of their names: no image changes sides when others are added.

    Attributes:
        part: "train", or "val": the rest.
        share: of the images that are kept for validation, 0-1, about.
    """

    part: Literal["train", "val"]
    share: float = 0.2

    def keeps(self, file_name: str) -> bool:
        """Whether the image is in this part; its suffix does not count."""
        stem = unicodedata.normalize("NFC", file_name).rpartition(".")[0] or file_name
        number = int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")
        return (number < self.share * 2**64) == (self.part == "val")

"""Text encoders: sentences -> vectors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from lightning.pytorch.utilities import rank_zero_warn
from rich.progress import track
from torch import Tensor

from dataseg.structures import UserError


class TextEncoder(ABC):
    """Turns sentences into vectors. Cheap to build; weights are loaded by `encode`.

    Attributes:
        weights_sha256: of the weights that the latest `encode` used, where an encoder can tell.
    """

    weights_sha256: str | None = None

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What the vectors depend on; embeddings of encoders with different identities are never mixed."""

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Float32 ``[P, D]`` on the CPU, L2-normalised."""


class OpenClipText(TextEncoder):
    """Text tower of a CLIP model; open_clip downloads the weights unless they are given as a file.

    Args:
        model: open_clip's name of the architecture.
        pretrained: open_clip's tag of the weights, or the path of a checkpoint file; "random" = untrained
            weights, to try things where none can be had.
        quick_gelu: whether the weights were trained with CLIP's original activation. None = as open_clip knows it of
            the tag; no for a file. (open_clip itself only warns when architecture and tag disagree, as "ViT-L-14" and
            "openai" do.)
        device: where to encode; None = a GPU if there is one.
        batch_size: sentences at a time.
    """

    def __init__(
        self,
        model: str = "ViT-L-14",
        pretrained: str = "openai",
        quick_gelu: bool | None = None,
        device: str | None = None,
        batch_size: int = 256,
    ) -> None:
        self.model, self.pretrained, self.quick_gelu = model, pretrained, quick_gelu
        self.device, self.batch_size = device, batch_size

    @property
    def identity(self) -> dict[str, str]:
        weights = self.pretrained
        if Path(weights).is_file():
            weights = f"sha256 {_hash_file(Path(weights))}"
        return {
            "library": "open_clip",
            "model": self.model,
            "pretrained": weights,
            "quick_gelu": str(self._needs_quick_gelu()).lower(),
        }

    def encode(self, sentences: Sequence[str]) -> Tensor:
        import open_clip

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        clip = self._load().to(device)
        tokenize = open_clip.get_tokenizer(self.model)
        starts = range(0, len(sentences), self.batch_size)
        vectors = []
        with torch.inference_mode():
            for start in track(starts, f"text embeddings ({self.model})", disable=len(starts) < 2, transient=True):
                tokens = tokenize(list(sentences[start : start + self.batch_size])).to(device)
                vectors.append(F.normalize(clip.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(vectors)

    def _load(self) -> Any:
        import open_clip

        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)  # random weights are the same each time: the cache knows them by their hash
                clip = open_clip.create_model(
                    self.model,
                    pretrained=None if self.pretrained == "random" else self.pretrained,
                    force_quick_gelu=self._needs_quick_gelu(),
                    pretrained_image=False,
                    pretrained_text=False,
                )
        except (RuntimeError, OSError) as error:  # what open_clip raises for unknown names and failed downloads
            raise UserError(
                f"text encoder {self.model!r} with weights {self.pretrained!r}: {shorten(str(error), 400)}\n"
                "Without network: give encoder.pretrained the path of a checkpoint file, or copy a cache of text "
                "embeddings made elsewhere and name it as text.cache"
            ) from error
        del clip.visual  # the image tower is most of the memory
        self.weights_sha256 = _hash_weights(clip)
        return clip.eval()

    def _needs_quick_gelu(self) -> bool:
        if self.quick_gelu is not None:
            return self.quick_gelu
        import open_clip

        known = open_clip.get_pretrained_cfg(self.model, self.pretrained)
        by_name = bool((open_clip.get_model_config(self.model) or {}).get("quick_gelu", False))
        if Path(self.pretrained).is_file() and not by_name:
            rank_zero_warn(
                f"{self.pretrained}: a file does not say which activation its weights were trained with, GELU is taken."
                " OpenAI's were trained with another: set text.encoder.quick_gelu=true for them, or false to confirm"
            )
        return bool((known or {}).get("quick_gelu", by_name))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shorten(text: str | None, length: int = 160) -> str:
    return "nothing" if text is None else text if len(text) <= length else f"{text[:length]}..."

"""Class names -> frozen text embeddings, computed once and kept on disk with their provenance.

Shape legend: S = class names of a vocabulary, N = names, T = templates, P = N x T sentences, C = classes,
D = width of the text space.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from filelock import FileLock
from rich.progress import track
from torch import Tensor

from dataseg.structures import ClassEmbeddings, UserError, Vocabulary
from dataseg.text_cache import TextCache, read_cache, write_cache

TemplateSet = Literal["plain", "article", "vild", "clip"]

_SIZES = ("small", "medium", "large")
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "article": ("a {}",),
    "vild": (  # the 14 of ViLD (arXiv 2104.13921), which Detic and fc-clip use as well
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        *(f"a photo of a {size} {{}}." for size in _SIZES),
        *(f"This is a photo of a {size} {{}}." for size in _SIZES),
        *(f"There is a {size} {{}} in the scene." for size in _SIZES),
    ),
}


def templates_of(name: TemplateSet) -> tuple[str, ...]:
    """Sentences with one ``{}`` each: the bare name, the name with its article, ViLD's 14, or CLIP's 80 for ImageNet.

    Raises:
        UserError: no such set.
    """
    if name == "clip":
        import open_clip  # takes seconds to import: only where it is needed

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    if name not in _TEMPLATES:
        raise UserError(f"no prompt templates {name!r}: choose one of {[*_TEMPLATES, 'clip']}")
    return _TEMPLATES[name]


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
                f"text encoder {self.model!r} with weights {self.pretrained!r}: {_shorten(str(error), 400)}\n"
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
        by_name = (open_clip.get_model_config(self.model) or {}).get("quick_gelu", False)
        return bool((known or {}).get("quick_gelu", by_name))


class TextEmbeddings:
    """Embeds a vocabulary's prompts: each name in every template, normalised, averaged, normalised again.

    Vectors are kept in one file, which serves any number of vocabularies; names it lacks are encoded and added, by one
    process while others wait. The file tells which encoder and templates it was made with: a file of other ones is
    refused.

    Args:
        encoder: makes vectors that the cache lacks; None = the cache has all, whatever it was made with.
        cache: file to keep them in; None = one for this encoder and these templates in the user's cache folder.
        templates: set of prompt templates, see `templates_of`.
    """

    def __init__(self, encoder: TextEncoder | None, cache: Path | None = None, templates: TemplateSet = "vild") -> None:
        if encoder is None and cache is None:
            raise UserError("text embeddings need text.encoder, or text.cache with a file that holds all names")
        self.encoder = encoder
        self.templates = templates
        self._texts = templates_of(templates)
        self._file = Path(cache).expanduser() if cache else None

    @property
    def cache(self) -> Path:
        """The cache file, there or not."""
        return self._file or _default_cache(self._expected())

    @property
    def provenance(self) -> str:
        """What stands beside every figure: the encoder and the template set."""
        content = self._load() if self.encoder is None else None
        encoder = content.metadata.get("encoder") if content else self._expected().get("encoder")
        return f"{encoder}, templates {self.templates}"

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        """Vectors ``[S, D]`` float32 on the CPU, one row per prompt, synonyms apart; and the class of each.

        Raises:
            UserError: the cache was made with another encoder or other templates, or lacks names and there is no
                encoder to make them.
        """
        names = [prompt for spec in vocabulary.classes for prompt in spec.prompts]
        classes = [label for label, spec in enumerate(vocabulary.classes) for _ in spec.prompts]
        return ClassEmbeddings(self.embed(names), torch.tensor(classes), len(vocabulary), vocabulary.name)

    def embed(self, names: Sequence[str]) -> Tensor:
        """Float32 ``[S, D]``, L2-normalised, one row per name.

        Raises:
            UserError: as calling it.
        """
        content = self._load()
        if content is None or any(name not in content.rows for name in names):
            content = self._extend(names)
        return content.vectors[torch.tensor([content.rows[name] for name in names])]

    def _expected(self) -> dict[str, str]:
        """The metadata that must agree."""
        expected = {"templates": json.dumps(self._texts)}
        if self.encoder is not None:
            expected["encoder"] = json.dumps(self.encoder.identity, sort_keys=True)
        return expected

    def _load(self) -> TextCache | None:
        path = self.cache
        if not path.exists():
            return None
        content = read_cache(path)
        for key, wanted in self._expected().items():
            found = content.metadata.get(key)
            if found != wanted:
                raise UserError(
                    f"{path} was made with another {key}: it says {_shorten(found)}, the configuration "
                    f"{_shorten(wanted)}. Set text.{key} to what it was made with, delete the file to have it made "
                    "anew, or name another text.cache"
                )
        return content

    def _extend(self, names: Sequence[str]) -> TextCache:
        path = self.cache
        if self.encoder is None:
            raise UserError(self._explain_missing(names))
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            content = self._load()  # another process may have made them meanwhile
            missing = sorted({name for name in names if content is None or name not in content.rows})
            if content is not None and not missing:
                return content
            vectors = self._encode(self.encoder, missing)
            known = list(content.rows) if content else []
            if content is not None:
                vectors = torch.cat([content.vectors, vectors])
            metadata = self._provenance(self.encoder, content)
            write_cache(path, vectors, [*known, *missing], metadata)
        return read_cache(path)

    def _encode(self, encoder: TextEncoder, names: Sequence[str]) -> Tensor:
        sentences = [template.format(name) for name in names for template in self._texts]
        vectors_PD = encoder.encode(sentences).float()
        vectors_NTD = vectors_PD.reshape(len(names), len(self._texts), -1)
        return F.normalize(F.normalize(vectors_NTD, dim=-1).mean(dim=1), dim=-1)

    def _provenance(self, encoder: TextEncoder, content: TextCache | None) -> dict[str, str]:
        """Metadata of the file to be written.

        Raises:
            UserError: the rows of ``content`` were made with other weights of the same name.
        """
        metadata = (content.metadata if content else {}) | self._expected() | {"dataseg": version("dataseg")}
        weights = encoder.weights_sha256
        if weights is not None:
            if metadata.setdefault("weights_sha256", weights) != weights:
                raise UserError(
                    f"{self.cache} was made with other weights_sha256: it says {metadata['weights_sha256']}, the "
                    f"encoder {weights}. Delete the file to have it made anew, or name another text.cache"
                )
        return metadata

    def _explain_missing(self, names: Sequence[str]) -> str:
        content = self._load()
        missing = sorted({name for name in names if content is None or name not in content.rows})
        listed = ", ".join(repr(name) for name in missing[:10]) + (", ..." if len(missing) > 10 else "")
        made_with = f" (made with {content.metadata.get('encoder')})" if content else ", which does not exist"
        return (
            f"{self.cache}{made_with} lacks {len(missing)} of {len(set(names))} names: {listed}. Without text.encoder "
            "they cannot be made: set text.encoder and another text.cache, and all names are embedded anew with that "
            "encoder; or add rows made with the file's own encoder (dataseg.text_cache.write_cache)"
        )


def _default_cache(expected: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(expected), sort_keys=True).encode()).hexdigest()[:12]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "dataseg" / f"text-{digest}.safetensors"


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


def _shorten(text: str | None, length: int = 160) -> str:
    return "nothing" if text is None else text if len(text) <= length else f"{text[:length]}..."


# ------------------------------------------------------------------------------------------------------------ report


@dataclass(frozen=True)
class NearNames:
    """Two classes of different vocabularies whose names are equal or nearly so.

    Attributes:
        first, second: (vocabulary, class name).
        cosine: of their nearest prompts, in [-1, 1].
        shared: whether they have a prompt in common, letter case aside.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    cosine: float
    shared: bool

    def __str__(self) -> str:
        how = "the same name" if self.shared else f"cosine {self.cosine:.2f}"
        return f"{self.first[0]}: {self.first[1]!r} ~ {self.second[0]}: {self.second[1]!r} ({how})"


def report_shared_names(
    vocabularies: Sequence[Vocabulary], text: TextEmbeddings, threshold: float = 0.9
) -> list[NearNames]:
    """Which classes of different vocabularies have the same or nearly the same name, nearest first.

    A report only: nothing is ever joined (the synonyms of one data set are traps in another).

    Args:
        threshold: smallest cosine that counts as near.
    """
    embedded = [text(v) for v in vocabularies]
    found = []
    for (a, classes_a), (b, classes_b) in combinations(zip(vocabularies, embedded, strict=True), 2):
        cosine_CC = _class_cosines(classes_a, classes_b)
        prompts_a, prompts_b = ([{p.casefold() for p in c.prompts} for c in v.classes] for v in (a, b))
        for i, j in torch.cartesian_prod(torch.arange(len(a)), torch.arange(len(b))).tolist():
            shared, cosine = bool(prompts_a[i] & prompts_b[j]), float(cosine_CC[i, j])
            if shared or cosine > threshold:
                found.append(NearNames((a.name, a.names[i]), (b.name, b.names[j]), cosine, shared))
    return sorted(found, key=lambda pair: (-pair.shared, -pair.cosine))


def _class_cosines(a: ClassEmbeddings, b: ClassEmbeddings) -> Tensor:
    """``[C_a, C_b]``: the largest cosine among the prompts of two classes."""
    cosines_SS = a.vectors @ b.vectors.T
    rows_CS = torch.stack([cosines_SS[a.class_index == c].amax(0) for c in range(a.num_classes)])
    return torch.stack([rows_CS[:, b.class_index == c].amax(1) for c in range(b.num_classes)], dim=1)

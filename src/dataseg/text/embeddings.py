"""Class names -> frozen text embeddings, computed once and kept on disk with their provenance.

Shape legend: S = class names of a vocabulary, N = names, T = templates, P = N x T sentences, C = classes,
D = width of the text space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dataseg.io.cache import cache_folder
from dataseg.io.lock import alone
from dataseg.io.shipped import find
from dataseg.structures import ClassEmbeddings, UserError, Vocabulary
from dataseg.text.cache import TextCache, read_cache, write_cache
from dataseg.text.encoder import TextEncoder, shorten
from dataseg.text.templates import TemplateSet, templates_of


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
        self._file = find(cache) if cache else None

    @property
    def cache(self) -> Path:
        """The cache file, there or not."""
        return self._file or _default_cache(self._expected())

    @property
    def words(self) -> list[str]:
        """Names whose vectors are in the cache."""
        content = self._load()
        return list(content.rows) if content else []

    @property
    def provenance(self) -> str:
        """What stands beside every score: the encoder and the template set."""
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
                    f"{path} was made with another {key}: it says {shorten(found)}, the configuration "
                    f"{shorten(wanted)}. Set text.{key} to what it was made with, delete the file to have it made "
                    "anew, or name another text.cache"
                )
        return content

    def _extend(self, names: Sequence[str]) -> TextCache:
        path = self.cache
        if self.encoder is None:
            raise UserError(self._explain_missing(names))
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_name(f".{path.name}.lock"), f"text vectors of {path}"):
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
            "encoder; or add rows made with the file's own encoder (dataseg.text.cache.write_cache)"
        )


def _default_cache(expected: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(expected), sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / f"text-{digest}.safetensors"

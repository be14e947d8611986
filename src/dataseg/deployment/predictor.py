"""A trained model for use: ``dataseg.load(path)``, then images in, segments out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataseg.config.renamed import with_current_names
from dataseg.deployment.model_file import ModelFile, read_model
from dataseg.deployment.network import build_network
from dataseg.deployment.registry import registry
from dataseg.inference.postprocess import PostProcessor
from dataseg.inference.resize import ResizeShortestEdge, to_tensor
from dataseg.inference.test_time_augmentation import segment
from dataseg.io.images import open_image
from dataseg.network import SegmentationNetwork
from dataseg.structures import (
    Batch,
    Boxes,
    ClassEmbeddings,
    ClassSpec,
    DatasetSpec,
    Proposals,
    Sample,
    Segments,
    Task,
    TestTimeAugmentation,
    UserError,
    Vocabulary,
)
from dataseg.structures.geometry import padded_size
from dataseg.text.cache import TextCache, read_cache
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.encoder import TextEncoder
from dataseg.text.templates import templates_of

Image: TypeAlias = NDArray[np.uint8] | Tensor | Path | str
ClassNames: TypeAlias = Sequence[str | Sequence[str]]
"""Class names; a sequence in place of a name lists one class's synonyms."""

HUB = "hf://"

_MOST_WORDS = 200  # of a message


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    encoder: TextEncoder | None = None,
    packages: Sequence[str] = (),
) -> Predictor:
    """Load a model that ``make export`` wrote.

    Args:
        path: the file, or ``hf://owner/name`` for one on the Hugging Face hub (``hf://owner/name@revision``).
        device: where the network runs.
        encoder: makes vectors of class names that the file does not hold; the kind that the model was trained with,
            e.g. ``dataseg.text.encoder.OpenClipText()``.
        packages: whose classes the file's configuration may name, beside this project's.

    Raises:
        UserError: the file is missing, damaged or of something else; or the encoder is of another kind.
    """
    source = _from_hub(str(path)) if str(path).startswith(HUB) else Path(path)
    model = read_model(source)
    network = build_network(model.config, model.weights, str(path), tuple(packages))
    return Predictor.of(model, network, str(path), encoder).to(device)


class Predictor:
    """A network with the vocabularies it was trained on, and with any other whose names can be embedded.

    Args:
        network: in evaluation mode.
        vocabularies: by dataset.
        names: vectors of the vocabularies' names.
        size: of what the network is shown.
        views: how the semantic task looks at an image.
        postprocess: options of the three tasks.
        encoder: see `load`; or the text embeddings of a run, which may have a cache of further names.
        templates: name of the set of prompt templates that the vectors were made with.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        vocabularies: Mapping[str, Vocabulary],
        names: TextCache,
        size: ResizeShortestEdge = ResizeShortestEdge(),  # noqa: B008 (frozen)
        views: TestTimeAugmentation = TestTimeAugmentation(),  # noqa: B008 (frozen)
        postprocess: PostProcessor = PostProcessor(),  # noqa: B008 (frozen)
        encoder: TextEncoder | TextEmbeddings | None = None,
        templates: Any = "vild",
    ) -> None:
        self.network = network
        self.vocabularies = dict(vocabularies)
        self.size = size
        self.views = views
        self.postprocess = postprocess
        self._names = names
        if isinstance(encoder, TextEncoder):
            _check_encoder(encoder, templates, names)
            encoder = TextEmbeddings(encoder, templates=templates)
        self._text = encoder
        self._embedded: dict[tuple[str, str], ClassEmbeddings] = {}

    @classmethod
    def of(
        cls,
        model: ModelFile,
        network: SegmentationNetwork,
        source: str,
        encoder: TextEncoder | TextEmbeddings | None = None,
    ) -> Self:
        """The predictor of a model in memory and its network; ``source`` is for messages."""
        build = registry().build
        data = _data_arguments(model.config, source)
        return cls(
            network,
            model.vocabularies,
            model.text,
            build(ResizeShortestEdge, data.get("eval_transform") or {}, f"{source}: data.eval_transform"),
            build(
                TestTimeAugmentation,
                data.get("test_time_augmentation") or {},
                f"{source}: data.test_time_augmentation",
            ),
            build(PostProcessor, model.config["model"].get("postprocess") or {}, f"{source}: model.postprocess"),
            encoder,
            model.text.metadata["template_set"],
        )

    @property
    def device(self) -> torch.device:
        return self.network.pixel_mean.device

    def to(self, device: torch.device | str) -> Self:
        """Move the network."""
        self.network.to(device)
        self._embedded.clear()
        return self

    @overload
    def __call__(
        self,
        image: Image,
        vocabulary: str | Vocabulary | ClassNames,
        task: Task | str = ...,
        stuff: Sequence[str] = ...,
    ) -> Segments: ...

    @overload
    def __call__(
        self,
        image: list[Image],
        vocabulary: str | Vocabulary | ClassNames,
        task: Task | str = ...,
        stuff: Sequence[str] = ...,
        batch_size: int = ...,
    ) -> list[Segments]: ...

    @torch.inference_mode()
    def __call__(
        self,
        image: Image | list[Image],
        vocabulary: str | Vocabulary | ClassNames,
        task: Task | str = Task.PANOPTIC,
        stuff: Sequence[str] = (),
        batch_size: int = 8,
    ) -> Segments | list[Segments]:
        """Segment one image, or a list of them, of any sizes.

        Images go through the network together where they are padded to the same size (multiples of 32): more padding
        than an image has alone would change its result. Views (test-time augmentation) go one by one.

        Args:
            image: uint8 ``[H, W, 3]``, RGB (array or tensor), or an image file, which is turned upright by its
                EXIF orientation; or a list of such.
            vocabulary: name of a dataset or vocabulary in the file, a `Vocabulary`, or class names.
            task: semantic, panoptic or instance.
            stuff: if class names are given, which of them (by the first synonym) are stuff; the others are things.
            batch_size: images that go through the network together at most.

        Returns:
            At the image's size; a list for a list. Semantic and panoptic: a `dataseg.structures.SegmentMap`, ids int32
            ``[H, W]``; instance: `dataseg.structures.InstanceMasks`. Labels are indices into the vocabulary (see
            `vocabulary`).

        Raises:
            UserError: no such image, vocabulary or task; or names without vectors, and no encoder.
        """
        if task not in list(Task):
            raise UserError(f"no task {task!r}: choose one of {', '.join(Task)}")
        task, chosen = Task(task), self.vocabulary(vocabulary, stuff)
        images = [_pixels(one) for one in (image if isinstance(image, list) else [image])]
        classes, spec = self.classes(chosen), DatasetSpec(chosen, (task,), self.views)
        found: dict[int, Segments] = {}
        for indices, batch in self._batches(images, task, batch_size):
            results = segment(
                lambda pixels, sizes: cast(Proposals, self.network(pixels, classes, sizes)[-1]),
                batch,
                spec,
                self.postprocess,
            )
            found |= zip(indices, results[task], strict=True)
        segments = [found[index] for index in range(len(images))]
        return segments if isinstance(image, list) else segments[0]

    def vocabulary(self, chosen: str | Vocabulary | ClassNames, stuff: Sequence[str] = ()) -> Vocabulary:
        """The vocabulary of a name or of class names, as `__call__` takes them.

        Raises:
            UserError: no such name; or a name of ``stuff`` is not among the classes.
        """
        if isinstance(chosen, Vocabulary):
            return chosen
        if isinstance(chosen, str):
            return self._by_name(chosen)
        return vocabulary_of_names(chosen, stuff)

    def _by_name(self, name: str) -> Vocabulary:
        if name in self.vocabularies:
            return self.vocabularies[name]
        found = {v.digest: v for v in self.vocabularies.values() if v.name == name}
        if len(found) == 1:
            return next(iter(found.values()))
        known = sorted({*self.vocabularies, *(v.name for v in self.vocabularies.values())})
        what = "several vocabularies" if found else "no dataset or vocabulary"
        raise UserError(f"the model holds {what} {name!r}: choose one of {known}, or give a list of class names")

    def _batches(
        self, images: Sequence[NDArray[np.uint8]], task: Task, batch_size: int
    ) -> Iterator[tuple[list[int], Batch]]:
        """Images of one padded size, with their indices."""
        nothing = Boxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image_HW3 in enumerate(images):
            by_size.setdefault(padded_size(self.size(*image_HW3.shape[:2])), []).append(index)
        for indices in by_size.values():
            for start in range(0, len(indices), batch_size):
                part = indices[start : start + batch_size]
                samples = [
                    Sample(to_tensor(self.size.resize(images[i])), nothing, "", images[i].shape[:2]) for i in part
                ]
                yield part, Batch.collate(samples, "", task).to(self.device)

    # -------------------------------------------------------------------------------------------- text vectors

    def classes(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        """A vocabulary's text vectors, on the network's device; as `dataseg.text.embeddings.TextEmbeddings` gives them.

        Raises:
            UserError: there are names without a vector, and no encoder.
        """
        if not self.network.classifier.reads_text:
            return ClassEmbeddings.blank(vocabulary).to(self.device)
        key = vocabulary.name, vocabulary.digest
        if key not in self._embedded:
            names = [prompt for spec in vocabulary.classes for prompt in spec.prompts]
            index = [label for label, spec in enumerate(vocabulary.classes) for _ in spec.prompts]
            classes = ClassEmbeddings(self._vectors(names), torch.tensor(index), len(vocabulary), vocabulary.name)
            self._embedded[key] = classes.to(self.device)
        return self._embedded[key]

    @property
    def words(self) -> list[str]:
        """Names that have a text vector, sorted; a text encoder makes those of others."""
        return sorted({*self._names.rows, *(self._text.words if self._text else ())})

    def _vectors(self, names: Sequence[str]) -> Tensor:
        """Float32 ``[S, D]``; rows of the file where it has them."""
        missing = sorted({name for name in names if name not in self._names.rows})
        if missing:
            new = self._embed(missing)
            rows = self._names.rows | {name: len(self._names.rows) + i for i, name in enumerate(missing)}
            self._names = TextCache(torch.cat([self._names.vectors, new]), rows, self._names.metadata)
        return self._names.vectors[torch.tensor([self._names.rows[name] for name in names])]

    def _embed(self, names: list[str]) -> Tensor:
        words = self.words
        missing = [name for name in names if name not in words]
        if self._text is None or (self._text.encoder is None and missing):
            more = f" and {len(words) - _MOST_WORDS:,} more" if len(words) > _MOST_WORDS else ""
            raise UserError(
                f"the model has no text vectors of {missing[:10]}; words it has vectors of:"
                f" {', '.join(words[:_MOST_WORDS])}{more}. Others need the text encoder that it was trained with"
                " (dataseg.load(path, encoder=...), --encoder on the command line), which is"
                f" {self._names.metadata.get('encoder')}"
            )
        vectors = self._text.embed(names)
        wanted = self._names.metadata.get("weights_sha256")
        found = read_cache(self._text.cache).metadata.get("weights_sha256")
        if wanted and found and wanted != found:
            raise UserError(
                f"the text encoder has other weights (SHA-256 {found[:12]}...) than the one that the model was trained"
                f" with ({wanted[:12]}...), though they have one name: get the right ones"
            )
        return vectors


def vocabulary_of_names(names: ClassNames, stuff: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary of class names: ids count from 0, colours are drawn by lot.

    Raises:
        UserError: no name, or an empty one; or a name of ``stuff`` is not among the classes.
    """
    prompts = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    if not prompts or not all(p and all(prompt.strip() for prompt in p) for p in prompts):
        raise UserError(f"class names must be one or more non-empty texts, got {names!r}")
    unknown = sorted(set(stuff) - {p[0] for p in prompts})
    if unknown:
        raise UserError(f"stuff names {unknown} are not among the classes {[p[0] for p in prompts]}")
    colors = np.random.default_rng(0).integers(40, 256, (len(prompts), 3)).tolist()
    return Vocabulary(
        "given names",
        tuple(
            ClassSpec(index, p[0], p[0] not in stuff, p, tuple(color))
            for index, (p, color) in enumerate(zip(prompts, colors, strict=True))
        ),
    )


def _check_encoder(encoder: TextEncoder, templates: Any, names: TextCache) -> None:
    """An encoder, or templates, of another kind would give vectors of another space without any error."""
    wanted, found = names.metadata.get("encoder"), json.dumps(encoder.identity, sort_keys=True)
    if wanted != found:
        raise UserError(f"the model was trained with vectors of the text encoder {wanted}, the given one is {found}")
    if json.dumps(templates_of(templates)) != names.metadata.get("templates"):
        raise UserError(f"this version's prompt templates {templates!r} differ from those the model was trained with")


def _data_arguments(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The data module's arguments, under today's names; empty where the configuration has none."""
    try:
        data = with_current_names(config).get("data")
    except TypeError as error:  # an argument that is no mapping
        raise UserError(f"{source}: its data section cannot be read ({error})") from error
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def _pixels(image: Image) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return open_image(Path(image), upright=True).decode()
    pixels = image.cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise UserError(f"an image must be uint8 [H, W, 3], RGB, got {pixels.dtype} {list(pixels.shape)}")
    return pixels


def _from_hub(address: str) -> Path:
    from huggingface_hub import hf_hub_download

    from dataseg.deployment.hub import FILE_NAME

    name, _, revision = address.removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(name, FILE_NAME, revision=revision or None))
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        why = " ".join(str(error).split())  # of several lines
        raise UserError(f"{address}: cannot get {FILE_NAME} from the Hugging Face hub ({why})") from error

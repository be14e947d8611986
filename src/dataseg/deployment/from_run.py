"""An exported model from what a training run left: checkpoint, configuration, text vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dataseg.checkpoint.load import read_checkpoint
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.config.build import read_plain
from dataseg.deployment.model_file import ModelFile
from dataseg.deployment.network import build_network, network_weights
from dataseg.deployment.predictor import Predictor
from dataseg.deployment.registry import registry
from dataseg.io.json_files import read_json, records_of
from dataseg.network import SegmentationNetwork
from dataseg.structures import UserError, Vocabulary
from dataseg.text.cache import TextCache, read_cache
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.encoder import TextEncoder


def model_of(
    checkpoint: Path,
    config: Path | None = None,
    text_cache: Path | None = None,
    vocabularies: Sequence[Vocabulary] = (),
    packages: tuple[str, ...] = (),
) -> tuple[ModelFile, SegmentationNetwork]:
    """Gather all that a model needs, and build its network; the checkpoint is read once.

    Args:
        checkpoint: file, or folder of shards.
        config: resolved configuration of its run; None = the nearest ``config.yaml`` above the checkpoint.
        text_cache: in place of the configuration's ``model.text.cache``.
        vocabularies: to carry along, beside those of the run; by their own name.
        packages: whose classes the configuration may name, see `build_network`.

    Raises:
        UserError: a file is missing, damaged, or does not fit; or text vectors cannot be had.
    """
    content = read_checkpoint(checkpoint)
    path = config or config_of(checkpoint)
    settings = _read_config(path)
    weights = network_weights(content.state_dict, str(checkpoint))
    _forget_source(settings)
    network = build_network(settings, weights, f"{checkpoint} with {path}", packages)
    try:
        own = {name: Vocabulary.from_json(record) for name, record in content.vocabularies.items()}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{checkpoint}: its vocabularies cannot be read ({error})") from error
    clash = sorted({v.name for v in vocabularies} & set(own))
    if clash:
        raise UserError(f"vocabularies {clash} have the names of datasets that {checkpoint} was trained on")
    every = own | {vocabulary.name: vocabulary for vocabulary in vocabularies}
    names = sorted({prompt for v in every.values() for spec in v.classes for prompt in spec.prompts})
    if network.classifier.reads_text:
        text = _text_vectors(_text(settings, path, text_cache, packages), names)
    else:
        metadata = {"encoder": "none: the classes are learnt", "template_set": ""}
        text = TextCache.of(torch.zeros(len(names), 1), names, metadata)
    provenance = _provenance(checkpoint, path, content.step) | {"experiment": settings.get("exp")}
    return ModelFile(weights, settings, every, text, provenance), network


def predictor_of(checkpoint: Path, encoder: TextEncoder | None = None, packages: tuple[str, ...] = ()) -> Predictor:
    """A run's predictor.

    Args:
        encoder: makes vectors of names beyond the run's vocabularies; None = the run's own text embeddings do.

    Raises:
        UserError: as `model_of`; or the encoder is of another kind.
    """
    model, network = model_of(checkpoint, packages=packages)
    text: TextEncoder | TextEmbeddings | None = encoder
    if encoder is None and network.classifier.reads_text:
        text = _text(model.config, config_of(checkpoint), None, packages)
    return Predictor.of(model, network, str(checkpoint), text)


def config_of(checkpoint: Path) -> Path:
    """The nearest configuration of a run: in the folder of the checkpoint or the one above, or within its shards.

    Raises:
        UserError: there is none.
    """
    absolute = checkpoint.absolute()
    folders = [absolute, *absolute.parents][: 1 + 2] if absolute.is_dir() else list(absolute.parents)[:2]
    configs = [RunFolder(folder).config for folder in folders]
    for config in configs:
        if config.is_file():
            return config
    looked = ", ".join(str(folder) for folder in folders)
    raise UserError(
        f"{checkpoint}: no {configs[0].name} of its run in {looked}: copy it there from the machine that trained, or"
        " name it with --config"
    )


def _read_config(path: Path) -> dict[str, Any]:
    content = read_plain(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not {"network", "text"} <= model.keys():
        raise UserError(f"{path}: not the resolved configuration of a run (it has no model.network and model.text)")
    return dict(content)


def _forget_source(settings: Any) -> None:
    """Take out where pretrained weights were read from (`timm_factory.create_model` advises it): they are trained."""
    if isinstance(settings, dict):
        settings.pop("pretrained_cfg_overlay", None)
        for value in settings.values():
            _forget_source(value)


def _text(settings: dict[str, Any], path: Path, cache: Path | None, packages: tuple[str, ...]) -> TextEmbeddings:
    section = settings["model"]["text"]
    if cache is not None and isinstance(section, dict):
        arguments = {**section.get("init_args", section), "cache": str(cache)}
        section = {**section, "init_args": arguments} if "init_args" in section else arguments
    return registry(packages).build(TextEmbeddings, section, f"{path}: model.text")


def _text_vectors(text: TextEmbeddings, names: Sequence[str]) -> TextCache:
    """Vectors of names, and what they were made with."""
    vectors = text.embed(names)
    metadata = read_cache(text.cache).metadata | {"template_set": text.templates}
    return TextCache(vectors, {name: row for row, name in enumerate(names)}, metadata)


def _provenance(checkpoint: Path, config: Path, step: int) -> dict[str, Any]:
    """Step, scores of that step and their conventions if the run noted any, configuration and versions."""
    metrics = RunFolder(config.parent).metrics
    figures: dict[str, float] = {}
    conventions: Any = {}
    if metrics.is_file():
        content = read_json(metrics)
        history = records_of(content, "history", metrics)
        conventions = content.get("conventions") or {}
        of_step: dict[str, Any] = next((entry for entry in history if entry.get("step") == step), {})
        figures = {k: v for k, v in of_step.items() if k != "step" and isinstance(v, int | float)}
    versions = {name: version(name) for name in ("dataseg", "torch", "timm")}
    return {
        "checkpoint": checkpoint.name,
        "step": step,
        "figures": figures,
        "conventions": conventions,
        "versions": versions,
        "config_sha256": hashlib.sha256(config.read_bytes()).hexdigest(),
    }

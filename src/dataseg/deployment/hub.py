"""Exported models on the Hugging Face hub. Signing in is the hub's own business: ``hf auth login`` or ``HF_TOKEN``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData

from dataseg.deployment.model_file import ModelFile, read_model
from dataseg.structures import UserError

FILE_NAME = "model.safetensors"
"""Of the model in its repository."""


def push(path: Path, repository: str, private: bool = False) -> str:
    """Upload an exported model with a model card and its configuration in one commit; makes the repository if need be.

    Args:
        path: written by `dataseg.deployment.model_file.write_model`.
        repository: ``owner/name``.
        private: whether a new repository is private; an old one stays as it is.

    Returns:
        The commit's address.

    Raises:
        UserError: no exported model, no such name, or the hub refused it.
    """
    model = read_model(path)
    files: dict[str, Path | bytes] = {
        FILE_NAME: path,
        "README.md": str(model_card(model, repository)).encode(),
        "config.json": json.dumps(model.config, indent=1, default=str).encode(),
    }
    api = HfApi(library_name="dataseg")
    try:
        api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(repository, operations, commit_message="Upload model", repo_type="model")
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"cannot push to {repository!r} ({text}): sign in with 'hf auth login' or HF_TOKEN, with the right"
            " to write, where the hub can be reached"
        ) from error
    return str(commit.commit_url)


def model_card(model: ModelFile, repository: str) -> ModelCard:
    """What stands on the repository's page. It names no licence: that is the pusher's to choose."""
    data = ModelCardData(library_name="dataseg", pipeline_tag="image-segmentation", tags=["dataseg", "mask2former"])
    classes = "\n".join(
        f"| `{name}` | {vocabulary.name} | {len(vocabulary)} | {int(vocabulary.is_thing.sum())} |"
        for name, vocabulary in sorted(model.vocabularies.items())
    )
    body = f"""---
{data.to_yaml()}
---

# {repository.split("/")[-1]}

A mask-classification network with a frozen-text classifier, co-trained on several datasets (DaTaSeg).

```python
import dataseg

model = dataseg.load("hf://{repository}")
segments = model("picture.jpg", vocabulary="{sorted(model.vocabularies)[0]}", task="panoptic")
```

| dataset | vocabulary | classes | of them things |
|---|---|---|---|
{classes}

Text embeddings: `{model.text.metadata.get("encoder")}`, templates `{model.text.metadata.get("template_set")}`.
{_scores(model.provenance)}
The resolved configuration of the training run is in `config.json` and in the metadata of `{FILE_NAME}`.
"""
    return ModelCard(body, ignore_metadata_errors=False)


def _scores(provenance: Mapping[str, Any]) -> str:
    figures = provenance.get("figures") or {}
    lines = [f"| {name} | {value:.2f} |" for name, value in sorted(figures.items())]
    step = provenance.get("step")
    head = f"\nWeights of step {step}.\n" if step is not None else ""
    if not lines:
        return head
    return "\n".join([head, f"Scores of step {step}, percent:", "", "| | |", "|---|---|", *lines, ""])

"""Exported models on the Hugging Face hub. Signing in is the hub's own business: ``hf auth login`` or ``HF_TOKEN``."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from dataseg.deployment.model_card import CARD_NAME
from dataseg.deployment.model_file import read_model
from dataseg.structures import UserError

FILE_NAME = "model.safetensors"
"""Of the model in its repository."""


def push(path: Path, repository: str, card: str, private: bool = False) -> str:
    """Upload an exported model, its card and its configuration in one commit; makes the repository if need be.

    Args:
        path: written by `dataseg.deployment.model_file.write_model`.
        repository: ``owner/name``.
        card: see `dataseg.deployment.model_card.model_card`.
        private: whether a new repository is private; an old one stays as it is.

    Returns:
        The commit's address.

    Raises:
        UserError: no exported model, no such name, or the hub refused it.
    """
    files: dict[str, Path | bytes] = {
        FILE_NAME: path,
        CARD_NAME: card.encode(),
        "config.json": json.dumps(read_model(path).config, indent=1, default=str).encode(),
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

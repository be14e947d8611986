"""The card of an exported model: what it is, what it was trained on, how well it does, where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataseg.config.renamed import with_current_names
from dataseg.deployment.model_file import ModelFile
from dataseg.io.atomic import write_text
from dataseg.metrics.by_task import task_of

CARD_NAME = "README.md"
"""What the hub shows as the page of a repository."""

LIBRARY = "dataseg"
UNSTATED = "unknown"
"""What the hub calls a licence that nobody has stated."""


def model_card(model: ModelFile, name: str, source: str, license: str | None = None) -> str:
    """A card as the Hugging Face hub takes it: markdown below a YAML header.

    Args:
        model: with the provenance that `dataseg.deployment.from_run` notes.
        name: of the model.
        source: what `dataseg.load` is given, a file or ``hf://owner/name``.
        license: the hub's identifier of the weights' licence, e.g. "apache-2.0"; None = nobody has stated one.
    """
    provenance = model.provenance
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="image-segmentation",
        tags=[LIBRARY, "panoptic-segmentation"],
        license=license or UNSTATED,
        model_name=name,
        eval_results=list(_results(provenance.get("figures") or {})) or None,
    )
    network = str((model.config["model"].get("network") or {}).get("class_path", "")).rpartition(".")[2]
    body = f"""---
{data.to_yaml()}
---

# {name}

One network ({network or "mask classification"}) co-trained on several datasets and tasks (DaTaSeg): class names are
classified by their frozen text vectors, and the task decides how masks are merged.

## Use

```python
import dataseg

model = dataseg.load("{source}")
segments = model("picture.jpg", vocabulary="{sorted(model.vocabularies)[0]}", task="panoptic")
```

## Data

{_table(("dataset", "sampling ratio", "read by", "vocabulary", "classes", "of them things"), _datasets(model))}

Text vectors: `{model.text.metadata.get("encoder")}`, templates `{model.text.metadata.get("template_set")}`.

## Scores

{_scores(provenance)}

## Provenance

{_table(("", ""), _origin(provenance))}

The resolved configuration of the training run stands in the metadata of the model file.

## Licence

{f"Weights: `{license}`." if license else "Nobody has stated a licence for these weights."} The datasets and the weights
that training started from have licences of their own.
"""
    return str(ModelCard(body, ignore_metadata_errors=False))


def write_card(model_path: Path, card: str) -> Path | None:
    """Write the card beside a model.

    Returns:
        The file; None if another file of that name, which is no card of this project, is there: it stays as it is.
    """
    path = model_path.with_name(CARD_NAME)
    if path.exists() and not re.match(rf"---\n(.*\n)*?library_name: {LIBRARY}\n", path.read_text(errors="replace")):
        return None
    write_text(path, card)
    return path


def _results(figures: Mapping[str, float]) -> Iterator[EvalResult]:
    for key, value in sorted(figures.items()):
        dataset, _, score = key.rpartition(".")
        if dataset:
            yield EvalResult(
                task_type="image-segmentation",
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type=score,
                metric_value=round(value, 2),
            )


def _datasets(model: ModelFile) -> Iterator[tuple[object, ...]]:
    section = with_current_names(model.config).get("data") or {}
    data = section.get("init_args") or {}
    readers = {**(data.get("val") or {}), **(data.get("train") or {})}
    for name, vocabulary in sorted(model.vocabularies.items()):
        ratio = (data.get("ratios") or {}).get(name, "evaluated only" if name in readers else "-")
        reader = str((readers.get(name) or {}).get("class_path", "-")).rpartition(".")[2]
        yield f"`{name}`", ratio, reader, vocabulary.name, len(vocabulary), int(vocabulary.is_thing.sum())


def _scores(provenance: Mapping[str, Any]) -> str:
    """Every score with the conventions that it depends on."""
    figures, conventions = provenance.get("figures") or {}, provenance.get("conventions") or {}
    if not figures:
        return "The run noted none for these weights."
    rows, notes = [], []
    for key, value in sorted(figures.items()):
        dataset, _, score = key.rpartition(".")
        rows.append((dataset or "mean of the primary scores", score, f"{value:.2f}"))
        stated = conventions.get(f"{dataset}.{task_of(score)}", {})
        notes += (
            [
                f"* {dataset}, {score}: "
                + "; ".join(f"{what}: {text}" for what, text in stated.items() if what != "text")
            ]
            if stated
            else []
        )
    return "\n\n".join([_table(("dataset", "score", "percent"), rows), *(["\n".join(notes)] if notes else [])])


def _origin(provenance: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    versions = ", ".join(f"{name} {number}" for name, number in (provenance.get("versions") or {}).items())
    for what, value in (
        ("experiment", provenance.get("experiment")),
        ("checkpoint", provenance.get("checkpoint")),
        ("optimisation steps", provenance.get("step")),
        ("exported with", versions or None),
        ("SHA-256 of config.yaml", provenance.get("config_sha256")),
    ):
        if value is not None:
            yield what, f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _table(head: tuple[str, ...], rows: Iterator[tuple[object, ...]] | list[tuple[str, str, str]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)

"""Fill the cache of text embeddings ahead of training, and report class names that come twice.

    dataseg embed --exp r50_all \
        --vocabularies data_modules/vocabularies/*.json [--model.text.templates=clip]

Text encoder, templates and cache are those of the experiment; embedded are the names of its datasets and of the
vocabulary files. What the cache holds already is not made again. An experiment without an encoder is only checked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from rich.console import Console

from dataseg.cli.co_training import CoTrainingCLI
from dataseg.config.instantiate import instantiate
from dataseg.io.shipped import find
from dataseg.structures import Vocabulary
from dataseg.text.cache import read_cache
from dataseg.text.embeddings import TextEmbeddings
from dataseg.text.overlap import NearNames, by_vocabularies, report_shared_names, shared_within
from dataseg.training.module import CoTrainedSegmenter

log = logging.getLogger(__name__)

CHUNK = 128
"""Names that are embedded between two writings of the cache: what an interruption costs at most."""


def fill(text: TextEmbeddings, vocabularies: Sequence[Vocabulary], console: Console) -> int:
    """Embed all names of the vocabularies that the cache lacks, with progress.

    Returns:
        How many were made.

    Raises:
        UserError: see `TextEmbeddings`.
    """
    names = sorted({prompt for v in vocabularies for spec in v.classes for prompt in spec.prompts})
    known = read_cache(text.cache).rows if text.cache.exists() else {}
    missing = [name for name in names if name not in known]
    begun = time.monotonic()
    for start in range(0, len(missing), CHUNK):  # within a chunk the encoder shows its own progress
        text.embed(missing[start : start + CHUNK])
        done = min(start + CHUNK, len(missing))
        left = (time.monotonic() - begun) / done * (len(missing) - done)
        _print(console, f"text embeddings: {done} of {len(missing)} names, {left:.0f} s left")
    text.embed(names)  # also where nothing is missing: refuses a cache made with something else
    return len(missing)


def report(vocabularies: Sequence[Vocabulary], text: TextEmbeddings, threshold: float, console: Console) -> None:
    """Print which classes share a name: within one vocabulary (a mistake to mend) and between two (a fact to know)."""
    for vocabulary in vocabularies:
        for prompt, names in shared_within(vocabulary):
            listed = ", ".join(repr(name) for name in names)
            _print(console, f"WARNING {vocabulary.name}: {listed} share the name {prompt!r}: they cannot be told apart")
    pairs = report_shared_names(vocabularies, text, threshold)
    shared = [pair for pair in pairs if pair.shared]
    _print(console, f"{len(shared)} pairs of classes of different vocabularies share a name (none is ever joined):")
    _print_by_vocabularies(console, shared)
    near = [pair for pair in pairs if not pair.shared]
    _print(console, f"{len(near)} more pairs have nearly the same vector (cosine above {threshold}):")
    _print_by_vocabularies(console, near)


def _print_by_vocabularies(console: Console, pairs: Iterable[NearNames]) -> None:
    for (first, second), group in by_vocabularies(pairs).items():
        texts = [_text(pair) for pair in group]
        _print(console, f"  {first} / {second}: {len(texts)}: {'; '.join(texts)}")


def _text(pair: NearNames) -> str:
    a, b = pair.first[1].strip(), pair.second[1].strip()
    return a if a == b else f"{a} = {b}" if pair.shared else f"{a} ~ {b} ({pair.cosine:.2f})"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


# --------------------------------------------------------------------------------------------------- command line


class EmbedCLI(CoTrainingCLI):
    """Reads an experiment as training does; of all it describes, only data readers and text embeddings are built."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--vocabularies", type=Path, nargs="*", default=[], help="further *.json files")
        parser.add_argument("--threshold", type=float, default=0.95, help="cosine from which names are near")

    def before_instantiate_classes(self) -> None:
        """No file of a dataset is needed."""

    def instantiate_classes(self) -> None:
        self.text: TextEmbeddings = instantiate(TextEmbeddings, self.config.model.text.as_dict(), "model.text")
        data = instantiate(LightningDataModule, self.config.data.as_dict(), "data")
        own = [spec.vocabulary for spec in data.specs.values()]
        files = [Vocabulary.load(find(path)) for path in self.config.vocabularies]
        self.vocabularies = _different([*own, *(files if self.text.encoder else _complete(files, self.text))])


def _different(vocabularies: Iterable[Vocabulary]) -> list[Vocabulary]:
    """Each content once."""
    return list({vocabulary.digest: vocabulary for vocabulary in reversed(list(vocabularies))}.values())[::-1]


def _complete(vocabularies: Sequence[Vocabulary], text: TextEmbeddings) -> list[Vocabulary]:
    """Those that a cache without an encoder has all names of; the others are named in a warning."""
    rows = read_cache(text.cache).rows if text.cache.exists() else {}
    lacking = {v.name: [p for c in v.classes for p in c.prompts if p not in rows] for v in vocabularies}
    for name, missing in lacking.items():
        if missing:
            log.warning(
                "%s: left out, %s lacks %d of its names and there is no text.encoder", name, text.cache, len(missing)
            )
    return [v for v in vocabularies if not lacking[v.name]]


def main(args: ArgsType = None) -> int:
    """Command line; the exit status is 0."""
    console = Console()
    cli = EmbedCLI(
        CoTrainedSegmenter,
        LightningDataModule,
        subclass_mode_data=True,
        args=args,
        seed_everything_default=0,
        run=False,
        save_config_callback=None,
    )
    made = fill(cli.text, cli.vocabularies, console)
    for vocabulary in cli.vocabularies:
        prompts = sum(len(spec.prompts) for spec in vocabulary.classes)
        _print(console, f"{vocabulary.name}: {len(vocabulary)} classes, {prompts} names, hash {vocabulary.digest}")
    _print(console, f"{cli.text.cache}: {made} names added; {cli.text.provenance}")
    report(cli.vocabularies, cli.text, cli.config.threshold, console)
    return 0

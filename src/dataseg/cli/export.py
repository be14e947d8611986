"""Turn a training checkpoint into one file that predicts; on request also into torch.export's or ONNX.

    dataseg export runs/mini_all/version_0/checkpoints/best.ckpt --out model.safetensors
    dataseg export CKPT --program model.pt2 --onnx model.onnx --vocabulary coco
    dataseg export CKPT --push owner/name --license apache-2.0

The checkpoint is a file, or a folder of shards as FSDP and ModelParallel write it. ``config.yaml`` of its run must lie
beside it or in a folder above. The file holds weights, configuration, vocabularies and their text vectors:
``dataseg.load(path)`` downloads nothing. Beside it lies its model card, README.md as the Hugging Face hub shows it.
Traced networks (torch.export, ONNX) need none of our code; each is compared
with the network it comes from before it is written under its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dataseg.deployment import hub
from dataseg.deployment.from_run import config_of, model_of
from dataseg.deployment.model_card import CARD_NAME, model_card, write_card
from dataseg.deployment.model_file import write_model
from dataseg.deployment.predictor import HUB, Predictor
from dataseg.deployment.registry import PACKAGES
from dataseg.io.shipped import find
from dataseg.structures import UserError, Vocabulary


def write_traced(predictor: Predictor, vocabulary: str | None, program: Path | None, onnx: Path | None) -> list[str]:
    """Trace a model's network, write it, compare what was written with the network, and say how near it is.

    Args:
        predictor: whose network; on the CPU.
        vocabulary: name of the dataset whose classes are built in; may be left out if there is one vocabulary.
        program: ``.pt2`` file for `torch.export.load`; None = none.
        onnx: file; None = none.

    Raises:
        UserError: no such vocabulary, packages are missing, or what was written is not equal to the network.
    """
    from dataseg.deployment import traced

    known = predictor.vocabularies
    if vocabulary is None and len({v.digest for v in known.values()}) > 1:
        raise UserError(f"a traced network has one vocabulary built in: choose --vocabulary, one of {sorted(known)}")
    chosen = predictor.vocabulary(vocabulary or next(iter(known)))
    network = traced.trace(predictor.network, predictor.classes(chosen))
    lines = [f"takes {network.images}"]
    if program is not None:
        with _checked_first(program) as path:
            traced.save_program(network, path, chosen)
            loaded = torch.export.load(path).module()
            lines += [f"{program}: {result}" for result in traced.compare(network.model, loaded, str(program))]
    if onnx is not None:
        with _checked_first(onnx) as path:
            traced.save_onnx(network, path, chosen)
            runner = traced.onnx_runner(path)
            lines += [f"{onnx}: {result}" for result in traced.compare(network.model, runner, str(onnx))]
    return lines


@contextmanager
def _checked_first(path: Path) -> Iterator[Path]:
    """A place to write to; only if the block ends well does it become ``path``, with what else was written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for written in sorted(Path(folder).iterdir()):  # ONNX puts large weights into a file beside its own
            written.replace(path.with_name(written.name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dataseg export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="file, or folder of shards")
    parser.add_argument("--out", type=Path, help=f"file to write; default: {hub.FILE_NAME} in the run's folder")
    parser.add_argument("--config", type=Path, help="the run's config.yaml; default: the nearest above the checkpoint")
    parser.add_argument("--text-cache", type=Path, help="text vectors; default: as the configuration says")
    parser.add_argument("--vocabularies", type=Path, nargs="*", default=[], help="further *.json files to carry along")
    parser.add_argument("--packages", nargs="*", default=[], help=PACKAGES)
    parser.add_argument("--program", type=Path, help="torch.export's file to write as well, *.pt2")
    parser.add_argument("--onnx", type=Path, help="ONNX file to write as well")
    parser.add_argument("--vocabulary", help="dataset whose classes are built into what is traced")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to the Hugging Face hub")
    parser.add_argument("--license", help="of the weights, for the model card, e.g. apache-2.0; default: not stated")
    parser.add_argument("--private", action="store_true", help="if that makes a new repository, a private one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0."""
    options = _parser().parse_args(arguments)
    out: Path = options.out or (options.config or config_of(options.checkpoint)).with_name(hub.FILE_NAME)
    if out.suffix != ".safetensors":
        raise UserError(f"the file to write must end in .safetensors, got {out}")
    more = [Vocabulary.load(find(path)) for path in options.vocabularies]
    packages = tuple(options.packages)
    model, network = model_of(options.checkpoint, options.config, options.text_cache, more, packages)
    write_model(out, model)
    size, names = f"{out.stat().st_size / 2**20:.1f} MiB", ", ".join(sorted(model.vocabularies))
    print(f"{out}: {size}, {len(model.weights)} tensors, step {model.provenance['step']}; datasets: {names}")
    source = out.name if options.push is None else f"{HUB}{options.push}"
    card = model_card(model, (options.push or out.stem).rpartition("/")[2], source, options.license)
    written = write_card(out, card)
    print(
        f"{written or out.with_name(CARD_NAME)}: {'model card' if written else 'is no model card, and stays as it is'}"
    )
    if options.program or options.onnx:
        predictor = Predictor.of(model, network, str(options.checkpoint))
        print("\n".join(write_traced(predictor, options.vocabulary, options.program, options.onnx)))
    if options.push:
        print(f"pushed: {hub.push(out, options.push, card, options.private)}")
    return 0

r"""Turn a training checkpoint into one file that predicts, and on request into programs without our code.

    python -m dataseg.export runs/mini_all/version_0/checkpoints/best.ckpt --out model.safetensors
    python -m dataseg.export CKPT --program model.pt2 --onnx model.onnx --vocabulary coco
    python -m dataseg.export CKPT --push owner/name

The checkpoint is a file, or a folder of shards as FSDP and ModelParallel write it. ``config.yaml`` of its run must lie
beside it or in a folder above. The file holds weights, configuration, vocabularies and their text vectors:
``dataseg.load(path)`` downloads nothing. Programs are compared with the network before they are handed out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from dataseg import hub
from dataseg.model_file import ModelFile, build_network, instantiate, network_weights, packages_of, write_model
from dataseg.predictor import Predictor
from dataseg.structures import UserError, Vocabulary
from dataseg.text import TextEmbeddings
from dataseg.text_cache import TextCache, read_cache
from dataseg.training_checkpoint import read_checkpoint

CONFIG = "config.yaml"


def model_of(
    checkpoint: Path,
    config: Path | None = None,
    text_cache: Path | None = None,
    vocabularies: Sequence[Vocabulary] = (),
) -> ModelFile:
    """Gather all that a model needs; the network is built once to see that everything fits.

    Args:
        checkpoint: file, or folder of shards.
        config: resolved configuration of its run; None = the nearest ``config.yaml`` above the checkpoint.
        text_cache: in place of the configuration's ``model.text.cache``.
        vocabularies: to carry along, beside those of the run; by their own name.

    Raises:
        UserError: a file is missing, damaged, or does not fit; or text vectors cannot be had.
    """
    content = read_checkpoint(checkpoint)
    path = config or _config_of(checkpoint)
    settings = _read_config(path)
    weights = network_weights(content.state_dict, str(checkpoint))
    packages = packages_of(settings)  # one's own run is trusted
    build_network(settings, weights, f"{checkpoint} with {path}", packages)
    own = {name: Vocabulary.from_json(record) for name, record in content.vocabularies.items()}
    clash = sorted({v.name for v in vocabularies} & set(own))
    if clash:
        raise UserError(f"vocabularies {clash} have the names of data sets that {checkpoint} was trained on")
    every = own | {vocabulary.name: vocabulary for vocabulary in vocabularies}
    text = _text_vectors(settings, path, text_cache, list(every.values()))
    return ModelFile(weights, settings, every, text, _provenance(checkpoint, path, content.step))


def _config_of(checkpoint: Path) -> Path:
    absolute = checkpoint.absolute()
    folders = [absolute, *absolute.parents][: 1 + 2] if absolute.is_dir() else list(absolute.parents)[:2]
    for folder in folders:
        if (folder / CONFIG).is_file():
            return folder / CONFIG
    looked = ", ".join(str(folder) for folder in folders)
    raise UserError(
        f"{checkpoint}: no {CONFIG} of its run in {looked}: copy it there from the machine that trained, or name it"
        " with --config"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(content, dict) or not {"network", "text"} <= set(content.get("model") or {}):
        raise UserError(f"{path}: not the resolved configuration of a run (it has no model.network and model.text)")
    return content


def _text_vectors(
    settings: dict[str, Any], path: Path, cache: Path | None, vocabularies: Sequence[Vocabulary]
) -> TextCache:
    """Vectors of the vocabularies' names alone, and what they were made with."""
    section = settings["model"]["text"]
    if cache is not None:
        arguments = section.get("init_args", section) | {"cache": str(cache)}
        section = section | {"init_args": arguments} if "init_args" in section else arguments
    text: TextEmbeddings = instantiate(TextEmbeddings, section, f"{path}: model.text")
    names = sorted({prompt for v in vocabularies for spec in v.classes for prompt in spec.prompts})
    vectors = text.embed(names)
    metadata = read_cache(text.cache).metadata | {"template_set": text.templates}
    return TextCache(vectors, {name: row for row, name in enumerate(names)}, metadata)


def _provenance(checkpoint: Path, config: Path, step: int) -> dict[str, Any]:
    """Step, figures of that step if the run noted any, and versions."""
    metrics = config.with_name("metrics.json")
    figures: dict[str, float] = {}
    if metrics.is_file():
        history = json.loads(metrics.read_text(encoding="utf-8")).get("history", [])
        of_step: dict[str, Any] = next((entry for entry in history if entry.get("step") == step), {})
        figures = {k: v for k, v in of_step.items() if k != "step" and v is not None}
    versions = {name: version(name) for name in ("dataseg", "torch", "timm")}
    return {"checkpoint": checkpoint.name, "step": step, "figures": figures, "versions": versions}


# --------------------------------------------------------------------------------------------------- command line


def write_programs(
    model: ModelFile, source: str, vocabulary: str | None, program: Path | None, onnx: Path | None
) -> list[str]:
    """Write the network as a program, compare it with the network, and say how near it is.

    Args:
        model: whose network.
        source: for messages.
        vocabulary: name of the data set whose classes are built in; may be left out if there is one vocabulary.
        program: ``.pt2`` file for `torch.export.load`; None = none.
        onnx: file; None = none.

    Raises:
        UserError: no such vocabulary, packages are missing, or a program is not equal to the network.
    """
    from dataseg import programs

    predictor = Predictor.from_file(model, source, packages=packages_of(model.config))
    if vocabulary is None and len({v.digest for v in model.vocabularies.values()}) > 1:
        raise UserError(f"a program has one vocabulary built in: choose one of {sorted(model.vocabularies)}")
    chosen = predictor.vocabulary(vocabulary or next(iter(model.vocabularies)))
    traced = programs.export_program(predictor.network, predictor.classes(chosen))
    lines = [f"takes {traced.images}"]
    if program is not None:
        with _checked_first(program) as path:
            programs.save_program(traced, path, chosen)
            loaded = torch.export.load(path).module()
            lines += [f"{program}: {result}" for result in programs.check(traced.model, loaded, str(program))]
    if onnx is not None:
        with _checked_first(onnx) as path:
            programs.save_onnx(traced, path, chosen)
            runner = programs.onnx_runner(path)
            lines += [f"{onnx}: {result}" for result in programs.check(traced.model, runner, str(onnx))]
    return lines


@contextmanager
def _checked_first(path: Path) -> Iterator[Path]:
    """A place to write to; only if the block ends well does it become ``path``, with what else was written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for written in sorted(Path(folder).iterdir()):  # ONNX puts large weights into a file beside its own
            written.replace(path.with_name(written.name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dataseg.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="file, or folder of shards")
    parser.add_argument("--out", type=Path, help=f"file to write; default: {hub.FILE_NAME} beside the run's {CONFIG}")
    parser.add_argument("--config", type=Path, help=f"the run's {CONFIG}; default: the nearest above the checkpoint")
    parser.add_argument("--text-cache", type=Path, help="text vectors; default: as the configuration says")
    parser.add_argument("--vocabularies", type=Path, nargs="*", default=[], help="further *.json files to carry along")
    parser.add_argument("--program", type=Path, help="torch.export's file to write as well, *.pt2")
    parser.add_argument("--onnx", type=Path, help="ONNX file to write as well")
    parser.add_argument("--vocabulary", help="data set whose classes are built into these programs")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload to the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="if that makes a new repository, a private one")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status, 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    out: Path = options.out or (options.config or _config_of(options.checkpoint)).with_name(hub.FILE_NAME)
    if out.suffix != ".safetensors":
        raise UserError(f"the file to write must end in .safetensors, got {out}")
    more = [Vocabulary.load(path) for path in options.vocabularies]
    model = model_of(options.checkpoint, options.config, options.text_cache, more)
    write_model(out, model)
    size, names = f"{out.stat().st_size / 2**20:.1f} MiB", ", ".join(sorted(model.vocabularies))
    print(f"{out}: {size}, {len(model.weights)} tensors, step {model.provenance['step']}; data sets: {names}")
    if options.program or options.onnx:
        source = str(options.checkpoint)
        print("\n".join(write_programs(model, source, options.vocabulary, options.program, options.onnx)))
    if options.push:
        print(f"pushed: {hub.push(out, options.push, options.private)}")


if __name__ == "__main__":
    sys.exit(main())

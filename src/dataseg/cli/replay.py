"""Run a step again whose loss or gradient was not finite.

``dataseg replay runs/.../replay/step-<n>-rank-<r>.pt [--pdb]``
"""

from __future__ import annotations

import argparse
import contextlib
import pdb
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dataseg.checkpoint.load import is_whole
from dataseg.checkpoint.run_folder import RunFolder
from dataseg.checkpoint.validate import not_finite
from dataseg.config.build import read_plain
from dataseg.deployment.network import build_network, network_weights
from dataseg.deployment.registry import PACKAGES, registry
from dataseg.inference.postprocess import PostProcessor
from dataseg.losses import Criterion
from dataseg.structures import Batch, ClassEmbeddings, DatasetSpec, UserError, Vocabulary
from dataseg.text import TextEmbeddings
from dataseg.training.module import CoTrainedSegmenter
from dataseg.training.optimization import Optimization
from dataseg.training.replay_file import batch_from_plain, classes_from_plain, weights_file


class NotFiniteHereError(ArithmeticError):
    """The first module whose output is not finite, raised where it is computed."""


@dataclass(frozen=True)
class _Recorded:
    """Class embeddings as a replay file has them, in the text encoder's place."""

    of: Mapping[Vocabulary, ClassEmbeddings]
    provenance: str = "a replay file"

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        return self.of[vocabulary]


def replay(file: Path, config: Path | None = None, packages: tuple[str, ...] = ()) -> bool:
    """Run the step again, in this process and without loading workers; whether all of it was finite.

    The files may be anybody's: the configuration names listed classes only, and nothing is downloaded.

    Args:
        file: of `write_replay`.
        config: the run's; default: that of the run that the file lies in.
        packages: whose classes the configuration may name, see `build_network`.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
        NotFiniteHereError: from the module that first gave a value that is not finite.
        RuntimeError: from torch's anomaly detection, if the first such value arises in the backward pass.
    """
    content, weights = _load(file), _load(weights_file(file))
    try:
        facts, seeds = dict(content["facts"]), [int(seed) for seed in content["seeds"]]
        steps = [[batch_from_plain(part) for part in parts] for parts in content["batches"]]
        on_gpu, precision = facts["device"] == "cuda", str(facts["precision"])
        classes = {name: classes_from_plain(own) for name, own in content["classes"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{file}: not a replay file that can be read ({type(error).__name__}: {error})") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{weights_file(file)}: no state dict")
    module = _module(config or RunFolder.of_file(file).config, weights, classes, str(weights_file(file)), packages)
    device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
    module.to(device).train()
    print(f"{file}\n" + "\n".join(f"  {name}: {value}" for name, value in facts.items()))
    if "seed" in facts:
        module.network.start_step(facts["seed"], facts["step"], facts["max_steps"])
    broken = not_finite(module.state_dict())
    if broken:
        print(f"  weights were not finite before the step: {', '.join(broken)}")
    dtype = torch.bfloat16 if "bf16" in precision else torch.float16
    autocast = torch.autocast(device.type, dtype) if "mixed" in precision else contextlib.nullcontext()
    with torch.autograd.set_detect_anomaly(True, check_nan=True), _watched(module):
        for parts, seed in zip(steps, seeds, strict=True):
            torch.manual_seed(seed)
            for part in parts:
                with autocast:
                    _run(module, part.to(device))
    broken = not_finite({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    print(f"  gradients that are not finite: {', '.join(broken)}" if broken else "  everything was finite this time")
    return not broken


def _run(module: CoTrainedSegmenter, batch: Batch) -> None:
    print(f"  {batch.dataset}: images {batch.image_ids}")
    terms = module.loss_terms(batch)
    if module.cost_error is not None:
        raise module.cost_error
    for name, value in terms.items():
        print(f"    {name}: {float(value.detach()):.6g}")
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]


def _load(path: Path) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        whole = all(map(is_whole, _tensors(content)))
    except Exception as error:
        raise UserError(f"{path}: not a replay file that can be read ({type(error).__name__})") from error
    if not whole:
        raise UserError(f"{path}: not a replay file that can be read (a tensor is larger than its memory)")
    return content


def _module(
    config: Path,
    weights: Mapping[str, Tensor],
    classes: Mapping[str, tuple[Vocabulary, ClassEmbeddings]],
    source: str,
    packages: tuple[str, ...],
) -> CoTrainedSegmenter:
    """The run's module with these weights."""
    try:
        content = read_plain(config)
    except UserError as error:
        raise UserError(f"{error}: give the run's configuration with --config") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not {"network", "criterion"} <= model.keys():
        raise UserError(f"{config}: not the resolved configuration of a run (it has no model.network and criterion)")
    known = registry(packages)
    return CoTrainedSegmenter(
        network=build_network(content, network_weights(weights, source), f"{source} with {config}", packages),
        criterion=known.build(Criterion, model["criterion"], f"{config}: model.criterion"),
        text=cast(TextEmbeddings, _Recorded(dict(classes.values()))),
        datasets={name: DatasetSpec(vocabulary) for name, (vocabulary, _) in classes.items()},
        optimization=known.build(Optimization, model.get("optimization", {}), f"{config}: model.optimization"),
        postprocess=known.build(PostProcessor, model.get("postprocess", {}), f"{config}: model.postprocess"),
        merge=model.get("merge", "targets"),
    )


@contextlib.contextmanager
def _watched(module: nn.Module) -> Iterator[None]:
    """Raise in the first innermost module whose output is not finite."""
    handles = []
    for name, child in module.named_modules():

        def check(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            for tensor in _tensors(output):
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    count = int((~tensor.isfinite()).sum())
                    inputs = [
                        f"{list(t.shape)} largest {float(t.detach().abs().max()):.4g}"
                        for t in _tensors(args)
                        if t.numel()
                    ]
                    raise NotFiniteHereError(
                        f"{name or 'the module'}: {count} of {tensor.numel()} values of its output"
                        f" {list(tensor.shape)} are not finite; inputs: {'; '.join(inputs)}"
                    )

        handles.append(child.register_forward_hook(check))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def main(args: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 if everything was finite this time, 1 if it happened again."""
    parser = argparse.ArgumentParser(prog="dataseg replay", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--config", type=Path, default=None, help="the run's config.yaml")
    parser.add_argument("--packages", nargs="*", default=[], help=PACKAGES)
    parser.add_argument("--pdb", action="store_true", help="debugger at the place where it arises")
    options = parser.parse_args(args)
    try:
        return 0 if replay(options.file, options.config, tuple(options.packages)) else 1
    except UserError:
        raise
    except (ArithmeticError, RuntimeError, ValueError) as error:
        print(f"it happened again: {type(error).__name__}: {error}", file=sys.stderr)
        if options.pdb:
            pdb.post_mortem(error.__traceback__)
        return 1

"""Fully sharded training (FSDP2): which blocks are sharded, and sharded checkpoints made whole."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.models import FeatureListNet
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from dataseg.network import MaskClassificationNetwork, TimmBackbone, ViTDet
from dataseg.resume import SHARD_STATE
from dataseg.structures import UserError


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, on which the module shards its network over all processes (``configure_model``).

    Optimiser states are matched by parameter names. Lightning's own way from and to single files counts parameters in
    the order of the module; our optimiser's groups put them in another.
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        """See the class.

        Args:
            save_distributed_checkpoint: each rank writes its part into a folder; False: the first writes one file.
        """
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint)
        self.sharded = save_distributed_checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Sharded and by name; or, for a single file, whole and by number on the first rank."""
        assert self.model is not None
        whole = not self.sharded
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, optimizer, options=options)
        return _by_number(state) if whole and state else state

    def load_checkpoint(self, checkpoint_path: Path | str, weights_only: bool | None = None) -> dict[str, Any]:
        """A sharded folder, or a file of any strategy."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only=True)
        assert self.model is not None
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            named = _by_name(state, self.model, optimizer)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def blocks(network: MaskClassificationNetwork) -> list[nn.Module]:
    """What is gathered and freed at a time: backbone stages or blocks, and the layers of both decoders.

    A timm model that does not run its stages as modules of their own is left to the network's outermost group.
    """
    backbone = network.backbone
    found: list[nn.Module] = []
    if isinstance(backbone, ViTDet):
        found += [*backbone.blocks, backbone.pyramid]
    elif isinstance(backbone, TimmBackbone) and isinstance(backbone.model, FeatureListNet):
        found += [stage for stage in backbone.model.children() if any(True for _ in stage.parameters())]
    return [*found, *network.pixel_decoder.layers, *network.transformer_decoder.layers]


def shard(network: MaskClassificationNetwork, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Shard a network's parameters over a one-dimensional mesh, in place.

    Every rank must hold the same weights before.

    Args:
        network: of plain parameters.
        mesh: all ranks.
        dtype: the blocks are gathered and computed in it, gradients are reduced in float32; None = float32. What is
            outside the blocks stays float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    for block in blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    for method in ("decode", "features", "classify"):  # entrances beside `forward`
        register_fsdp_forward_method(network, method)


def consolidate(folder: Path) -> dict[str, Any]:
    """A sharded checkpoint as the one file that a single process would have written.

    Args:
        folder: written under `FullySharded`.

    Returns:
        "state_dict", "optimizer_states" and all else a checkpoint holds; on the CPU. It can be saved with `torch.save`,
        loaded with ``weights_only=True`` and resumed from with any number of processes.

    Raises:
        UserError: the folder is not a sharded checkpoint, or is damaged.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            file = Path(temporary) / "whole.pt"
            dcp_to_torch_save(folder, file)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint: dict[str, Any] = torch.load(folder / SHARD_STATE, map_location="cpu", weights_only=True)
    except (Exception, CheckpointException) as error:
        raise UserError(f"{folder}: not a sharded checkpoint that can be read ({error})") from error
    checkpoint["state_dict"] = content.pop("state_dict")
    numbered = sorted(content.items(), key=lambda item: int(item[0].removeprefix("optimizer_")))
    checkpoint["optimizer_states"] = [_by_number(state) for _, state in numbered]
    return checkpoint


def _by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state keyed by parameter names, as torch's optimisers want it: by position."""
    groups: list[dict[str, Any]] = []
    order: list[str] = []
    for group in state["param_groups"]:
        names = group["params"]
        groups.append({**group, "params": list(range(len(order), len(order) + len(names)))})
        order += names
    return {"state": {i: state["state"][name] for i, name in enumerate(order) if name in state["state"]}} | {
        "param_groups": groups
    }


def _by_name(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The reverse, for an optimiser over a model's parameters."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {**saved, "params": [name_of[id(parameter)] for parameter in group["params"]]}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    order = [name for group in groups for name in group["params"]]
    return {"state": {order[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def main(args: Sequence[str] | None = None) -> int:
    """``python -m dataseg.sharding FOLDER FILE``: exit status 0, or 1 if the folder cannot be read."""
    parser = argparse.ArgumentParser(description="make one file of a sharded checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(args)
    try:
        torch.save(consolidate(options.folder), options.file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fully sharded training (FSDP2), and states that any strategy reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from dataseg.checkpoint.consolidate import optimizer_state_by_number
from dataseg.network import SegmentationNetwork


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2; the module shards its network over all processes (``configure_model``).

    Optimiser states are matched by parameter names, to and from files of any strategy. Lightning's own way from and to
    single files counts parameters in the order of the module; our optimiser's groups put them in another.
    """

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        """See the class.

        Args:
            save_distributed_checkpoint: each rank writes its part into a folder; False: the first writes one file.
        """
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint)
        self.sharded = save_distributed_checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Sharded and by name; or, for a single file, whole and by number, at least on the first rank."""
        assert self.model is not None
        whole = not self.sharded
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, optimizer, options=options)
        return optimizer_state_by_number(state) if whole and state else state

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
            named = optimizer_state_by_name(state, self.model, optimizer)
            set_optimizer_state_dict(self.model, optimizer, named, options=options)
        return checkpoint


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """A module's state dict, of whatever strategy, on the CPU; empty but on the first rank. All ranks must call it."""
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return state if not dist.is_initialized() or dist.get_rank() == 0 else {}


def shard(network: SegmentationNetwork, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Shard a network's parameters over a one-dimensional mesh, in place.

    Every rank must hold the same weights before. From then on only the network's ``forward`` may be called: `decode`
    and `classify`, which it calls, have no hooks of their own that gather parameters.

    Args:
        network: of plain parameters.
        mesh: all ranks.
        dtype: the blocks are gathered and computed in it, gradients are reduced in float32; None = float32. What is
            outside the blocks stays float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    for block in network.fsdp_blocks():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)


def optimizer_state_by_name(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The reverse of `optimizer_state_by_number`, for an optimiser over a model's parameters."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {**saved, "params": [name_of[id(parameter)] for parameter in group["params"]]}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    order = [name for group in groups for name in group["params"]]
    return {"state": {order[i]: value for i, value in state["state"].items()}, "param_groups": groups}

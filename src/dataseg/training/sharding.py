"""Fully sharded training: which blocks are sharded, and states that any strategy reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, ParallelStrategy
from timm.models import FeatureListNet
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.optim import Optimizer

from dataseg.checkpoint.consolidate import MAKE_WHOLE, optimizer_state_by_number
from dataseg.network import MaskClassificationNetwork, TimmBackbone, ViTDet
from dataseg.structures import UserError
from dataseg.training.optimization import plain_name


class _StatesByName(ParallelStrategy):
    """Optimiser states matched by parameter names, to and from files of any strategy.

    Lightning's own way from and to single files counts parameters in the order of the module; our optimiser's groups
    put them in another.
    """

    sharded: bool  # checkpoints are folders of shards

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Sharded and by name; or, for a single file, whole and by number, at least on the first rank."""
        assert self.model is not None
        whole = not self.sharded
        options = StateDictOptions(full_state_dict=whole, cpu_offload=_is_copied(self.root_device))
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


class FullySharded(_StatesByName, ModelParallelStrategy):
    """Lightning's strategy for FSDP2; the module shards its network over all processes (``configure_model``)."""

    def __init__(self, save_distributed_checkpoint: bool = True) -> None:
        """See the class.

        Args:
            save_distributed_checkpoint: each rank writes its part into a folder; False: the first writes one file.
        """
        super().__init__(save_distributed_checkpoint=save_distributed_checkpoint)
        self.sharded = save_distributed_checkpoint


class FlatSharded(_StatesByName, FSDPStrategy):
    """Lightning's strategy for FSDP1, for GPUs and torch versions on which FSDP2 does not serve.

    Parameters of a block are one flat vector. Checkpoints are single files, written by the first process.
    """

    sharded = False

    def __init__(
        self, sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD", cpu_offload: bool = False
    ) -> None:
        """See the class.

        Args:
            sharding_strategy: parameters, gradients and optimiser, or the last two alone.
            cpu_offload: parameters and gradients wait in the host's memory.
        """
        super().__init__(sharding_strategy=sharding_strategy, cpu_offload=cpu_offload)

    def load_checkpoint(self, checkpoint_path: Path | str, weights_only: bool | None = None) -> dict[str, Any]:
        """A file of any strategy.

        Raises:
            UserError: a folder of shards.
        """
        if Path(checkpoint_path).is_dir():
            raise UserError(f"{checkpoint_path} is sharded: {MAKE_WHOLE.format(checkpoint_path)}")
        return super().load_checkpoint(checkpoint_path, weights_only)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole, on the first rank."""
        assert self.model is not None
        return whole_weights(self.model, self.root_device)

    def wrap(self, network: MaskClassificationNetwork) -> FullyShardedDataParallel:
        """Shard a network that lies on this rank's device; every rank must hold the same weights before.

        Raises:
            UserError: bfloat16 without a GPU: Lightning's autocast for FSDP1 is CUDA's.
        """
        ours = {id(block) for block in blocks(network)}
        dtype = torch.bfloat16 if self.precision_plugin.precision.startswith("bf16") else None
        if dtype and self.root_device.type != "cuda":
            raise UserError(
                f"STRATEGY=fsdp1 computes in {self.precision_plugin.precision} on GPUs only: take STRATEGY=fsdp, or"
                " trainer.precision=32-true"
            )
        policy = MixedPrecision(param_dtype=dtype, reduce_dtype=torch.float32) if dtype else None
        return FullyShardedDataParallel(
            network,
            sharding_strategy=self.sharding_strategy,
            cpu_offload=self.cpu_offload,
            auto_wrap_policy=CustomPolicy(lambda part: {"mixed_precision": policy} if id(part) in ours else False),
            device_id=self.root_device,
            use_orig_params=True,
        )


def whole_weights(module: nn.Module, device: torch.device) -> dict[str, Any]:
    """A module's state dict, of whatever strategy, on the CPU; empty but on the first rank. All ranks must call it.

    Args:
        device: that this rank computes on.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=_is_copied(device))
    state = get_model_state_dict(module, options=options)
    return state if not dist.is_initialized() or dist.get_rank() == 0 else {}


def _is_copied(device: torch.device) -> bool:
    """Whether states are to be offloaded to the CPU. Where that is no copy, FSDP1 gives views of memory it frees."""
    return device.type != "cpu"


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

    Every rank must hold the same weights before. From then on the network is entered by its ``forward`` alone: were
    `decode` and `classify` entrances too, which `forward` calls, the first of them to be done with its gradient would
    free the parameters of the other.

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


def optimizer_state_by_name(state: dict[str, Any], model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The reverse, for an optimiser over a model's parameters."""
    name_of = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    groups = [
        {**saved, "params": [name_of[id(parameter)] for parameter in group["params"]]}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    order = [name for group in groups for name in group["params"]]
    return {"state": {order[i]: value for i, value in state["state"].items()}, "param_groups": groups}

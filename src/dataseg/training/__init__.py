"""The LightningModule, its optimiser, and how its parameters are sharded."""

from dataseg.training.sharding import FullySharded

__all__ = ["FullySharded"]

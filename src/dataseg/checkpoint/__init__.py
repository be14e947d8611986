"""Checkpoints: names, durable writing, validation, resuming, weights of other projects."""

"""Checkpoints: reading and writing them, and the tensor names of other implementations."""

from src.checkpoints.store import CheckpointError, load

__all__ = ["CheckpointError", "load"]

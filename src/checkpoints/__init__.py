"""Checkpoints: reading and writing them, and the tensor names of other implementations."""

from src.checkpoints.files import CheckpointError
from src.checkpoints.network import load

__all__ = ["CheckpointError", "load"]

"""Inference: scores, label maps and files from a trained network."""

from src.inference.semantic import semantic_scores

__all__ = ["semantic_scores"]

"""Inference: scores, label maps and files from a trained network.

Read in this order: ``semantic`` (scores from queries), ``whole`` (one image), ``tiled`` (photos larger than memory),
``predictor`` (any photo). ``bands`` makes large maps a few rows at a time, ``results`` the files.
"""

from src.inference.predictor import PhotoPrediction, Predictor
from src.inference.semantic import semantic_scores
from src.inference.whole import predict_labels

__all__ = ["PhotoPrediction", "Predictor", "predict_labels", "semantic_scores"]

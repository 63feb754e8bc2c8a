"""From query predictions to class scores (MaskFormer, NeurIPS 2021, semantic inference)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from src.structures import MaskPrediction


def semantic_scores(prediction: MaskPrediction, size: tuple[int, int]) -> Tensor:
    """Scores of every class at every pixel.

    Mask logits are resized bilinearly to ``size``; the score of class c is the sum over queries of
    softmax(class)[c] times sigmoid(mask). The sum is not normalised, and "no object" is dropped after softmax.

    Args:
        prediction: of the network. size: height and width, pixels.

    Returns:
        (B, K, H, W) float32, at least 0.
    """
    masks = F.interpolate(prediction.mask_logits.float(), size=size, mode="bilinear", align_corners=False)
    classes = prediction.class_logits.float().softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid_())

"""The mask terms: binary cross-entropy and dice at points, and the logits of the matched queries (Mask2Former).

B batch, Q queries, D query width, T target masks of all images, N points
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from src.structures import QueryPrediction


def mask_loss(logits: Tensor, masks: Tensor, weights: Tensor, num_masks: float) -> Tensor:
    """Weighted binary cross-entropy of T masks at N points, (T, N) each, over num_masks x N."""
    loss = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * weights
    return loss.mean(1).sum() / num_masks


def dice_loss(logits: Tensor, masks: Tensor, num_masks: float, trust: Tensor | None = None) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of T masks at N points, (T, N) each, over num_masks.

    With ``trust`` (T, N) every point counts as that share of a point in all three sums.
    """
    probability = logits.sigmoid()
    shared = probability * masks
    if trust is not None:
        shared, probability, masks = trust * shared, trust * probability, trust * masks
    overlap = 2 * shared.sum(1) + 1
    return (1 - overlap / (probability.sum(1) + masks.sum(1) + 1)).sum() / num_masks


def matched_logits(layer: QueryPrediction, queries: Sequence[Tensor]) -> Tensor:
    """(T, h, w) mask logits of the matched queries of all images: T of them are multiplied out, instead of B Q.

    One product for the whole batch, in the features' own layout (pixels, channels): its gradient is one map, while
    that of a product per image would be copied. It goes row by row, because libraries are slow at the gradient of
    a few queries when that is one sum over all pixels.
    """
    chosen = pad_sequence(
        [embeddings[picked] for embeddings, picked in zip(layer.mask_embeddings, queries, strict=True)],
        batch_first=True,
    )  # (B, most T, D), zeros where an image has fewer
    pixels = layer.mask_features.permute(0, 2, 3, 1)  # (B, h, w, D)
    logits = (pixels @ chosen.transpose(1, 2)[:, None]).permute(0, 3, 1, 2)
    return torch.cat([found[: len(picked)] for found, picked in zip(logits, queries, strict=True)])

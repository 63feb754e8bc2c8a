"""Edge loss: supervision of the predicted boundary (MaSS13K, section 4.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def edge_loss(edge_logits: Tensor, boundaries: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of edge logits, resized to the label map, against the boundary map.

    Deviation: the released training code compares its 0/1 boundary map with 255 and so trains towards ones
    everywhere; here the target is the boundary map, as the paper says.

    Args:
        edge_logits: (B, 1, h, w). boundaries: (B, H, W), 1 on boundaries and 0 elsewhere.
        weights: (B, H, W) factor of every pixel; None for 1.
    """
    with torch.autocast(edge_logits.device.type, enabled=False):
        logits = F.interpolate(
            edge_logits.float(), size=boundaries.shape[-2:], mode="bilinear", align_corners=False
        )
        return F.binary_cross_entropy_with_logits(logits[:, 0], boundaries.float(), weights)

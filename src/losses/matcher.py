"""Hungarian matching of queries and target masks (DETR; costs of Mask2Former)."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

log = logging.getLogger(__name__)

_LARGEST_COST = 1e6


class HungarianMatcher:
    """Assigns to every target mask the query with the least total cost.

    Costs: -softmax(class)[target], binary cross-entropy and dice of the masks at uniformly random points, all in
    float32 whatever the network's precision (with products in TF32 where PyTorch is told to use it). A cost that is
    not finite counts as very large, so that there is always an assignment, and the term is named in a warning;
    whether training can go on is for the loss to say.

    Args:
        class_cost, mask_cost, dice_cost: weights. num_points: N.
    """

    def __init__(
        self, class_cost: float = 2.0, mask_cost: float = 5.0, dice_cost: float = 5.0, num_points: int = 12544
    ) -> None:
        self.class_cost = class_cost
        self.mask_cost = mask_cost
        self.dice_cost = dice_cost
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Tensor,
        point_logits: Tensor,
        labels: Tensor,
        point_masks: Tensor,
        trust: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Match one image.

        Args:
            class_logits: (Q, K+1). point_logits: (Q, N) mask logits at N points.
            labels: (T,) class ids. point_masks: (T, N) target values at the same points, 0..1.
            trust: (T, N) share of each point in the mask and dice costs, 0..1; None for 1.

        Returns:
            Query indices and target indices, both (min(Q, T),) int64 on the logits' device.
        """
        costs = self.costs(class_logits.float(), point_logits.float(), labels, point_masks.float(), trust)
        terms = torch.stack(list(costs.values())).cpu()  # once, as a GPU is waited for
        total = torch.zeros(len(class_logits), len(labels))
        for name, cost in zip(costs, terms, strict=True):
            total += _finite(name, cost)
        rows, columns = linear_sum_assignment(total.numpy())
        device = class_logits.device
        return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)

    def costs(
        self,
        class_logits: Tensor,
        point_logits: Tensor,
        labels: Tensor,
        point_masks: Tensor,
        trust: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted (Q, T) cost of every term, float32."""
        with torch.autocast(class_logits.device.type, enabled=False):
            probability = point_logits.sigmoid()
            inside, outside = point_masks, 1 - point_masks
            points: int | Tensor = point_logits.shape[1]
            predicted = probability.sum(1)[:, None]
            if trust is not None:
                inside, outside, points = trust * inside, trust * outside, trust.sum(1).clamp(1)
                predicted = probability @ trust.T
            # cross-entropy against 1 where the target is 1 and against 0 elsewhere, as two products
            positive = F.softplus(-point_logits) @ inside.T
            negative = F.softplus(point_logits) @ outside.T
            overlap = 2 * probability @ inside.T + 1
            areas = predicted + inside.sum(1)[None] + 1
            return {
                "class": -self.class_cost * class_logits.softmax(-1)[:, labels],
                "mask": self.mask_cost * (positive + negative) / points,
                "dice": self.dice_cost * (1 - overlap / areas),
            }


def _finite(name: str, cost: Tensor) -> Tensor:
    bad = int((~cost.isfinite()).sum())
    if bad:
        log.warning(
            "matching: the %s cost has %d values that are not finite; they count as very large", name, bad
        )
    return cost.nan_to_num(_LARGEST_COST, _LARGEST_COST, _LARGEST_COST).clamp(max=_LARGEST_COST)

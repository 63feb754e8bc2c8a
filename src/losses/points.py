"""Where the mask losses look: point sampling (PointRend; Mask2Former) with boundary weights (MaSS13K, section 4.3).

T target masks, N points, H W mask size; point coordinates are (x, y) in 0..1 over the whole map
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import UserError

_NO_TRUST = 0.01  # points trusted less are not worth sampling


class SampledPoints(NamedTuple):
    """Points of T masks.

    Attributes:
        coordinates: (T, N, 2).
        weights: (T, N) factor of each point in the mask loss.
        trust: (T, N) factor of each point in the dice loss; None for 1.
    """

    coordinates: Tensor
    weights: Tensor
    trust: Tensor | None = None


def sample_points(maps: Tensor, coordinates: Tensor) -> Tensor:
    """Bilinear values of maps (T, C, H, W) at coordinates (T, N, 2); zero outside; returns (T, C, N)."""
    grid = 2 * coordinates[:, :, None] - 1  # (T, N, 1, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[..., 0]


def boundary_weight(masks: Tensor, kernel: int = 5) -> Tensor:
    """w = |average of the neighbourhood - mask| (MaSS13K, equation 7).

    Zero deep inside and far outside, largest on both sides of the boundary.

    Args:
        masks: (T, H, W) float 0/1. kernel: odd side of the averaging window; zeros beyond the border.

    Returns:
        (T, H, W) in [0, 1).
    """
    average = F.avg_pool2d(masks[:, None], kernel, stride=1, padding=kernel // 2)[:, 0]
    return (average - masks).abs()


class UncertaintyPoints:
    """Mask2Former's sampling: most points where the prediction is uncertain, the rest anywhere.

    Args:
        num_points: N. oversample: candidates per point. importance: share of points taken by uncertainty.
    """

    def __init__(self, num_points: int = 12544, oversample: float = 3.0, importance: float = 0.75) -> None:
        if num_points < 1 or oversample < 1 or not 0 <= importance <= 1:
            raise UserError(
                f"point sampling needs num_points >= 1, oversample >= 1 and importance in 0..1, got {num_points}, "
                f"{oversample} and {importance}"
            )
        self.num_points = num_points
        self.oversample = oversample
        self.importance = importance

    def weight_map(self, masks: Tensor) -> Tensor | None:
        """Importance of every pixel of (T, H, W) targets in [0, 1), or None when all are equal."""
        return None

    def weights(self, importance: Tensor) -> Tensor:
        """Factor of a point's mask loss, given its importance."""
        return torch.ones_like(importance)

    @torch.no_grad()
    def __call__(self, logits: Tensor, weight_map: Tensor | None) -> SampledPoints:
        """Choose points for matched masks.

        Args:
            logits: (T, h, w) mask logits. weight_map: ``weight_map`` of their targets, (T, H, W) of any size.
        """
        count, device = logits.shape[0], logits.device
        if weight_map is None:
            weight_map = logits.new_zeros(count, 1, 1)
        candidates = torch.rand(count, int(self.num_points * self.oversample), 2, device=device)
        certainty = sample_points(logits[:, None], candidates)[:, 0].abs()  # (T, candidates)
        certainty = certainty * (1 - sample_points(weight_map[:, None], candidates)[:, 0])
        chosen = int(self.num_points * self.importance)
        index = certainty.topk(chosen, dim=1, largest=False, sorted=False).indices
        picked = candidates.gather(1, index[..., None].expand(-1, -1, 2))
        anywhere = torch.rand(count, self.num_points - chosen, 2, device=device)
        coordinates = torch.cat((picked, anywhere), dim=1)
        return SampledPoints(coordinates, self.weights(sample_points(weight_map[:, None], coordinates)[:, 0]))


class BoundaryPoints(UncertaintyPoints):
    """MaSSFormer's sampling: uncertain points and points near the target's boundary come first, and weigh more.

    Candidates are ranked by -|logit| (1 - w), and a point's mask loss is multiplied by 1 + strength w, w being
    the ``boundary_weight`` of the target.

    Args:
        strength: lambda. kernel: window of the boundary weight, pixels of the label map.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample: float = 3.0,
        importance: float = 0.75,
        strength: float = 5.0,
        kernel: int = 5,
    ) -> None:
        super().__init__(num_points, oversample, importance)
        if strength < 0 or kernel < 1 or kernel % 2 == 0:
            raise UserError(
                f"boundary weights need strength >= 0 and an odd kernel, got strength={strength} and kernel={kernel}"
            )
        self.strength = strength
        self.kernel = kernel

    def weight_map(self, masks: Tensor) -> Tensor:
        """The boundary weight w of (T, H, W) float 0/1 targets."""
        return boundary_weight(masks, self.kernel)

    def weights(self, importance: Tensor) -> Tensor:
        """1 + strength w, in [1, 1 + strength)."""
        return 1 + self.strength * importance


class TrustedPoints(BoundaryPoints):
    """Boundary points of masks that cannot be believed everywhere: no point where the trust is zero.

    The importance of a point counts as before, and its factor in the mask loss is multiplied by its trust.
    """

    @torch.no_grad()
    def trusted(self, logits: Tensor, weight_map: Tensor, trust: Tensor) -> SampledPoints:
        """Choose points for matched masks.

        Where a mask has fewer trusted points than asked for, the rest are any points; their factors are zero.

        Args:
            logits: (T, h, w) mask logits. weight_map, trust: (T, H, W), importance and trust of their targets.
        """
        count, device = logits.shape[0], logits.device
        maps = torch.stack((weight_map, trust), dim=1)
        candidates = torch.rand(count, int(self.num_points * self.oversample), 2, device=device)
        importance, believed = sample_points(maps, candidates).unbind(1)  # (T, candidates)
        certainty = sample_points(logits[:, None], candidates)[:, 0].abs() * (1 - importance)
        chosen = int(self.num_points * self.importance)
        uncertain = _first(certainty, believed, candidates, chosen)
        others = torch.rand(count, int(self.num_points * self.oversample), 2, device=device)
        believed = sample_points(trust[:, None], others)[:, 0]
        # in the order in which they were drawn, so evenly over all that is trusted
        order = torch.arange(others.shape[1], device=device, dtype=believed.dtype).expand_as(believed)
        anywhere = _first(order, believed, others, self.num_points - chosen)
        coordinates = torch.cat((uncertain, anywhere), dim=1)
        importance, believed = sample_points(maps, coordinates).unbind(1)
        return SampledPoints(coordinates, believed * self.weights(importance), believed)


def _first(rank: Tensor, trust: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The ``count`` candidates (T, ., 2) of lowest rank, those without trust behind all others."""
    index = (
        rank.masked_fill(trust < _NO_TRUST, torch.inf).topk(count, dim=1, largest=False, sorted=False).indices
    )
    return candidates.gather(1, index[..., None].expand(-1, -1, 2))

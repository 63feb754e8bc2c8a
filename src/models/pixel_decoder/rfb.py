"""Receptive field boosting: parallel deformable convolutions (MaSS13K, section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.deformable import DeformableConv
from src.models.layers import upsample


class ReceptiveFieldBoosting(nn.Module):
    """RFB: deformable convolutions of sizes 1, 3, 5 and 7 side by side on the stride-8 map.

    Args:
        width: d; divisible by 4.
    """

    def __init__(self, width: int) -> None:
        if width % 4:
            raise UserError(f"ReceptiveFieldBoosting: width {width} has to be divisible by 4")
        super().__init__()
        self.branches = nn.ModuleList(DeformableConv(width, width // 4, k) for k in (1, 3, 5, 7))
        self.merge = nn.Conv2d(width, width, 1)
        self.merge_norm = nn.BatchNorm2d(width)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.refine_norm = nn.BatchNorm2d(width)

    def forward(self, d3_up: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d, H/8, W/8) twice -> D2 at stride 8 and its upsampling at stride 4."""
        x = d3_up + s2
        x = torch.cat([branch(x) for branch in self.branches], dim=1)
        d2 = F.relu(self.merge_norm(self.merge(x)))
        return d2, F.relu(self.refine_norm(self.refine(upsample(d2))))

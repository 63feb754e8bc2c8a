"""Low-level structure extraction: the high-resolution branch (MaSS13K, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.errors import UserError
from src.models.deformable import DeformableConv
from src.models.layers import ConvNormAct, resize


class SpatialAttention(nn.Module):
    """x + x * Conv7x7(sigmoid(cat(mean_c x, max_c x))).

    Nothing bounds the attention after the convolution, as in the released implementation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        statistics = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)
        return x * (1 + self.conv(statistics.sigmoid()))  # one pass over x instead of two


class LowLevelStructure(nn.Module):
    """LSE: joins the image itself with the shallowest features at half resolution.

    Args:
        width: d, even.
    """

    def __init__(self, width: int) -> None:
        if width % 2:
            raise UserError(f"LowLevelStructure: width {width} has to be even")
        super().__init__()
        half = width // 2
        self.plain = ConvNormAct(half + 3, half)
        self.plain_attention = SpatialAttention()
        self.deformable = DeformableConv(half + 3, half, 3)
        self.deformable_attention = SpatialAttention()
        self.merge = ConvNormAct(width, width)

    def forward(self, s1: Tensor, images: Tensor) -> Tensor:
        """(B, d, H/4, W/4) and normalised (B, 3, H, W) -> (B, d, ceil(H/2), ceil(W/2))."""
        size = (-(-images.shape[-2] // 2), -(-images.shape[-1] // 2))
        small = resize(images, size)
        first, second = (resize(half, size) for half in s1.chunk(2, dim=1))
        a = self.plain_attention(self.plain(torch.cat((small, first), dim=1)))
        b = self.deformable_attention(self.deformable(torch.cat((small, second), dim=1)))
        return self.merge(torch.cat((a, b), dim=1))

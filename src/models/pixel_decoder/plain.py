"""Plain stand-ins for the slots of the dual-branch decoder.

The released code has no switches, so what stands in a slot when its module is absent is this project's choice:
the plainest thing that keeps the slot's signature.
"""

from __future__ import annotations

from torch import Tensor, nn

from src.models.layers import ConvNormAct, crop_like, resize, upsample


class PlainContext(nn.Module):
    """Context without CST: one top-down step with 3x3 convolutions (as in a feature pyramid)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.coarse = ConvNormAct(width, width, 3)
        self.fine = ConvNormAct(width, width, 3)

    def forward(self, g4: Tensor, s4: Tensor, s3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``CrossSemanticTransmission.forward``; the global vector is added too, as every rung has it."""
        d4 = self.coarse(s4 + g4)
        d3 = self.fine(crop_like(upsample(d4), s3) + s3)
        return d4, d3, upsample(d3)


class PlainScale(nn.Module):
    """Scale without RFB: add and one 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(width, width, 3)

    def forward(self, d3_up: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """As ``ReceptiveFieldBoosting.forward``."""
        d2 = self.conv(d3_up + s2)
        return d2, upsample(d2)


class PlainDetail(nn.Module):
    """Detail without LSE: no high-resolution map, S1 as it is."""

    def forward(self, s1: Tensor, images: Tensor) -> Tensor:
        """S1 at stride 4, so the fusion stays there as well; every parameter of the decoder learns in every rung."""
        return s1


class PlainFusion(nn.Module):
    """Fusion without EGF: the sum, at the detail map's stride."""

    def forward(self, detail: Tensor, d2_up: Tensor) -> tuple[Tensor, None]:
        """As ``EdgeGuidedFusion.forward``, without edge logits."""
        return resize(d2_up, (detail.shape[-2], detail.shape[-1])) + detail, None

"""Edge-guided fusion of the global and the high-resolution branch (MaSS13K, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from src.errors import UserError
from src.models import pointwise
from src.models.deformable import DeformableConv
from src.models.layers import ConvNormAct, resize


class EdgeGuidedFusion(nn.Module):
    """EGF: the detail map gates the upsampled context; an edge head supervises their sum.

    As in the released implementation the predicted edge gates nothing; it only receives the edge loss.

    Args:
        width: d, even.
    """

    def __init__(self, width: int) -> None:
        if width % 2:
            raise UserError(f"EdgeGuidedFusion: width {width} has to be even")
        super().__init__()
        self.edge_reduce = ConvNormAct(width, 16)
        self.edge_head = nn.Conv2d(16, 1, 1)
        self.reduce = nn.Conv2d(width, width // 2, 1)
        self.deformable = DeformableConv(width // 2, width // 2, 3)
        self.expand = nn.Conv2d(width // 2, width, 1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, detail: Tensor, d2_up: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d, H/2, W/2) and (B, d, H/4, W/4) -> D1 (B, d, H/2, W/2) and edge logits (B, 1, H/2, W/2)."""
        context = resize(d2_up, (detail.shape[-2], detail.shape[-1]))
        edge_logits = self.edge_head(self.edge_reduce(context + detail))
        gated = self.deformable(self.reduce(detail.sigmoid() * context))
        return self._expanded(gated) + context, edge_logits

    def _expanded(self, gated: Tensor) -> Tensor:
        if pointwise.applies(gated, self.expand, self.norm):
            return pointwise.pointwise_norm(gated, self.expand, self.norm, relu=False)
        return self.norm(self.expand(gated))

"""MaSSFormer's dual-branch pixel decoder (MaSS13K, CVPR 2025, section 4.2 and figure 4).

B batch, C channels, H W image size, d decoder width, D query width; F1..F4 encoder maps at strides 4 to 32
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from src.models.layers import ConvNormAct, GlobalContext, PooledNorm, SqueezeExcite, crop_like
from src.structures import PixelFeatures


class DualBranchPixelDecoder(nn.Module):
    """Lateral projections, then four slots: context, scale, detail, fusion.

    Every rung of the ablation ladder is a choice of modules for the slots; each slot has a published module and
    a plain stand-in of the same signature:

    ==========  =======================================  ==============================================
    slot        modules                                  signature
    ==========  =======================================  ==============================================
    context     CrossSemanticTransmission, PlainContext  (g4, S4, S3) -> (D4, D3, D3 at stride 8)
    scale       ReceptiveFieldBoosting, PlainScale       (D3 at stride 8, S2) -> (D2, D2 at stride 4)
    detail      LowLevelStructure, PlainDetail           (S1, images) -> detail map at stride 2, or S1
    fusion      EdgeGuidedFusion, PlainFusion            (detail, D2 at stride 4) -> (D1, edge logits or None)
    ==========  =======================================  ==============================================

    Args:
        in_channels: channels of F1..F4.
        width: d, channels inside the decoder.
        query_width: D, channels of the outputs.
        pooled_norm: norm of the 1x1 maps (global context and squeeze-excite), see ``layers.pooled_norm``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        query_width: int,
        context: nn.Module,
        scale: nn.Module,
        detail: nn.Module,
        fusion: nn.Module,
        pooled_norm: PooledNorm = "batch",
    ) -> None:
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"the dual-branch decoder needs encoder maps at strides 4, 8, 16 and 32; got {len(in_channels)}"
            )
        self.laterals = nn.ModuleList(ConvNormAct(c, width) for c in in_channels)
        self.excitations = nn.ModuleList(SqueezeExcite(width, pooled_norm) for _ in in_channels)
        self.global_context = GlobalContext(in_channels[-1], width, pooled_norm)
        self.context = context
        self.scale = scale
        self.detail = detail
        self.fusion = fusion
        self.mask_output = ConvNormAct(width, query_width)
        self.memory_outputs = nn.ModuleList(ConvNormAct(width, query_width) for _ in range(3))

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> PixelFeatures:
        """Decode.

        Args:
            images: (B, 3, H, W), normalised.
            features: F1..F4, (B, C_i, ceil(H / stride), ceil(W / stride)).
        """
        s1, d2_up, memories = self.global_branch(*self.laterals_and_context(features))
        detail = self.detail(s1, images)
        d1, edge_logits = self.fusion(detail, d2_up)
        return PixelFeatures(self.mask_output(d1), memories, edge_logits)

    def laterals_and_context(
        self, features: Sequence[Tensor], finest: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """S1..S4, (B, d, ., .), and g4, (B, d, 1, 1); the encoder's maps are not needed after them.

        Args:
            features: F1..F4. finest: F1 after its lateral projection, where that is known; F1 is then not used. For
                inference: it is overwritten.
        """
        maps = []
        for excite, lateral, x in zip(self.excitations, self.laterals, features, strict=True):
            maps.append(excite(lateral(x)) if finest is None else excite(finest, overwrite=True))
            finest = None
        return maps, self.global_context(features[-1])

    def global_branch(self, maps: Sequence[Tensor], g4: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """All that happens at stride 4 and coarser, from S1..S4 and g4.

        Returns:
            S1 and the upsampled D2, (B, d, H/4, W/4), and the memories (B, D, ., .) at strides 32, 16 and 8.
        """
        s1, s2, s3, s4 = maps
        d4, d3, d3_up = self.context(g4, s4, s3)
        d2, d2_up = self.scale(crop_like(d3_up, s2), s2)
        memories = tuple(out(x) for out, x in zip(self.memory_outputs, (d4, d3, d2), strict=True))
        return s1, crop_like(d2_up, s1), memories

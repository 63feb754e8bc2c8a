"""Mask2Former's pixel decoder: multi-scale deformable attention and one step of a feature pyramid.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022; the attention is from
Zhu et al., "Deformable DETR", ICLR 2021. It is made of torch operators only, no compiled extension.

B batch, C channels, D query width, L levels (3), S tokens of all levels, M heads, P points per head and level,
E = D / M channels of a head
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models.layers import resize, single_precision
from src.models.pixel_decoder.multiscale_deformable_sampling import sample_levels
from src.models.position import sine_position
from src.structures import PixelFeatures

_LEVELS = 3
_GROUPS = 32  # of every GroupNorm


class DeformableAttention(nn.Module):
    """Every token looks at P points on each of L levels, whose places and weights it predicts itself.

    Args:
        width: D. num_heads: M. num_points: P.
    """

    def __init__(self, width: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"width {width} must be divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.num_points = num_points
        self.offsets = nn.Linear(width, num_heads * _LEVELS * num_points * 2)
        self.weights = nn.Linear(width, num_heads * _LEVELS * num_points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Points start on rays, one direction for each head, at 1 to P pixels; all weights start equal."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        rays = torch.stack((angles.cos(), angles.sin()), dim=-1)
        rays = rays / rays.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)[:, None]
        rays = (rays[:, None, None] * steps).expand(-1, _LEVELS, -1, -1)  # (M, L, P, 2)
        with torch.no_grad():
            self.offsets.bias.copy_(rays.flatten())
        for zero in (self.offsets.weight, *self.weights.parameters(), self.value.bias, self.output.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(
        self, tokens: Tensor, position: Tensor, centres: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend.

        Args:
            tokens: (B, S, D). position: (S, D) added to the queries.
            centres, sizes: as in ``sample_levels``.

        Returns:
            (B, S, D).
        """
        queries = tokens + position
        points = (self.num_heads, _LEVELS, self.num_points)
        weights = (
            self.weights(queries).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, points[1:])
        )
        with single_precision(tokens.device):  # half precision would round the pixel
            offsets = self.offsets(queries.to(self.offsets.weight.dtype)).unflatten(2, (*points, 2))
        values = self.value(tokens).unflatten(2, (self.num_heads, -1))
        return self.output(sample_levels(values, sizes, centres, offsets, weights))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with a residual and post-norm."""

    def __init__(self, width: int, feedforward: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, num_heads, num_points)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.reduce = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.reduce.weight)

    def forward(
        self, tokens: Tensor, position: Tensor, centres: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """As ``DeformableAttention.forward``."""
        tokens = self.attention_norm(tokens + self.attention(tokens, position, centres, sizes))
        return self.feedforward_norm(tokens + self.reduce(F.relu(self.expand(tokens))))


class MultiscaleDeformablePixelDecoder(nn.Module):
    """Deformable attention over strides 32, 16 and 8, then one feature pyramid step to stride 4.

    Args:
        in_channels: channels of F1..F4, the encoder maps at strides 4 to 32.
        query_width: D, channels inside and of the outputs; divisible by 32.
        num_layers: attention layers.
        expansion: hidden width of their feed-forward layers, in multiples of D.
        num_heads, num_points: M and P.
        feature_norm: LayerNorm on every encoder map. Published Mask2Former weights with a Swin encoder have it,
            since Swin's own stages end without a norm; those with a ResNet do not.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        query_width: int = 256,
        num_layers: int = 6,
        expansion: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        feature_norm: bool = False,
    ) -> None:
        super().__init__()
        if len(in_channels) != 4:
            raise ValueError(
                f"this decoder needs encoder maps at strides 4, 8, 16 and 32; got {len(in_channels)}"
            )
        if query_width % _GROUPS:
            raise UserError(
                f"query_width (model.size.query_width) must be a multiple of {_GROUPS}, not {query_width}"
            )
        self.feature_norms = nn.ModuleList(
            nn.LayerNorm(channels) if feature_norm else nn.Identity() for channels in in_channels
        )
        # coarsest first, as the memories
        convolutions = [nn.Conv2d(channels, query_width, 1) for channels in reversed(in_channels[1:])]
        for conv in convolutions:
            nn.init.xavier_uniform_(conv.weight)
        self.projections = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(_GROUPS, query_width)) for conv in convolutions
        )
        self.level_embedding = nn.Embedding(_LEVELS, query_width)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(query_width, expansion * query_width, num_heads, num_points)
            for _ in range(num_layers)
        )
        self.lateral = nn.Conv2d(in_channels[0], query_width, 1, bias=False)
        self.lateral_norm = nn.GroupNorm(_GROUPS, query_width)
        self.fine = nn.Conv2d(query_width, query_width, 3, padding=1, bias=False)
        self.fine_norm = nn.GroupNorm(_GROUPS, query_width)
        self.mask_output = nn.Conv2d(query_width, query_width, 1)
        for conv in (self.lateral, self.fine, self.mask_output):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        for conv in (*convolutions, self.mask_output):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor, features: Sequence[Tensor]) -> PixelFeatures:
        """Decode.

        Args:
            images: not used; the pixel decoders share one signature.
            features: F1..F4, (B, C_i, ceil(H / stride), ceil(W / stride)).

        Returns:
            Mask features at stride 4, memories at strides 32, 16 and 8, no edge logits.
        """
        finest, *others = (
            _norm_channels(norm, f) for norm, f in zip(self.feature_norms, features, strict=True)
        )
        maps = [project(f) for project, f in zip(self.projections, reversed(others), strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, S, D)
        position = self._position(sizes, tokens)
        centres = _centres(sizes, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, position, centres, sizes)
        memories = tuple(
            x.transpose(1, 2).unflatten(2, size)
            for x, size in zip(tokens.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        )
        lateral = self.lateral_norm(self.lateral(finest))
        fine = lateral + resize(memories[-1], (lateral.shape[-2], lateral.shape[-1]))
        return PixelFeatures(self.mask_output(F.relu(self.fine_norm(self.fine(fine)))), memories)

    def _position(self, sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
        """(S, D) sine code of every token plus the embedding of its level."""
        levels = [
            sine_position(height, width, like.shape[2], like.device).flatten(0, 1) + embedding
            for (height, width), embedding in zip(sizes, self.level_embedding.weight, strict=True)
        ]
        return torch.cat(levels).to(like.dtype)


def _norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm over the channels of a (B, C, h, w) map."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _centres(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """(S, L, 2) place (x, y) of every token on every level, in that level's pixels, 0 being a pixel's centre."""
    relative = [
        torch.stack(
            (
                ((torch.arange(width, device=device) + 0.5) / width).expand(height, width),
                ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(height, width),
            ),
            dim=-1,
        ).flatten(0, 1)
        for height, width in sizes
    ]
    scale = torch.tensor([(width, height) for height, width in sizes], device=device)
    return torch.cat(relative)[:, None] * scale - 0.5

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
from src.models.position import sine_position
from src.structures import PixelFeatures

STRIP_TOKENS = 4096
"""Tokens sampled at a time on the CPU: bounds the temporary memory, and larger strips leave the cache."""

_LEVELS = 3
_GROUPS = 32  # of every GroupNorm


def sample_levels(
    values: Tensor, sizes: Sequence[tuple[int, int]], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples of all levels; zero outside of a map.

    Computed in float32 or better and returned in the dtype of ``values``: positions in half precision would be
    off by pixels.

    Args:
        values: (B, S, M, E), the levels one after the other. sizes: (height, width) of every level.
        centres: (S, L, 2) position (x, y) of every token on every level, in pixels; 0 is a pixel's centre.
        offsets: (B, S, M, L, P, 2) displacements (x, y) in pixels of the level that is sampled.
        weights: (B, S, M, L, P).

    Returns:
        (B, S, M * E).
    """
    work = torch.promote_types(values.dtype, torch.float32)
    arguments = values.to(work), sizes, centres.to(work), offsets.to(work), weights.to(work)
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
    with single_precision(values.device):
        sample = _sample_bags if values.device.type == "cpu" and not exporting else _sample_grids
        return sample(*arguments).to(values.dtype)


def _sample_grids(
    values: Tensor, sizes: Sequence[tuple[int, int]], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """One ``grid_sample`` per level: the right choice on accelerators and for export."""
    batch, _, heads, _ = values.shape
    total = values.new_zeros(())
    levels = values.split([height * width for height, width in sizes], dim=1)
    for i, (level, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        maps = level.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))  # (B M, E, h, w)
        positions = (centres[:, None, i, None] + offsets[:, :, :, i]).transpose(1, 2).flatten(0, 1)
        grid = (2 * positions + 1) / positions.new_tensor((width, height)) - 1  # (B M, S, P, 2)
        samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        factors = weights[:, :, :, i].transpose(1, 2).flatten(0, 1)[:, None]  # (B M, 1, S, P)
        total = total + (samples * factors).sum(-1)
    return total.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def _sample_bags(
    values: Tensor, sizes: Sequence[tuple[int, int]], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """One ``embedding_bag`` for all levels, several times faster on a CPU.

    The values are a table with a row of E numbers for each token and head. A bag sums the 4 L P rows of one token
    and head, weighted by attention times bilinear weight, so single samples are never written to memory.
    """
    batch, tokens, heads, _ = values.shape
    starts = [sum(height * width for height, width in sizes[:i]) for i in range(len(sizes))]
    level_start = torch.tensor(starts, dtype=torch.int32)[:, None]  # (L, 1), against (s, M, L, P)
    level_width = torch.tensor([width for _, width in sizes], dtype=torch.int32)[:, None]
    level_height = torch.tensor([height for height, _ in sizes], dtype=torch.int32)[:, None]
    head = torch.arange(heads, dtype=torch.int32)[:, None, None]
    out = []
    for item in range(batch):
        table = values[item].reshape(tokens * heads, -1)
        for start in range(0, tokens, STRIP_TOKENS):
            strip = slice(start, start + STRIP_TOKENS)
            x, y = (centres[strip, None, :, None] + offsets[item, strip]).unbind(-1)  # (s, M, L, P)
            (left, left_weight), (right, right_weight) = _neighbours(x, level_width)
            (top, top_weight), (bottom, bottom_weight) = _neighbours(y, level_height)
            top, bottom = (row * level_width + level_start for row in (top, bottom))
            left, right = (column * heads + head for column in (left, right))
            rows = torch.stack(
                [row * heads + column for row in (top, bottom) for column in (left, right)], -1
            )
            top_weight, bottom_weight = (w * weights[item, strip] for w in (top_weight, bottom_weight))
            factors = torch.stack(
                [w * v for w in (top_weight, bottom_weight) for v in (left_weight, right_weight)], -1
            )
            bags = F.embedding_bag(
                rows.flatten(2).flatten(0, 1),  # (s M, 4 L P)
                table,
                mode="sum",
                per_sample_weights=factors.flatten(2).flatten(0, 1),
            )
            out.append(bags.view(-1, heads * bags.shape[-1]))
    return torch.cat(out).view(batch, tokens, -1)


def _neighbours(position: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The two pixels beside each position on a line of ``size`` pixels, int32, and their weights, 0 outside."""
    # far outside nothing is sampled, and what follows needs small integers
    position = torch.minimum(position.clamp(min=-1), size.to(position.dtype))
    low = position.detach().floor()
    fraction = position - low
    pixel = low.int()
    neighbours = []
    for index, weight in ((pixel, 1 - fraction), (pixel + 1, fraction)):
        inside = torch.minimum(index.clamp(min=0), size - 1)
        neighbours.append((inside, weight * (index == inside)))
    return neighbours


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

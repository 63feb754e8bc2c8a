"""Sampling of multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021), of torch operators only.

B batch, L levels, S tokens of all levels, M heads, P points per head and level, E channels of a head
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.layers import single_precision

STRIP_TOKENS = 4096
"""Tokens sampled at a time on the CPU: bounds the temporary memory, and larger strips leave the cache."""


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

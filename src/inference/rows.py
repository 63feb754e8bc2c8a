"""Bilinear resizing, a band of rows at a time.

    h w  size of the source map   H W  size of the result   n  rows of a band

A whole map at full resolution may not fit into memory, so results are made in bands of rows. A band holds exactly
what ``torch.nn.functional.interpolate`` (bilinear, no corner alignment) would put there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SourceRows(NamedTuple):
    """The rows of a source map between which the rows of a band lie.

    Attributes:
        start, stop: the range of source rows that the band needs.
        lower, upper: (n,) int64 indices into that range.
        weight: (n,) float32 share of ``upper``, in [0, 1).
    """

    start: int
    stop: int
    lower: Tensor
    upper: Tensor
    weight: Tensor


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Cut 0..height into ranges of ``rows``, the last one shorter."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def source_rows(
    start: int, stop: int, height: int, source_height: int, device: torch.device | str = "cpu"
) -> SourceRows:
    """Which source rows make the rows start..stop of a map resized from ``source_height`` to ``height`` rows."""
    # float32 on purpose: these are the positions that interpolate computes
    scale = torch.tensor(source_height / height, dtype=torch.float32)
    position = (scale * (torch.arange(start, stop, dtype=torch.float32) + 0.5) - 0.5).clamp_(min=0)
    lower = position.long().clamp_(max=source_height - 1)
    upper = (lower + 1).clamp_(max=source_height - 1)
    weight = (position - lower).clamp_(0, 1)
    first, last = int(lower[0]), int(upper[-1])
    return SourceRows(
        first, last + 1, (lower - first).to(device), (upper - first).to(device), weight.to(device)
    )


def resize_band(source: Tensor, rows: SourceRows, width: int) -> Tensor:
    """One band of a resized map.

    Args:
        source: (B, C, rows.stop - rows.start, w), the source rows of the band.
        rows: from ``source_rows``. width: W.

    Returns:
        (B, C, n, W) in the memory format and dtype of ``source``.
    """
    weight = rows.weight.to(source.dtype)[:, None]
    band = torch.lerp(source[:, :, rows.lower], source[:, :, rows.upper], weight)
    if source.shape[-1] == width:
        return band
    return F.interpolate(band, size=(band.shape[2], width), mode="bilinear", align_corners=False)

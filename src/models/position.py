"""Two-dimensional sine position code (DETR, with normalised coordinates)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(
    height: int, width: int, channels: int, device: torch.device | str = "cpu", temperature: float = 10000.0
) -> Tensor:
    """Sine code of every position of a height x width map.

    Rows and columns are counted from 1 and scaled to (0, 2 pi]; the first half of the channels encodes the
    row, the second the column, sine and cosine interleaved.

    Returns:
        (height, width, channels) float32.

    Raises:
        ValueError: channels not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"a 2-D sine code needs channels divisible by 4, not {channels}")
    half = channels // 2
    exponent = 2 * (torch.arange(half, device=device) // 2) / half
    divisor = temperature**exponent

    def encode(count: int) -> Tensor:
        coordinate = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        angle = (coordinate / (count + 1e-6) * 2 * math.pi)[:, None] / divisor  # (count, half)
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1)

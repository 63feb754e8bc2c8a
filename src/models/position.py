"""Two-dimensional sine position code (DETR, with normalised coordinates)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_TEMPERATURE = 10_000.0


class SineAxes(NamedTuple):
    """The sine code of a map, by rows and columns: it is the one beside the other.

    Attributes:
        rows: (height, channels / 2). columns: (width, channels / 2).
    """

    rows: Tensor
    columns: Tensor

    def map(self) -> Tensor:
        """The code of every position, (height, width, channels)."""
        size = (len(self.rows), len(self.columns), -1)
        return torch.cat((self.rows[:, None].expand(size), self.columns[None].expand(size)), dim=-1)


def sine_axes(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> SineAxes:
    """Sine code of every position of a height x width map.

    Rows and columns are counted from 1 and scaled to (0, 2 pi]; the first half of the channels encodes the
    row, the second the column, sine and cosine interleaved.

    Raises:
        ValueError: channels not divisible by 4.
    """
    if channels % 4:
        raise ValueError(f"a 2-D sine code needs channels divisible by 4, not {channels}")
    half = channels // 2
    exponent = 2 * (torch.arange(half, device=device) // 2) / half
    divisor = _TEMPERATURE**exponent

    def encode(count: int) -> Tensor:
        coordinate = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        angle = (coordinate / (count + 1e-6) * 2 * math.pi)[:, None] / divisor  # (count, half)
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    return SineAxes(encode(height), encode(width))


def sine_position(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """``sine_axes`` as a map (height, width, channels) float32."""
    return sine_axes(height, width, channels, device).map()

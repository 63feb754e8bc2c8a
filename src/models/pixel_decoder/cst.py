"""Cross-semantic transmission: the global branch (MaSS13K, section 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.deformable import DeformableUp
from src.models.layers import MultiheadAttention, crop_like
from src.models.position import sine_position


class WindowAttention(nn.Module):
    """Attention and feed-forward, each with a residual and no LayerNorm.

    Args:
        width: token width d.
        feedforward: hidden width.
    """

    def __init__(self, width: int, feedforward: int, num_heads: int = 8) -> None:
        super().__init__()
        self.attention = MultiheadAttention(width, num_heads)
        self.expand = nn.Linear(width, feedforward)
        self.reduce = nn.Linear(feedforward, width)

    def forward(self, query: Tensor, key: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """(B', N, d) queries and keys (which are the values too), position (N, d), mask (B', 1, 1, N) or None."""
        query = query + self.attention(query + position, key + position, key, mask)
        return query + self.reduce(F.relu(self.expand(query)))


class CrossSemanticTransmission(nn.Module):
    """CST: transmits the semantics of stride 32 to stride 16 by attention within windows.

    Deviation: the release works only for maps that are multiples of the window; here the last windows are
    padded, their padded keys masked and the result cropped. Multiples give the released result.

    Args:
        width: d.
        feedforward: hidden width of the feed-forward layers.
        window: side of a window, in positions of the stride-16 map.
    """

    def __init__(self, width: int, feedforward: int = 1024, window: int = 16, num_heads: int = 8) -> None:
        super().__init__()
        self.window = window
        self.coarse = DeformableUp(width)
        self.cross_block = WindowAttention(width, feedforward, num_heads)
        self.self_block = WindowAttention(width, feedforward, num_heads)
        self.fine = DeformableUp(width)

    def forward(self, g4: Tensor, s4: Tensor, s3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the global branch.

        Args:
            g4: (B, d, 1, 1). s4: (B, d, H/32, W/32). s3: (B, d, H/16, W/16).

        Returns:
            D4 at stride 32, D3 at stride 16, D3 upsampled to stride 8.
        """
        d4, up = self.coarse(s4 + g4)
        tokens = self._to_windows(crop_like(up, s3))
        keys = self._to_windows(s3)
        position = (
            sine_position(self.window, self.window, s3.shape[1], s3.device).flatten(0, 1).to(tokens.dtype)
        )
        mask = self._valid_keys(s3)
        tokens = self.cross_block(tokens, keys, position, mask)
        tokens = self.self_block(tokens, tokens, position, mask)
        d3, d3_up = self.fine(self._to_map(tokens, s3))
        return d4, d3, d3_up

    def _grid(self, like: Tensor) -> tuple[int, int]:
        return -(-like.shape[-2] // self.window), -(-like.shape[-1] // self.window)

    def _pad(self, x: Tensor) -> Tensor:
        rows, columns = self._grid(x)
        return F.pad(x, (0, columns * self.window - x.shape[-1], 0, rows * self.window - x.shape[-2]))

    def _to_windows(self, x: Tensor) -> Tensor:
        """(B, d, h, w) -> (B * windows, window * window, d)."""
        side = self.window
        x = (
            self._pad(x).unflatten(3, (-1, side)).unflatten(2, (-1, side))
        )  # (B, d, rows, side, columns, side)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)

    def _to_map(self, tokens: Tensor, like: Tensor) -> Tensor:
        """(B * windows, window * window, d) -> (B, d, h, w)."""
        rows, columns = self._grid(like)
        x = tokens.unflatten(1, (self.window, self.window)).unflatten(0, (-1, rows, columns))
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, d, rows * side, columns * side)
        return crop_like(x, like)

    def _valid_keys(self, like: Tensor) -> Tensor | None:
        """(B * windows, 1, 1, window * window) bool, or None when no window is padded."""
        if like.shape[-2] % self.window == 0 and like.shape[-1] % self.window == 0:
            return None
        valid = torch.ones(like.shape[0], 1, *like.shape[-2:], device=like.device, dtype=torch.uint8)
        return self._to_windows(valid).bool()[:, None, None, :, 0]

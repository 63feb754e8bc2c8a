"""Bilinear samples of a map as weighted sums of table rows, the core of the "gather" deformable convolution.

A map is a table with a row of C numbers for each pixel, so that ``embedding_bag`` samples every tap of many output
positions at once. The gradients are of the same kind: products of rows, and a sum of bags once the samples are
sorted by row.

C channels, H W map size, k kernel size, T = k k taps, p positions of a strip
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_BORDER = 2
"""Zero rows and columns around the sampled map. Positions are clamped to [-2, H] x [-2, W]: at the limits all
four corners lie in the border, so neither values nor gradients need a test for being inside."""


class Samples(NamedTuple):
    """Bilinear samples of p positions: four rows of the table for each position and tap.

    Attributes:
        rows: (p, T, 4) int32 or int64 rows of the table: corners (y0, x0), (y0, x1), (y1, x0), (y1, x1).
        factors: (p, T, 4) modulation times bilinear weight.
        dy, dx: (p, T) distance from the corner (y0, x0), in [0, 1).
        mask: (p, T) modulation.
    """

    rows: Tensor
    factors: Tensor
    dy: Tensor
    dx: Tensor
    mask: Tensor

    def strip(self, start: int, stop: int) -> Samples:
        return Samples(*(field[start:stop] for field in self))


class Order(NamedTuple):
    """The samples of a strip, sorted.

    Attributes:
        first: (p T,) rows of the table of their corners (y0, x0), ascending.
        places: (p T,) int64, where they stand in the strip.
    """

    first: Tensor
    places: Tensor


class Sampler:
    """Samples of one deformable convolution, and the table of the map that they read."""

    def __init__(
        self,
        x: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        channels, self.height, self.width = x.shape[1:]
        self.taps, self.positions = mask.shape[1], mask.shape[2] * mask.shape[3]
        # Rows of whole 16 bytes: unaligned ones cost up to three times as much in the backward pass.
        self.channels = -(-channels // 4) * 4
        self.pitch = self.width + 2 * _BORDER
        bordered = (self.height + 2 * _BORDER, self.pitch, self.channels)
        table = x.new_empty(bordered)
        for border in (table[:_BORDER], table[-_BORDER:], table[:, :_BORDER], table[:, -_BORDER:]):
            border.zero_()
        table[..., channels:] = 0
        self.table = table.view(-1, self.channels)
        self.row_dtype = torch.int32 if len(self.table) < 2**31 else torch.int64
        self.corners = (0, 1, self.pitch, self.pitch + 1)

        self._offset, self._mask = offset.flatten(2), mask.flatten(2)
        self._out_width, self._stride, self._padding = mask.shape[3], stride, padding
        tap = torch.arange(self.taps, device=x.device)
        self._tap_y = (tap // weight.shape[3] * dilation[0]).to(x.dtype)
        self._tap_x = (tap % weight.shape[3] * dilation[1]).to(x.dtype)

    def bytes_each(self) -> tuple[int, int]:
        """Temporary bytes for each position: of its columns, and of its samples (rows, factors, ...)."""
        return self.taps * self.channels * self.table.element_size(), self.taps * 64

    def inside(self, table: Tensor, channels: int) -> Tensor:
        """The part (H, W, C) of a table that lies inside the border."""
        bordered = table.view(-1, self.pitch, self.channels)
        return bordered[_BORDER:-_BORDER, _BORDER:-_BORDER, :channels]

    def load(self, image: Tensor) -> None:
        """Fill the table with a map (C, H, W)."""
        self.inside(self.table, len(image)).copy_(image.permute(1, 2, 0))

    def kernel(self, weight: Tensor) -> Tensor:
        """The weight as (T C, O), in the order of the columns."""
        padded = F.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, self.channels - weight.shape[1]))
        return padded.reshape(self.taps * self.channels, -1)

    def samples(self, item: int, start: int, stop: int) -> Samples:
        """Samples of output positions start..stop of one batch item."""
        position = torch.arange(start, stop, device=self.table.device)
        out_y = (position // self._out_width * self._stride[0] - self._padding[0]).to(self.table.dtype)
        out_x = (position % self._out_width * self._stride[1] - self._padding[1]).to(self.table.dtype)
        offset = self._offset[item, :, start:stop].t()  # (p, 2T)
        mask = self._mask[item, :, start:stop].t().contiguous()
        y = (out_y[:, None] + self._tap_y).add_(offset[:, 0::2]).clamp_(-_BORDER, self.height)
        x = (out_x[:, None] + self._tap_x).add_(offset[:, 1::2]).clamp_(-_BORDER, self.width)
        y0, x0 = y.floor(), x.floor()
        dy, dx = y.sub_(y0), x.sub_(x0)

        # A NaN has no integer value: it reads the border, and its NaN factors spoil the sample.
        first = y0.nan_to_num_(-_BORDER).to(self.row_dtype).mul_(self.pitch)
        first += x0.nan_to_num_(-_BORDER).to(self.row_dtype)
        rows = first.new_empty((*first.shape, 4))
        for corner, step in enumerate(self.corners):
            torch.add(first, step + _BORDER * (self.pitch + 1), out=rows[..., corner])

        factors = dy.new_empty((*dy.shape, 4))
        lower = mask * dy
        upper = mask - lower
        for corner, row in ((0, upper), (2, lower)):
            torch.mul(row, dx, out=factors[..., corner + 1])
            torch.sub(row, factors[..., corner + 1], out=factors[..., corner])
        return Samples(rows, factors, dy, dx, mask)

    def columns(self, samples: Samples) -> Tensor:
        """(p, T C) sampled values."""
        rows = samples.rows.flatten()
        bags = torch.arange(0, len(rows), 4, dtype=rows.dtype, device=rows.device)
        factors = samples.factors.flatten()
        values = F.embedding_bag(rows, self.table, bags, mode="sum", per_sample_weights=factors)
        return values.view(len(samples.mask), -1)

    def products(self, grad_columns: Tensor, samples: Samples) -> Tensor:
        """(p, T, 4) products of each sample's gradient (p T, C) with its four rows of the table."""
        rows = samples.rows.flatten()
        entries = torch.arange(len(rows), dtype=rows.dtype, device=rows.device)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_columns, self.table, rows, entries[::4].contiguous(), entries >> 2, 0
        ).view(samples.rows.shape)

    def sort(self, samples: Samples, step: int) -> list[Order]:
        """The samples of every strip of ``step`` positions by the row of their first corner.

        All strips are sorted in one go, by strip and then by row: from 32,768 keys on PyTorch sorts whole numbers by
        their digits, four times as fast.
        """
        first = samples.rows[..., 0]
        rows, each = len(self.table), step * self.taps
        strip = torch.arange(len(first), device=first.device) // step
        narrow = (len(first) // step + 1) * rows < 2**31
        keys = strip.mul_(rows).to(torch.int32 if narrow else torch.int64)[:, None] + first
        keys, order = keys.flatten().sort()
        return [
            Order(found.sub_(number * rows), places.sub_(number * each))
            for number, (found, places) in enumerate(zip(keys.split(each), order.split(each), strict=True))
        ]

    def scatter(self, grad_columns: Tensor, samples: Samples, order: Order, grad_table: Tensor) -> None:
        """Add the gradient (p T, C) of every sample to its four rows of ``grad_table``.

        Sorted by row the scatter is again a sum of bags, and no row is written twice: one sum for each corner, since
        the four rows of a sample lie at fixed distances and so are sorted together.
        """
        first, places = order
        targets, counts = torch.unique_consecutive(first, return_counts=True)
        factors = samples.factors.flatten(0, 1).index_select(0, places)  # (p T, 4)
        bags, targets = counts.cumsum(0) - counts, targets.long()
        for corner, step in enumerate(self.corners):
            weights = factors[:, corner].contiguous()
            sums = F.embedding_bag(places, grad_columns, bags, mode="sum", per_sample_weights=weights)
            rows = targets + step
            grad_table.index_copy_(0, rows, sums.add_(grad_table.index_select(0, rows)))


def position_gradients(products: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """(p, T) gradients of dy, dx and mask."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(-1)
    top = torch.lerp(top_left, top_right, samples.dx)
    bottom = torch.lerp(bottom_left, bottom_right, samples.dx)
    left = torch.lerp(top_left, bottom_left, samples.dy)
    right = torch.lerp(top_right, bottom_right, samples.dy)
    return (bottom - top) * samples.mask, (right - left) * samples.mask, torch.lerp(top, bottom, samples.dy)

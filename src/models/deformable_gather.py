"""Modulated deformable convolution on a CPU as embedding bags and matrix products: the "gather" backend.

A bilinear sample is a weighted sum of four rows of the (H W) x C table of the map, so one ``embedding_bag``
samples every tap of a strip of output positions, and one matrix product applies the weights. Its gradients
are of the same kind: products of rows, and a sum of bags once the samples are sorted by row. Strips stay in
the processor's cache, which is both the reason for the speed and the bound of the memory.

The operators are registered with torch.library, so that ``torch.compile`` keeps them in one graph. They are
deterministic, and can be differentiated once.

Shape letters: B batch, C channels, O output channels, H W map size, h w output size, k kernel size,
T = k k taps, P = h w output positions, p positions of a strip, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRIP_BYTES = 8 * 2**20
"""Size of the sampled values of one strip. All temporaries of a strip together take a small multiple of it;
besides them there is one channels-last copy of one map (two in the backward pass)."""

_BORDER = 2
"""Zero rows and columns around the sampled map. Positions are clamped to [-2, H] x [-2, W]: at the limits all
four corners lie in the border, so neither values nor gradients need a test for being inside."""


def gather_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Modulated deformable convolution without bias; see ``deform_conv2d`` in ``deformable.py``.

    Args:
        x: (B, C, H, W), of any memory format; float32 or float64, as all others.
        offset: (B, 2 T, h, w) interleaved (dy, dx).
        weight: (O, C, k, k).
        mask: (B, T, h, w).
        stride, padding, dilation: vertical, horizontal.

    Returns:
        (B, O, h, w), channels last in memory.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_shapes(x, offset, weight, mask, stride, padding, dilation)
    with torch.autocast(x.device.type, enabled=False):  # also reaches the products inside the operator
        return torch.ops.massformer.deform_conv2d(
            x, offset, weight, mask, stride, padding, dilation, STRIP_BYTES
        )


def _check_shapes(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"deform_conv2d: x must be (B, C, H, W) and weight (O, C, k, k) with the same C, "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    batch, taps = x.shape[0], weight.shape[2] * weight.shape[3]
    size = _output_size(x, weight, stride, padding, dilation)
    if offset.shape != (batch, 2 * taps, *size) or mask.shape != (batch, taps, *size):
        raise ValueError(
            f"deform_conv2d: for x {tuple(x.shape)} and weight {tuple(weight.shape)} offset must be "
            f"{(batch, 2 * taps, *size)} and mask {(batch, taps, *size)}, "
            f"got {tuple(offset.shape)} and {tuple(mask.shape)}"
        )


def _output_size(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    def along(i: int) -> int:
        span = dilation[i] * (weight.shape[2 + i] - 1) + 1
        return (x.shape[2 + i] + 2 * padding[i] - span) // stride[i] + 1

    return along(0), along(1)


class _Samples(NamedTuple):
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

    def strip(self, start: int, stop: int) -> _Samples:
        return _Samples(*(field[start:stop] for field in self))


class _Sampler:
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
        self.table = x.new_zeros(bordered).view(-1, self.channels)
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

    def samples(self, item: int, start: int, stop: int) -> _Samples:
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
        return _Samples(rows, factors, dy, dx, mask)

    def columns(self, samples: _Samples) -> Tensor:
        """(p, T C) sampled values."""
        rows = samples.rows.flatten()
        bags = torch.arange(0, len(rows), 4, dtype=rows.dtype, device=rows.device)
        factors = samples.factors.flatten()
        values = F.embedding_bag(rows, self.table, bags, mode="sum", per_sample_weights=factors)
        return values.view(len(samples.mask), -1)

    def products(self, grad_columns: Tensor, samples: _Samples) -> Tensor:
        """(p, T, 4) products of each sample's gradient (p T, C) with its four rows of the table."""
        rows = samples.rows.flatten()
        entries = torch.arange(len(rows), dtype=rows.dtype, device=rows.device)
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad_columns, self.table, rows, entries[::4].contiguous(), entries >> 2, 0
        ).view(samples.rows.shape)

    def scatter(self, grad_columns: Tensor, samples: _Samples, grad_table: Tensor) -> None:
        """Add the gradient (p T, C) of every sample to its four rows of ``grad_table``.

        Sorted by row the scatter is again a sum of bags, and no row is written twice.
        """
        rows, order = samples.rows.flatten().sort()
        targets, counts = torch.unique_consecutive(rows, return_counts=True)
        factors = samples.factors.flatten().index_select(0, order)
        sums = F.embedding_bag(
            order >> 2, grad_columns, counts.cumsum(0) - counts, mode="sum", per_sample_weights=factors
        )
        targets = targets.long()
        grad_table.index_copy_(0, targets, sums.add_(grad_table.index_select(0, targets)))


def _position_gradients(products: Tensor, samples: _Samples) -> tuple[Tensor, Tensor, Tensor]:
    """(p, T) gradients of dy, dx and mask."""
    top_left, top_right, bottom_left, bottom_right = products.unbind(-1)
    top = torch.lerp(top_left, top_right, samples.dx)
    bottom = torch.lerp(bottom_left, bottom_right, samples.dx)
    left = torch.lerp(top_left, bottom_left, samples.dy)
    right = torch.lerp(top_right, bottom_right, samples.dy)
    return (bottom - top) * samples.mask, (right - left) * samples.mask, torch.lerp(top, bottom, samples.dy)


def _cut(positions: int, bytes_each: int, budget: int) -> Iterator[tuple[int, int]]:
    """Cut 0..positions into parts whose temporaries take about ``budget`` bytes."""
    step = max(1, budget // bytes_each)
    for start in range(0, positions, step):
        yield start, min(start + step, positions)


@torch.library.custom_op("massformer::deform_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    strip_bytes: int,
) -> Tensor:
    sampler = _Sampler(x, offset, weight, mask, stride, padding, dilation)
    kernel = sampler.kernel(weight)
    out = x.new_empty((len(x), sampler.positions, len(weight)))
    column_bytes, sample_bytes = sampler.bytes_each()
    for item, image in enumerate(x):
        sampler.load(image)
        for start, stop in _cut(sampler.positions, sample_bytes, strip_bytes):
            samples = sampler.samples(item, start, stop)
            for a, b in _cut(stop - start, column_bytes, strip_bytes):
                torch.mm(sampler.columns(samples.strip(a, b)), kernel, out=out[item, start + a : start + b])
    return out.view(len(x), *mask.shape[2:], len(weight)).permute(0, 3, 1, 2)


@_forward.register_fake
def _(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, *_: Any) -> Tensor:
    return x.new_empty((len(x), *mask.shape[2:], len(weight))).permute(0, 3, 1, 2)


@torch.library.custom_op("massformer::deform_conv2d_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    strip_bytes: int,
    need_x: bool,
    need_offset: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, offset, weight and mask; those not needed are empty. Offset and mask go together."""
    sampler = _Sampler(x, offset, weight, mask, stride, padding, dilation)
    (batch, channels), taps, positions = x.shape[:2], sampler.taps, sampler.positions
    kernel = sampler.kernel(weight)
    grad_rows = grad.permute(0, 2, 3, 1).reshape(batch, positions, len(weight))
    grad_kernel = torch.zeros_like(kernel)
    grad_table = torch.zeros_like(sampler.table) if need_x else sampler.table
    grad_x = torch.empty_like(x) if need_x else x.new_empty(0)
    grad_offset = x.new_empty((batch, positions, 2 * taps) if need_offset else 0)
    grad_mask = x.new_empty((batch, positions, taps) if need_offset else 0)

    column_bytes, sample_bytes = sampler.bytes_each()
    for item, image in enumerate(x):
        sampler.load(image)
        for start, stop in _cut(positions, sample_bytes, strip_bytes):
            samples = sampler.samples(item, start, stop)
            products = []
            for a, b in _cut(stop - start, column_bytes, strip_bytes):
                strip, rows = samples.strip(a, b), grad_rows[item, start + a : start + b]
                if need_weight:
                    grad_kernel.addmm_(sampler.columns(strip).t(), rows)
                if need_x or need_offset:
                    grad_columns = (rows @ kernel.t()).view(-1, sampler.channels)  # (p T, C)
                if need_offset:
                    products.append(sampler.products(grad_columns, strip))
                if need_x:
                    sampler.scatter(grad_columns, strip, grad_table)
            if need_offset:
                dy, dx, dmask = _position_gradients(torch.cat(products), samples)
                grad_offset[item, start:stop, 0::2] = dy
                grad_offset[item, start:stop, 1::2] = dx
                grad_mask[item, start:stop] = dmask
        if need_x:
            grad_x[item] = sampler.inside(grad_table, channels).permute(2, 0, 1)
            grad_table.zero_()

    def as_map(rows: Tensor) -> Tensor:
        return rows.unflatten(1, mask.shape[2:]).permute(0, 3, 1, 2) if need_offset else rows

    grad_weight = grad_kernel.view(*weight.shape[2:], sampler.channels, len(weight))[:, :, :channels].permute(
        3, 2, 0, 1
    )
    return (
        grad_x,
        as_map(grad_offset),
        grad_weight.contiguous() if need_weight else x.new_empty(0),
        as_map(grad_mask),
    )


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    strip_bytes: int,
    need_x: bool,
    need_offset: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def as_map(channels: int) -> Tensor:
        if not need_offset:
            return x.new_empty(0)
        return x.new_empty((len(x), *mask.shape[2:], channels)).permute(0, 3, 1, 2)

    return (
        torch.empty_like(x) if need_x else x.new_empty(0),
        as_map(offset.shape[1]),
        weight.new_empty(weight.shape if need_weight else 0),
        as_map(mask.shape[1]),
    )


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    need_x, need_offset, need_weight, need_mask = ctx.needs_input_grad[:4]
    with torch.autocast(grad.device.type, enabled=False):
        grads = torch.ops.massformer.deform_conv2d_backward(
            grad, *ctx.saved_tensors, *ctx.options, need_x, need_offset or need_mask, need_weight
        )
    wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad[:4], strict=True))
    return *wanted, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)

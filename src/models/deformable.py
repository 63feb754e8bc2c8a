"""Modulated deformable convolution (DCNv2) that is fast and bounded in memory on the CPU.

Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019; used by every branch of the
pixel decoder of "MaSS13K: A Matting-level Semantic Segmentation Benchmark", CVPR 2025, section 4.

There are two backends of equal results:

* ``torchvision``: ``torchvision.ops.deform_conv2d``. The right choice on CUDA and for export (it maps to the
  ONNX operator DeformConv), slow on a CPU, and its temporary memory grows with the map.
* ``gather``: made of torch operators. A bilinear sample is a weighted sum of four rows of the (H W) x C table
  of the map, so one ``embedding_bag`` samples every tap of a strip of output positions, and one matrix
  product applies the weights. Strips are small enough to stay in the processor's cache, which is both the
  reason for the speed and the bound of the memory.

Shape letters: B batch, C input channels, O output channels, H W input size, h w output size, k kernel size,
T = k k taps, P = h w output positions, p positions of one strip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

Backend = Literal["auto", "gather", "torchvision"]

STRIP_BYTES = 8 * 2**20
"""Temporary memory of one strip of the gather backend, in bytes. Larger strips leave the cache."""

_BORDER = 2
"""Zero rows and columns around the sampled map. Positions are clamped to [-2, H] x [-2, W], where all four
corners lie in the border, so neither values nor gradients need a test for being inside."""

_preferred_backend: ContextVar[Backend] = ContextVar("deformable_backend", default="auto")


@contextmanager
def deformable_backend(backend: Backend) -> Iterator[None]:
    """Use ``backend`` for all deformable convolutions inside the block that ask for "auto".

    The choice is local to the thread or asyncio task. Compiled graphs keep the choice of their first call.
    """
    token = _preferred_backend.set(_checked(backend))
    try:
        yield
    finally:
        _preferred_backend.reset(token)


def _checked(backend: Backend) -> Backend:
    if backend not in get_args(Backend):
        raise ValueError(f"unknown deformable backend {backend!r}: choose one of {get_args(Backend)}")
    return backend


def _resolve(backend: Backend, x: Tensor) -> Backend:
    """The backend that runs: the argument, else the surrounding block, else the best one for ``x``."""
    if _checked(backend) == "auto":
        backend = _preferred_backend.get()
    if backend != "auto":
        return backend
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
    return "gather" if x.device.type == "cpu" and not exporting else "torchvision"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Modulated deformable convolution with the semantics of ``torchvision.ops.deform_conv2d``.

    Taps outside the map sample zero; taps partly outside take the corners that are inside. Groups and offset
    groups are 1. Reduced precision is computed in float32 and returned in the dtype of ``x``, as torchvision
    does under autocast: positions in half precision would be off by whole pixels on large maps.

    Infinite offsets are outside the map. NaN offsets give NaN in the outputs (and gradients) that they touch
    with the gather backend, so that an overflow stays visible; torchvision reads out of bounds.

    Args:
        x: (B, C, H, W) map to sample.
        offset: (B, 2 k k, h, w) displacements in pixels, interleaved (dy, dx) for every tap.
        weight: (O, C, k, k), square or not.
        mask: (B, k k, h, w) factor of every sample, unbounded.
        bias: (O,) or None.
        stride, padding, dilation: as in ``torch.nn.Conv2d``.
        backend: "gather", "torchvision" or "auto". "auto" follows ``deformable_backend``; outside such a
            block it is gather on a CPU and torchvision on other devices and during export or tracing.

    Returns:
        (B, O, h, w). Channels last in memory with the gather backend.

    Raises:
        ValueError: shapes do not fit together, or the backend is unknown.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    _check_shapes(x, offset, weight, mask, stride, padding, dilation)
    if _resolve(backend, x) == "torchvision":
        return torchvision_deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
    work = torch.promote_types(x.dtype, torch.float32)
    out = torch.ops.massformer.deform_conv2d(
        x.to(work), offset.to(work), weight.to(work), mask.to(work), stride, padding, dilation, STRIP_BYTES
    )
    if bias is not None:
        out = out + bias.to(work)[:, None, None]
    return out.to(x.dtype)


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
    return out.view(len(x), *mask.shape[2:], -1).permute(0, 3, 1, 2)


@_forward.register_fake
def _(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    strip_bytes: int,
) -> Tensor:
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
                grad_y, grad_x_, grad_m = _position_gradients(torch.cat(products), samples)
                grad_offset[item, start:stop, 0::2] = grad_y
                grad_offset[item, start:stop, 1::2] = grad_x_
                grad_mask[item, start:stop] = grad_m
        if need_x:
            grad_x[item] = sampler.inside(grad_table, channels).permute(2, 0, 1)
            grad_table.zero_()

    def as_map(rows: Tensor) -> Tensor:
        return rows.view(batch, *mask.shape[2:], -1).permute(0, 3, 1, 2) if need_offset else rows

    grad_weight = grad_kernel.view(*weight.shape[2:], -1, len(weight))[:, :, :channels].permute(3, 2, 0, 1)
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
    grads = torch.ops.massformer.deform_conv2d_backward(
        grad, *ctx.saved_tensors, *ctx.options, need_x, need_offset or need_mask, need_weight
    )
    wanted = (g if need else None for g, need in zip(grads, ctx.needs_input_grad[:4], strict=True))
    return *wanted, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


class DeformableConv(nn.Module):
    """Deformable convolution that predicts its own offsets and modulation, then BatchNorm and ReLU.

    One k x k convolution gives 3 k k channels: the first 2 k k are offsets, interleaved (dy, dx) for every
    tap, the last k k are the modulation before its sigmoid. It starts at zero: an ordinary convolution at
    half strength.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, backend: Backend = "auto"
    ) -> None:
        """Odd ``kernel_size``; stride 1 and padding k // 2 keep the size."""
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"DeformableConv: kernel_size must be odd to keep the size, got {kernel_size}")
        self.kernel_size, self.padding = kernel_size, kernel_size // 2
        self.backend: Backend = _checked(backend)
        self.offset = nn.Conv2d(in_channels, 3 * kernel_size**2, kernel_size, padding=self.padding)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=self.padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        taps = self.kernel_size**2
        offset, modulation = self.offset(x).split((2 * taps, taps), dim=1)
        x = deform_conv2d(
            x,
            offset,
            self.conv.weight,
            modulation.sigmoid(),
            padding=self.padding,
            backend=self.backend,
        )
        return self.activation(self.norm(x))


class DeformableUp(nn.Module):
    """Deformable convolution, and its map enlarged twice by a learned transposed convolution.

    The transposed convolution (4x4, stride 2, padding 1, no bias) starts as bilinear upsampling: its weight
    (C, C, 4, 4) holds the two-dimensional bilinear kernel on the diagonal and zeros elsewhere.
    """

    def __init__(self, channels: int, backend: Backend = "auto") -> None:
        super().__init__()
        self.deform = DeformableConv(channels, channels, 3, backend)
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.ReLU(inplace=True)
        ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(channels)[:, :, None, None] * ramp[:, None] * ramp)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to the map (B, C, H, W) and its enlargement (B, C, 2H, 2W)."""
        x = self.deform(x)
        return x, self.activation(self.norm(self.up(x)))

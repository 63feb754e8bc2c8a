"""Modulated deformable convolution on a CPU as embedding bags and matrix products: the "gather" backend.

One ``embedding_bag`` samples every tap of a strip of output positions (see ``deformable_sampler.py``), and one
matrix product applies the weights. Strips stay in the processor's cache, which is both the reason for the speed
and the bound of the memory.

The operators are registered with torch.library, so that ``torch.compile`` keeps them in one graph. They are
deterministic, and can be differentiated once.

Shape letters: B batch, C channels, O output channels, H W map size, h w output size, k kernel size,
T = k k taps, P = h w output positions, p positions of a strip, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from src.models.convolution import convolve
from src.models.deformable_sampler import Sampler, position_gradients

STRIP_BYTES = 4 * 2**20
"""Size of the sampled values of one strip. All temporaries of a strip together take a small multiple of it;
besides them there is one channels-last copy of one map (two in the backward pass)."""


def gather_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    rectified_bias: Tensor | None = None,
) -> Tensor:
    """Modulated deformable convolution without bias; see ``deform_conv2d`` in ``deformable.py``.

    Args:
        x: (B, C, H, W), of any memory format; float32 or float64, as all others.
        offset: (B, 2 T, h, w) interleaved (dy, dx).
        weight: (O, C, k, k).
        mask: (B, T, h, w).
        stride, padding, dilation: vertical, horizontal. Rows or columns are cut off by a negative padding.
        rectified_bias: (O,); with it the result is relu(convolution + bias), which cannot be differentiated.

    Returns:
        (B, O, h, w), channels last in memory.

    Raises:
        ValueError: shapes do not fit together.
    """
    _check_shapes(x, offset, weight, mask, stride, padding, dilation)
    with torch.autocast(x.device.type, enabled=False):  # also reaches the products inside the operator
        if rectified_bias is not None:
            return _convolve(x, offset, weight, mask, stride, padding, dilation, STRIP_BYTES, rectified_bias)
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


def _step(bytes_each: int, budget: int) -> int:
    return max(1, budget // bytes_each)


def _cut(positions: int, bytes_each: int, budget: int) -> Iterator[tuple[int, int]]:
    """Cut 0..positions into parts whose temporaries take about ``budget`` bytes."""
    step = _step(bytes_each, budget)
    for start in range(0, positions, step):
        yield start, min(start + step, positions)


def _convolve(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    strip_bytes: int,
    rectified_bias: Tensor | None = None,
) -> Tensor:
    sampler = Sampler(x, offset, weight, mask, stride, padding, dilation)
    kernel = sampler.kernel(weight)
    out = x.new_empty((len(x), sampler.positions, len(weight)))
    pointwise = kernel.t().contiguous()[:, :, None, None]
    column_bytes, sample_bytes = sampler.bytes_each()
    for item, image in enumerate(x):
        sampler.load(image)
        for start, stop in _cut(sampler.positions, sample_bytes, strip_bytes):
            samples = sampler.samples(item, start, stop)
            for a, b in _cut(stop - start, column_bytes, strip_bytes):
                columns, result = sampler.columns(samples.strip(a, b)), out[item, start + a : start + b]
                if rectified_bias is None:
                    torch.mm(columns, kernel, out=result)
                else:
                    result.copy_(_rectified_product(columns, pointwise, rectified_bias))
    return out.view(len(x), *mask.shape[2:], len(weight)).permute(0, 3, 1, 2)


def _rectified_product(columns: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(columns @ weight' + bias), (p, O), as a 1x1 convolution: one pass, and faster than a product."""
    pixels = columns[None, None].permute(0, 3, 1, 2)  # (1, T C, 1, p)
    return convolve(pixels, weight, bias)[0, :, 0].t()


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
    return _convolve(x, offset, weight, mask, stride, padding, dilation, strip_bytes)


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
    sampler = Sampler(x, offset, weight, mask, stride, padding, dilation)
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
            orders = iter(sampler.sort(samples, _step(column_bytes, strip_bytes)) if need_x else ())
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
                    sampler.scatter(grad_columns, strip, next(orders), grad_table)
            if need_offset:
                dy, dx, dmask = position_gradients(torch.cat(products), samples)
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

"""1x1 convolution, BatchNorm and ReLU in one training step that keeps only its input and its output.

Done one after the other, the three need the convolution's own output for their gradients and pass over large maps
nine times. But the statistics of a linear map follow from those of its input: the mean is W m, the variance of
output o is w_o' S w_o, with m and S the input's mean and covariance. So the map is written once, normalised, and the
backward pass is a few matrix products per strip of pixels.

With x the input about its mean, y = W x, n pixels, g the gradient behind the ReLU, s = sum g and
t = sum g y / std:

    d y = a (g - s / n - t y / (n std)),  a = gamma / std

and as y = W x, both d W = sum d y x' and d x = W' d y are sums of products with g and with x.

P = B H W pixels, C input channels, O output channels
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STRIP = 4096  # pixels: a strip of both maps stays in the processor's cache


def applies(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Whether ``pointwise_norm`` can stand in for the modules: training on a CPU with statistics of the batch."""
    return (
        x.device.type == "cpu"
        and conv.kernel_size == (1, 1)
        and conv.groups == 1
        and conv.in_channels <= 2 * conv.out_channels  # the covariance is small
        and type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and x.dtype == conv.weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def pointwise_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, relu: bool) -> Tensor:
    """(B, C, H, W) -> (B, O, H, W), channels last: ``norm(conv(x))``, above zero with ``relu``.

    The norm's running statistics move as in its own forward pass. Can be differentiated once.
    """
    if x.numel() == x.shape[1]:
        raise ValueError("BatchNorm cannot train with one value per channel")
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    return _PointwiseNorm.apply(
        x,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        (norm.running_mean, norm.running_var),
        norm.momentum,
        norm.eps,
        relu,
    )


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (P, C), a view of a channels-last map."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _strips(count: int) -> Iterator[slice]:
    for start in range(0, count, _STRIP):
        yield slice(start, min(start + _STRIP, count))


class _PointwiseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, gamma, beta, running, momentum, eps, relu):  # type: ignore[no-untyped-def]
        rows, kernel = _rows(x), weight[:, :, 0, 0]
        count = len(rows)
        mean = rows.mean(0)
        scatter = kernel.new_zeros((rows.shape[1], rows.shape[1]))
        for strip in _strips(count):
            centred = rows[strip] - mean
            scatter.addmm_(centred.t(), centred)
        variance = ((kernel @ scatter) * kernel).sum(1).clamp_(min=0) / count
        deviation_inverse = torch.rsqrt(variance + eps)
        scale = gamma * deviation_inverse
        output_mean = kernel @ mean
        shift, matrix = beta - scale * output_mean, (kernel * scale[:, None]).t()
        out = rows.new_empty((count, len(kernel)))
        for strip in _strips(count):
            torch.addmm(shift, rows[strip], matrix, out=out[strip])
            if relu:
                out[strip].clamp_(min=0)
        running_mean, running_variance = running
        running_mean.lerp_(output_mean if bias is None else output_mean + bias, momentum)
        running_variance.lerp_(variance * (count / (count - 1)), momentum)
        ctx.relu, ctx.has_bias = relu, bias is not None
        out = out.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        ctx.save_for_backward(x, out if relu else None, weight, mean, scatter, deviation_inverse, gamma)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, out, weight, mean, scatter, deviation_inverse, gamma = ctx.saved_tensors
        rows, kernel, grad_rows = _rows(x), weight[:, :, 0, 0], _rows(grad)
        out_rows = _rows(out) if ctx.relu else None
        count = len(rows)

        def through_relu(strip: slice) -> Tensor:
            if out_rows is None:
                return grad_rows[strip]
            return torch.ops.aten.threshold_backward(grad_rows[strip], out_rows[strip], 0)

        products, total = torch.zeros_like(kernel), torch.zeros_like(gamma)  # sum g x', sum g
        for strip in _strips(count):
            g = through_relu(strip)
            total += g.sum(0)
            products.addmm_(g.t(), rows[strip] - mean)
        grad_gamma = (products * kernel).sum(1) * deviation_inverse
        scale = gamma * deviation_inverse
        share = deviation_inverse * grad_gamma / count
        grad_kernel = scale[:, None] * (products - share[:, None] * (kernel @ scatter))
        grad_x = None
        if ctx.needs_input_grad[0]:
            scaled = kernel * scale[:, None]
            own = -(scaled.t() * share) @ kernel  # (C, C)
            constant = -(total / count) @ scaled - mean @ own
            grad_x = torch.empty_like(rows)
            for strip in _strips(count):
                torch.addmm(constant, rows[strip], own, out=grad_x[strip])
                grad_x[strip].addmm_(through_relu(strip), scaled)
            grad_x = grad_x.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        grad_bias = torch.zeros_like(gamma) if ctx.has_bias else None  # the norm takes any shift out
        return grad_x, grad_kernel[:, :, None, None], grad_bias, grad_gamma, total, None, None, None, None

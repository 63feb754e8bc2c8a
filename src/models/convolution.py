"""A convolution, what is added to its result, and ReLU in one pass over the map.

Done one after the other, every step reads and writes the whole map; oneDNN adds and rectifies while a result is still
in the processor's registers. PyTorch uses that in compiled graphs, through operators that are not part of its public
interface. So they are tried once: where they are missing or answer otherwise, and on other devices and dtypes, the
steps are done one after the other. Results are equal up to rounding, except that oneDNN's ReLU makes zero of NaN.

B batch, C input channels, O output channels, H W input size, h w output size
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Convolution = nn.Conv2d | nn.ConvTranspose2d


class Geometry(NamedTuple):
    """How a kernel moves over the map; as in ``torch.nn.functional.conv2d``, vertical before horizontal."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self | None:
        """That of a module, or None where it does more, or pads otherwise than with a number of zeros."""
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return None
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups)


_POINTWISE = Geometry()
_separate: ContextVar[bool] = ContextVar("separate_steps", default=False)


@contextmanager
def separate_steps() -> Iterator[None]:
    """Do the steps one after the other inside the block, where NaN is to stay NaN."""
    token = _separate.set(True)
    try:
        yield
    finally:
        _separate.reset(token)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    geometry: Geometry = _POINTWISE,
    *,
    add: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """relu(convolution + add), for inference: it cannot be differentiated.

    Args:
        x: (B, C, H, W). weight: (O, C / groups, k, k). bias: (O,) or None.
        add: (B, O, h, w) map to add, or None. overwrite: whether the result may take its place in memory.

    Returns:
        (B, O, h, w), not negative.
    """
    if not _can_fuse(x, weight):
        y = F.conv2d(x, weight, bias, *geometry)
        return (y if add is None else y.add_(add)).relu_()
    if add is None:
        return _fused(x, weight, bias, geometry)
    return _fused_sum(x, weight, bias, geometry, add, overwrite)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    convolution = torch.ops.mkldnn._convolution_pointwise.default
    return convolution(x, weight, bias, padding, stride, dilation, groups, "relu", [], "")


def _fused_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, add: Tensor, overwrite: bool
) -> Tensor:
    stride, padding, dilation, groups = geometry
    options: tuple[Any, ...] = (padding, stride, dilation, groups, "add", 1.0, "relu", [], "")
    if overwrite:
        return torch.ops.mkldnn._convolution_pointwise_.binary(add, x, weight, bias, *options)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, add, weight, bias, *options)


def _can_fuse(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not _separate.get()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _fused_operators_work()
    )


@functools.cache
@torch.no_grad()
def _fused_operators_work() -> bool:
    """Whether oneDNN's fused operators are there and do what is expected of them."""
    if not torch.backends.mkldnn.is_available():
        return False
    values = torch.arange(2 * 4 * 5 * 6).sin()
    x = values.view(2, 5, 6, 4).permute(0, 3, 1, 2)
    weight, bias, geometry = values[:72].view(2, 4, 3, 3), values[:2], Geometry(padding=(1, 1))
    add = values[:120].view(2, 5, 6, 2).permute(0, 3, 1, 2)
    product = F.conv2d(x, weight, bias, *geometry)
    try:
        found = [
            _fused(x, weight, bias, geometry) - product.relu(),
            _fused_sum(x, weight, bias, geometry, add, overwrite=False) - (product + add).relu(),
            _fused_sum(x, weight, bias, geometry, add.clone(), overwrite=True) - (product + add).relu(),
        ]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(float(difference.abs().max()) < 1e-5 for difference in found)


class RectifiedConv(nn.Conv2d):
    """A convolution and ReLU, with the weights of the given one."""

    def __init__(self, conv: nn.Conv2d, geometry: Geometry) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            groups=conv.groups,
            device="meta",
        )
        self.weight, self.bias, self.geometry = conv.weight, conv.bias, geometry

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w)."""
        return convolve(x, self.weight, self.bias, self.geometry)


class ResidualBlock(nn.Module):
    """relu(last(inner(x)) + shortcut(x)), the last sum done while convolving.

    Args:
        inner: all but the last convolution. last: that one. shortcut: None for x itself.
    """

    def __init__(
        self, inner: nn.Module, last: nn.Conv2d, geometry: Geometry, shortcut: nn.Module | None
    ) -> None:
        super().__init__()
        self.inner, self.last, self.shortcut, self.geometry = inner, last, shortcut, geometry

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, h, w)."""
        add = x if self.shortcut is None else self.shortcut(x)
        fresh = self.shortcut is not None
        weight, bias = self.last.weight, self.last.bias
        return convolve(self.inner(x), weight, bias, self.geometry, add=add, overwrite=fresh)


def folded(conv: Convolution, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does both.

    Args:
        conv: with or without bias. norm: the BatchNorm after it, of one process or synchronised, or an identity.

    Raises:
        TypeError: the norm is of another kind, which no convolution can stand for.
    """
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    weight = conv.weight.detach()
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f"{type(norm).__name__} cannot be part of a convolution")
    scale, shift = _scale_and_shift(norm)
    return weight * _per_output(conv, scale), bias * scale + shift


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def _per_output(conv: Convolution, scale: Tensor) -> Tensor:
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, k, k); groups are 1 here
        return scale[None, :, None, None]
    return scale[:, None, None, None]

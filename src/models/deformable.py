"""Modulated deformable convolution (DCNv2) and the two modules that the pixel decoder builds from it.

Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019; used by every branch of the
pixel decoder of "MaSS13K: A Matting-level Semantic Segmentation Benchmark", CVPR 2025, section 4.

There are two backends of equal results:

* ``torchvision``: ``torchvision.ops.deform_conv2d``. The right one on CUDA and for export (it maps to the ONNX
  operator DeformConv); slow on a CPU, where its temporary memory grows with the map.
* ``gather``: embedding bags and matrix products, see ``deformable_gather.py``; fast on a CPU, in bounded memory.

Shape letters: B batch, C input channels, O output channels, H W input size, h w output size, k kernel size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from src.models.deformable_gather import gather_deform_conv2d
from src.models.layers import single_precision

Backend = Literal["auto", "gather", "torchvision"]

_preferred_backend: ContextVar[Backend] = ContextVar("deformable_backend", default="auto")


@contextmanager
def deformable_backend(backend: Backend) -> Iterator[None]:
    """Use ``backend`` for all deformable convolutions inside the block that ask for "auto".

    The choice is local to the thread or asyncio task. A compiled graph keeps the choice made when it was
    compiled.
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


def resolved_backend(x: Tensor, backend: Backend = "auto") -> Backend:
    """The backend that samples ``x``: the argument, else the surrounding block's, else the best one for ``x``."""
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
    relu: bool = False,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    backend: Backend = "auto",
) -> Tensor:
    """Modulated deformable convolution with the semantics of ``torchvision.ops.deform_conv2d``.

    Taps outside the map sample zero; taps partly outside take the corners that are inside. Groups and offset
    groups are 1. Half precision is computed in float32 and returned in the dtype of ``x``, as torchvision does
    under autocast: positions in half precision would be off by whole pixels on large maps.

    Infinite offsets are outside the map. NaN offsets give NaN in the outputs (and gradients) that they touch
    with the gather backend, so that an overflow stays visible; torchvision reads out of bounds.

    Args:
        x: (B, C, H, W) map to sample.
        offset: (B, 2 k k, h, w) displacements in pixels, interleaved (dy, dx) for every tap.
        weight: (O, C, k, k), square or not.
        mask: (B, k k, h, w) factor of every sample, unbounded.
        bias: (O,) or None.
        relu: whether negative results become zero; with a bias and without gradients the gather backend does both
            while it multiplies.
        stride, padding, dilation: as in ``torch.nn.Conv2d``.
        backend: "gather", "torchvision" or "auto". "auto" follows ``deformable_backend``; outside such a
            block it is gather on a CPU and torchvision on other devices and during export or tracing.

    Returns:
        (B, O, h, w). Channels last in memory with the gather backend.

    Raises:
        ValueError: the backend is unknown, or shapes do not fit together (a RuntimeError from torchvision).
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    dtype, work = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, offset, weight, mask = x.to(work), offset.to(work), weight.to(work), mask.to(work)
    bias = None if bias is None else bias.to(work)
    if resolved_backend(x, backend) == "torchvision":
        # Its backward pass on CUDA refuses 1x1 weights whose strides are those of channels last.
        weight = weight.clone(memory_format=torch.contiguous_format)
        out = torchvision_deform_conv2d(x, offset, weight, None, stride, padding, dilation, mask)
    elif relu and bias is not None and not torch.is_grad_enabled():
        return gather_deform_conv2d(x, offset, weight, mask, stride, padding, dilation, bias).to(dtype)
    else:
        out = gather_deform_conv2d(x, offset, weight, mask, stride, padding, dilation)
    if bias is not None:
        out = out + bias[:, None, None]
    return (out.relu() if relu else out).to(dtype)


class DeformableConv(nn.Module):
    """Deformable convolution that predicts its own offsets and modulation, then BatchNorm and ReLU.

    One k x k convolution gives 3 k k channels: the first 2 k k are offsets, interleaved (dy, dx) for every
    tap, the last k k are the modulation before its sigmoid. It starts at zero: an ordinary convolution at
    half strength. In a copy for inference the convolution has a bias, which stands for the norm. Offsets keep the
    precision of the weights where others are computed in half of it.
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
        folded, dtype = self.conv.bias is not None, x.dtype
        x = x.to(self.offset.weight.dtype)  # as they would be sampled in any case
        with single_precision(x.device):  # half precision would round the pixel
            offset, modulation = self.offset(x).split((2 * taps, taps), dim=1)
        x = deform_conv2d(
            x,
            offset,
            self.conv.weight,
            modulation.sigmoid(),
            bias=self.conv.bias,
            relu=folded,
            padding=self.padding,
            backend=self.backend,
        ).to(dtype)
        return x if folded else self.activation(self.norm(x))


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

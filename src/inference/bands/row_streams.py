"""Convolutional layers that take their map a few rows at a time, from top to bottom.

Of its input a layer keeps the rows that the next output rows need, two for a 3x3 convolution. So a chain of layers
runs over a map of any height in the processor's cache, and computes no row twice.

B batch, C channels, n rows that arrive, m rows that they complete
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.convolution import Geometry, RectifiedConv, ResidualBlock, convolve


class RowStream(ABC):
    """A layer that takes the rows of one map and gives those of another."""

    @abstractmethod
    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        """Take the next rows.

        Args:
            rows: (B, C, n, w), or None for none. They may be overwritten. last: whether the map ends with them.

        Returns:
            (B, C', m, w') the rows that are complete now, in memory that nobody else uses; None for none.
        """


def row_stream(module: nn.Module) -> RowStream | None:
    """A fresh stream that does what a module in evaluation mode does, or None where there is none."""
    if isinstance(module, nn.Identity):
        return _Chain([])
    if isinstance(module, nn.Sequential):
        return row_chain(list(module))
    if isinstance(module, ResidualBlock):
        return _block(module)
    if isinstance(module, RectifiedConv):
        return _Convolution(module, module.geometry, rectify=True)
    if type(module) is nn.Conv2d and (geometry := Geometry.of(module)) is not None:
        return _Convolution(module, geometry, rectify=False)
    if isinstance(module, nn.MaxPool2d) and not module.ceil_mode and not module.return_indices:
        return _MaxPool(module)
    return None


def row_chain(modules: Sequence[nn.Module]) -> RowStream | None:
    """One after the other."""
    streams = [row_stream(module) for module in modules]
    known = [stream for stream in streams if stream is not None]
    return _Chain(known) if len(known) == len(streams) else None


class _Chain(RowStream):
    def __init__(self, streams: Sequence[RowStream]) -> None:
        self._streams = streams

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        for stream in self._streams:
            rows = stream.push(rows, last)
        return rows


class _Window:
    """Cuts the rows under a kernel out of those that arrive, and keeps what the next ones need.

    Args:
        kernel, stride, padding, dilation: vertical. fill: value of the rows above and below the map.
    """

    def __init__(self, kernel: int, stride: int, padding: int, dilation: int, fill: float) -> None:
        self.span, self.stride, self._padding = dilation * (kernel - 1) + 1, stride, padding
        self._fill = fill
        self._held: Tensor | None = None
        self._passed = (
            -padding
        )  # rows that arrive and that no kernel needs; negative: rows missing above the map

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        parts = [] if self._held is None else [self._held]
        if rows is not None:
            if self._passed < 0:
                parts.append(self._outside(rows, -self._passed))
            parts.append(rows[:, :, max(self._passed, 0) :])
            self._passed = max(self._passed - rows.shape[2], 0)
        if last and parts and self._padding:
            parts.append(self._outside(parts[0], self._padding))
        if not parts:
            return None
        held = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        count = (held.shape[2] - self.span) // self.stride + 1
        if count < 1:
            self._held = held.clone()
            return None
        following = count * self.stride
        self._passed += max(following - held.shape[2], 0)
        self._held = held[:, :, following:].clone() if following < held.shape[2] and not last else None
        return held[:, :, : following - self.stride + self.span]

    def _outside(self, like: Tensor, count: int) -> Tensor:
        return like.new_full((len(like), count, like.shape[3], like.shape[1]), self._fill).permute(0, 3, 1, 2)


class _Convolution(RowStream):
    def __init__(self, conv: nn.Conv2d, geometry: Geometry, rectify: bool) -> None:
        stride, padding, dilation, groups = geometry
        self._window = _Window(conv.kernel_size[0], stride[0], padding[0], dilation[0], fill=0.0)
        self._weight, self._bias = conv.weight, conv.bias
        self._geometry = Geometry(stride, (0, padding[1]), dilation, groups)
        self._rectify = rectify

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        x = self._window.push(rows, last)
        if x is None:
            return None
        if self._rectify:
            return convolve(x, self._weight, self._bias, self._geometry)
        return F.conv2d(x, self._weight, self._bias, *self._geometry)

    def push_and_add(self, rows: Tensor | None, last: bool, delayed: _Delayed) -> Tensor | None:
        """relu(convolution + as many of the rows that wait)."""
        x = self._window.push(rows, last)
        if x is None:
            return None
        add = delayed.take((x.shape[2] - self._window.span) // self._window.stride + 1)
        return convolve(x, self._weight, self._bias, self._geometry, add=add, overwrite=True)


class _MaxPool(RowStream):
    def __init__(self, pool: nn.MaxPool2d) -> None:
        kernel, stride, padding, dilation = (
            _pair(value) for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        )
        self._window = _Window(kernel[0], stride[0], padding[0], dilation[0], fill=-torch.inf)
        self._options = kernel, stride, (0, padding[1]), dilation

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        x = self._window.push(rows, last)
        return None if x is None else F.max_pool2d(x, *self._options)


class _Delayed:
    """Rows that wait for others."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def put(self, rows: Tensor | None) -> None:
        if rows is not None:
            self._rows = rows if self._rows is None else torch.cat((self._rows, rows), dim=2)

    def take(self, count: int) -> Tensor:
        assert self._rows is not None
        taken, rest = self._rows[:, :, :count], self._rows[:, :, count:]
        self._rows = rest.clone() if rest.shape[2] else None
        return taken


class _Block(RowStream):
    def __init__(self, inner: RowStream, shortcut: RowStream, last: _Convolution) -> None:
        self._inner, self._shortcut, self._last = inner, shortcut, last
        self._delayed = _Delayed()

    def push(self, rows: Tensor | None, last: bool) -> Tensor | None:
        found = self._inner.push(rows, last)
        self._delayed.put(self._shortcut.push(rows, last))
        return self._last.push_and_add(found, last, self._delayed)


def _block(module: ResidualBlock) -> RowStream | None:
    inner = row_stream(module.inner)
    shortcut = row_stream(module.shortcut or nn.Identity())
    if inner is None or shortcut is None:
        return None
    return _Block(inner, shortcut, _Convolution(module.last, module.geometry, rectify=True))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value

"""Bilinear resizing, a band of rows at a time.

    h w  size of the source map   H W  size of the result   n  rows of a band

A whole map at full resolution may not fit into memory, so results are made in bands of rows. A band holds exactly
what ``torch.nn.functional.interpolate`` (bilinear, no corner alignment) would put there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = Callable[[int, int], Tensor]
"""Gives rows start..stop of a map, (1, C, stop - start, w)."""

BAND_BYTES = 8 * 2**20
"""Size of one map of a band on a CPU: twice that takes the same time and more memory, half of it more time."""

DEVICE_BAND_BYTES = 2**28
"""The same elsewhere. On an H100 bands of 1 GiB took a tenth less time and more than twice the memory."""

_BANDS_HELD = 4  # of a map that rolls by


class SourceRows(NamedTuple):
    """The rows of a source map between which the rows of a band lie.

    Attributes:
        start, stop: the range of source rows that the band needs.
        lower, upper: (n,) int64 indices into that range.
        weight: (n,) share of ``upper``, in [0, 1].
        enlargement: how many times taller the result is than the source, if that is a whole number; else 0.
        skip: rows of the enlarged range that lie above the band, for a whole enlargement.
    """

    start: int
    stop: int
    lower: Tensor
    upper: Tensor
    weight: Tensor
    enlargement: int
    skip: int


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Cut 0..height into ranges of ``rows``, the last one shorter."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def cached_bands(channels: int, size: tuple[int, int], device: torch.device) -> Iterator[tuple[int, int]]:
    """Bands of a map (1, channels, *size) that suit the device."""
    yield from bands(size[0], cached_rows(channels, size[1], device))


def cached_rows(channels: int, width: int, device: torch.device) -> int:
    """How many rows of a map (1, channels, ., width) make a band that suits the device."""
    budget = BAND_BYTES if device.type == "cpu" else DEVICE_BAND_BYTES
    return max(1, budget // (4 * channels * width))


def rows_of(x: Tensor) -> Rows:
    """Of a whole map."""
    return lambda start, stop: x[:, :, start:stop]


def empty_map(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """(B, channels, *size), channels last in memory; batch, dtype and device as of ``like`` (B, ...)."""
    return like.new_empty((len(like), *size, channels)).permute(0, 3, 1, 2)


class GrowingMap:
    """A map that is put together from its rows, from top to bottom.

    Args:
        height: rows of the map.
    """

    def __init__(self, height: int) -> None:
        self._height, self._known = height, 0
        self._map: Tensor | None = None

    def append(self, rows: Tensor) -> None:
        """The next rows, (1, C, n, w); a map that comes at once is kept as it is."""
        stop = self._known + rows.shape[2]
        if self._map is None and stop == self._height:
            self._map = rows
        else:
            if self._map is None:
                self._map = empty_map(rows, rows.shape[1], (self._height, rows.shape[3]))
            self._map[:, :, self._known : stop] = rows
        self._known = stop

    def whole(self) -> Tensor:
        """The map (1, C, height, w) after its last rows."""
        assert self._map is not None
        assert self._known == self._height
        return self._map


class RowsGoneError(LookupError):
    """Rows were asked for that are not kept any more."""


class RollingRows:
    """``Rows`` of a map that is made from top to bottom and of which only the latest rows are kept.

    Args:
        bands: the map's rows in turn, (1, C, n, w).
        kept: rows above the first of a request that later requests may still ask for.

    Raises:
        RowsGoneError: rows are asked for that lie above those.
    """

    def __init__(self, bands: Iterator[Tensor], kept: int) -> None:
        self._bands, self._kept = bands, kept
        self._buffer: Tensor | None = None
        self._first = self._made = self._asked = 0  # the buffer holds the rows first..made

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows start..stop, valid until the next call."""
        if start < self._first:
            raise RowsGoneError(f"row {start} is gone, {self._first} is the first that is kept")
        self._asked = start
        while self._made < stop:
            self._append(next(self._bands))
        assert self._buffer is not None
        return self._buffer[:, :, start - self._first : stop - self._first]

    def _append(self, rows: Tensor) -> None:
        count = rows.shape[2]
        if self._buffer is None:
            self._buffer = empty_map(rows, rows.shape[1], (_BANDS_HELD * count, rows.shape[3]))
        if self._made - self._first + count > self._buffer.shape[2]:
            self._make_room(count)
        self._buffer[:, :, self._made - self._first :][:, :, :count] = rows
        self._made += count

    def _make_room(self, count: int) -> None:
        assert self._buffer is not None
        first = max(self._first, self._asked - self._kept)
        held = self._buffer[:, :, first - self._first : self._made - self._first].clone()
        needed = held.shape[2] + count
        if 2 * needed > self._buffer.shape[2]:  # or it would have to move rows with every band
            self._buffer = empty_map(held, held.shape[1], (2 * needed, held.shape[3]))
        self._buffer[:, :, : held.shape[2]] = held
        self._first = first


def source_rows(start: int, stop: int, height: int, source_height: int, like: Tensor) -> SourceRows:
    """Which source rows make the rows start..stop of a map resized from ``source_height`` to ``height`` rows.

    Args:
        like: any tensor of the map's dtype.

    Returns:
        rows whose tensors lie on the CPU: most bands need none of them, and to bring them to a device stops it.
    """
    # the precision is that of the positions which interpolate computes
    precision = torch.promote_types(like.dtype, torch.float32)
    scale = torch.tensor(source_height / height, dtype=precision)
    position = (scale * (torch.arange(start, stop, dtype=precision) + 0.5) - 0.5).clamp_(min=0)
    lower = position.long().clamp_(max=source_height - 1)
    upper = (lower + 1).clamp_(max=source_height - 1)
    weight = (position - lower).clamp_(0, 1)
    first, last = int(lower[0]), int(upper[-1])
    enlargement = height // source_height if height % source_height == 0 else 0
    skip = start - first * enlargement
    return SourceRows(first, last + 1, lower - first, upper - first, weight, enlargement, skip)


def resize_band(source: Tensor, rows: SourceRows, width: int) -> Tensor:
    """One band of a resized map.

    Args:
        source: (B, C, rows.stop - rows.start, w), the source rows of the band.
        rows: from ``source_rows``. width: W.

    Returns:
        (B, C, n, W) in the memory format and dtype of ``source``.
    """
    count = len(rows.lower)
    if rows.enlargement:
        height = source.shape[2] * rows.enlargement
        return _interpolate(source, height, width)[:, :, rows.skip : rows.skip + count]
    lower, upper, weight = (x.to(source.device) for x in (rows.lower, rows.upper, rows.weight))
    band = torch.lerp(source[:, :, lower], source[:, :, upper], weight.to(source.dtype)[:, None])
    return _interpolate(band, count, width)


def resized_rows(source: Tensor, start: int, stop: int, size: tuple[int, int]) -> Tensor:
    """Rows start..stop of a whole map (B, C, h, w) resized to a size (H, W)."""
    rows = source_rows(start, stop, size[0], source.shape[2], source)
    return resize_band(source[:, :, rows.start : rows.stop], rows, size[1])


class ResizedStream:
    """Resizes a map that arrives in bands, from top to bottom.

    Args:
        height: rows of the source. size: of the result, (H, W). like: any tensor of the source's dtype and device.
    """

    def __init__(self, height: int, size: tuple[int, int], like: Tensor) -> None:
        rows = source_rows(0, size[0], size[0], height, like)
        lower, upper = rows.lower + rows.start, rows.upper + rows.start
        self._needs, self._arrives = lower.tolist(), upper.tolist()
        self._lower, self._upper, self._weight = (x.to(like.device) for x in (lower, upper, rows.weight))
        self._size, self._made, self._top = size, 0, 0
        self._height = height
        self._held: Tensor | None = None

    def push(self, band: Tensor) -> Tensor:
        """Take the next source rows (B, C, n, w); returns the result rows (B, C, m, W) that they complete."""
        held = band if self._held is None else torch.cat((self._held, band), dim=2)
        if self._height == 2 * self._size[0] and held.shape[3] == 2 * self._size[1]:
            return self._halved(held)
        stop = bisect_left(self._arrives, self._top + held.shape[2], self._made)
        made, lower, upper = slice(self._made, stop), self._lower, self._upper
        weight = self._weight[made].to(band.dtype)[:, None]
        rows = torch.lerp(held[:, :, lower[made] - self._top], held[:, :, upper[made] - self._top], weight)
        needed = self._needs[stop] - self._top if stop < len(self._needs) else held.shape[2]
        passed = min(needed, held.shape[2])
        self._made, self._top, self._held = stop, self._top + passed, held[:, :, passed:].clone()
        return _interpolate(rows, rows.shape[2], self._size[1])

    def _halved(self, held: Tensor) -> Tensor:
        """The common case, in which a result is the mean of four pixels."""
        complete = held.shape[2] // 2 * 2
        self._held = held[:, :, complete:].clone() if complete < held.shape[2] else None
        return F.avg_pool2d(held[:, :, :complete], 2) if complete else _interpolate(held, 0, self._size[1])


def _interpolate(x: Tensor, height: int, width: int) -> Tensor:
    if height == 0:
        return x.new_empty((*x.shape[:2], 0, width))
    if x.shape[2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)

"""Scores of windows side by side, in memory or in scratch files, and their blending.

C channels (classes, and edges where there are some), n rows of a band, w width of a window, W of the photo
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from src.tiling import Span


class Scores(Protocol):
    """Scores of one window, rows of which can be had."""

    def rows(self, start: int, stop: int) -> Tensor:
        """(C, stop - start, w)."""

    def below(self, start: int) -> Scores:
        """The rows from ``start`` on; this object is not used any more."""


class ScoresInMemory:
    """Scores of one window, joined from bands of rows (C, n, w)."""

    def __init__(self, bands: Iterable[Tensor]) -> None:
        self._scores = torch.cat(list(bands), dim=1)

    def rows(self, start: int, stop: int) -> Tensor:
        """(C, stop - start, w)."""
        return self._scores[:, start:stop]

    def below(self, start: int) -> ScoresInMemory:
        """The rows from ``start`` on, without memory for the others."""
        return ScoresInMemory([self._scores[:, start:].clone()])


class ScoresOnDisk:
    """The same in an unnamed file in the system's temporary folder, row after row; gone with the object."""

    def __init__(self, bands: Iterable[Tensor]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the object)
        self._first = 0  # row that is row 0 now
        for band in bands:
            lines = band.to(torch.promote_types(band.dtype, torch.float32)).transpose(0, 1).contiguous().cpu()
            self._file.write(lines.numpy().data)
            self._like = band.new_empty((0, *lines.shape[1:]), dtype=lines.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """(C, stop - start, w)."""
        lines = self._like.new_empty((stop - start, *self._like.shape[1:]), device="cpu")
        self._file.seek((self._first + start) * lines[0].nbytes)
        self._file.readinto(lines.numpy().data)
        return lines.to(self._like.device).transpose(0, 1)

    def below(self, start: int) -> ScoresOnDisk:
        """The rows from ``start`` on."""
        self._first += start
        return self


class WindowRow:
    """Windows side by side, with the weights that blend them."""

    def __init__(
        self, rows: Span, weight: Tensor, across: list[tuple[Span, Tensor]], windows: list[Scores]
    ) -> None:
        self.rows, self._weight, self._across, self._windows = rows, weight, across, windows

    def sums(self, start: int, stop: int) -> Tensor:
        """Weighted scores (C, stop - start, W) of the photo's rows ``start`` to ``stop``."""
        first, last = start - self.rows.start, stop - self.rows.start
        sums: Tensor | None = None
        for (span, weight), window in zip(self._across, self._windows, strict=True):
            scores = window.rows(first, last)
            if sums is None:
                sums = scores.new_zeros((len(scores), last - first, self._across[-1][0].stop))
            sums[:, :, span.start : span.stop] += scores * weight.to(scores.device)
        assert sums is not None
        return sums.mul_(self._weight[first:last].to(sums.device)[:, None])

    def below(self, start: int) -> WindowRow:
        """What the windows have below the photo's row ``start``."""
        first = start - self.rows.start
        windows = [window.below(first) for window in self._windows]
        return WindowRow(Span(start, self.rows.stop), self._weight[first:], self._across, windows)

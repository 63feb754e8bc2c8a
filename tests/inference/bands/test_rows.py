"""Resizing in bands gives what interpolate gives at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.inference.bands.rows import ResizedStream, RollingRows, RowsGoneError, bands, resized_rows

sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, sides, sides, st.integers(1, 9))
def test_bands_and_streams_equal_interpolate(h: int, w: int, height: int, width: int, rows: int) -> None:
    source = torch.rand(1, 2, h, w)
    expected = F.interpolate(source, size=(height, width), mode="bilinear", align_corners=False)

    found = [resized_rows(source, start, stop, (height, width)) for start, stop in bands(height, rows)]
    torch.testing.assert_close(torch.cat(found, dim=2), expected, rtol=0, atol=2e-6)

    stream = ResizedStream(h, (height, width), source)
    pushed = [stream.push(source[:, :, start:stop]) for start, stop in bands(h, rows)]
    torch.testing.assert_close(torch.cat(pushed, dim=2), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_streams_that_halve_equal_interpolate(rows: int, dtype: torch.dtype) -> None:
    source = torch.rand(1, 2, 26, 34, dtype=dtype)
    expected = F.interpolate(source, size=(13, 17), mode="bilinear", align_corners=False)
    stream = ResizedStream(26, (13, 17), source)
    pushed = [stream.push(source[:, :, start:stop].clone()) for start, stop in bands(26, rows)]
    torch.testing.assert_close(torch.cat(pushed, dim=2), expected, rtol=0, atol=2e-6)
    assert [part.shape[2] for part in pushed] == [
        stop // 2 - start // 2 for start, stop in bands(26, rows)
    ]  # no row is held back


def test_channels_last_maps_stay_so() -> None:
    source = torch.rand(1, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    assert resized_rows(source, 0, 7, (12, 10)).stride(1) == 1


def test_rolling_rows_are_those_of_the_whole_map() -> None:
    map_ = torch.randn(1, 3, 50, 4)
    for kept in (0, 3, 50):
        rolling = RollingRows(iter(map_.split(4, dim=2)), kept)
        for start, stop in ((0, 5), (0, 9), (3, 14), (10, 40), (25, 50)):  # a far look down, then slowly on
            assert torch.equal(rolling(start, stop), map_[:, :, start:stop])


def test_rolling_rows_say_what_is_gone() -> None:
    rolling = RollingRows(iter(torch.randn(1, 3, 50, 4).split(4, dim=2)), kept=2)
    for start in range(0, 40, 4):
        rolling(start, start + 6)
    with pytest.raises(RowsGoneError):
        rolling(5, 8)

"""Resizing in bands gives what interpolate gives at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.inference.rows import ResizedStream, bands, resized_rows

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


def test_channels_last_maps_stay_so() -> None:
    source = torch.rand(1, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    assert resized_rows(source, 0, 7, (12, 10)).stride(1) == 1

"""The sine position code against its formula, one number at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.models.position import sine_position


def plain_code(height, width, channels):
    """DETR's code as its paper writes it: rows first, then columns, sine and cosine in turn."""
    code = torch.empty(height, width, channels, dtype=torch.float64)
    half = channels // 2
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                position, count = ((y + 1), height) if c < half else ((x + 1), width)
                angle = position / (count + 1e-6) * 2 * math.pi / 10000 ** (2 * (c % half // 2) / half)
                code[y, x, c] = math.sin(angle) if c % 2 == 0 else math.cos(angle)
    return code


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8, 32]))
def test_equals_the_formula(height, width, channels):
    code = sine_position(height, width, channels)
    assert code.shape == (height, width, channels)
    assert code.dtype == torch.float32
    torch.testing.assert_close(code.double(), plain_code(height, width, channels), atol=1e-6, rtol=0)


def test_positions_of_a_map_are_distinct():
    code = sine_position(96, 128, 128).flatten(0, 1)
    nearest = torch.cdist(code[:400], code).fill_diagonal_(9).min()
    assert nearest > 1e-3


@pytest.mark.parametrize("channels", [1, 2, 6, 10])
def test_channels_must_be_divisible_by_four(channels):
    with pytest.raises(ValueError, match=f"divisible by 4, not {channels}"):
        sine_position(2, 2, channels)

"""Windows cover a picture and their weights sum to one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.tiling import Span, blend_weights, spread


@st.composite
def arguments(draw: st.DrawFn) -> tuple[int, int, int, int]:
    multiple = draw(st.integers(1, 16))
    overlap = draw(st.integers(0, 60))
    size = draw(st.integers(3 * overlap + multiple, 400))
    return draw(st.integers(1, 3000)), size, overlap, multiple


@settings(deadline=None)
@given(arguments())
def test_spans_cover_everything_in_order(numbers: tuple[int, int, int, int]) -> None:
    length, size, overlap, multiple = numbers
    spans = spread(*numbers)
    assert spans[0].start == 0
    assert spans[-1].stop == length
    for left, right in pairwise(spans):
        assert right.start > left.start
        assert left.stop - right.start == overlap
    assert all(span.start % multiple == 0 for span in spans)
    assert all(span.length <= size for span in spans)
    for first, third in zip(spans, spans[2:], strict=False):
        assert first.stop <= third.start


@settings(deadline=None)
@given(arguments(), st.integers(0, 80))
def test_weights_sum_to_one(numbers: tuple[int, int, int, int], margin: int) -> None:
    spans = spread(*numbers)
    total = torch.zeros(numbers[0])
    for span, weight in zip(spans, blend_weights(spans, margin), strict=True):
        assert weight.min() >= 0
        total[span.start : span.stop] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_inner_ends_weigh_nothing() -> None:
    spans = [Span(0, 100), Span(60, 160)]
    first, second = blend_weights(spans, margin=10)
    assert first[:60].eq(1).all()
    assert first[-10:].eq(0).all()
    assert second[:10].eq(0).all()
    assert (second[10:30].diff() > 0).all()


def test_contradicting_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most a third"):
        spread(1000, 100, 60)

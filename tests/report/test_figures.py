"""Axes and charts."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.report.figures import Point, line_chart, linear_axis, logarithmic_axis, scatter_chart

NUMBERS = st.floats(0, 1e6).filter(lambda value: value == 0 or value > 1e-3)


@given(st.lists(NUMBERS, min_size=1, max_size=30))
def test_linear_axes_hold_their_values_between_round_ticks(values: list[float]) -> None:
    axis = linear_axis("x", values, start=0)
    assert axis.low <= min(*values, 0)
    assert axis.high >= max(values)
    assert 2 <= len(axis.ticks) <= 9
    steps = [second[0] - first[0] for first, second in zip(axis.ticks, axis.ticks[1:], strict=False)]
    assert max(steps) == pytest.approx(min(steps))
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert all(float(text) == pytest.approx(value, rel=1e-4, abs=1e-9) for value, text in axis.ticks)


@given(st.lists(st.floats(0.05, 1e5), min_size=1, max_size=30))
def test_logarithmic_axes_hold_their_values(values: list[float]) -> None:
    axis = logarithmic_axis("x", values)
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)
    assert len(axis.ticks) <= 9


def test_equal_ratios_are_equal_distances() -> None:
    axis = logarithmic_axis("x", [1, 1000])
    assert axis.share(10) - axis.share(1) == pytest.approx(axis.share(1000) - axis.share(100))


def test_marks_lie_where_their_values_are_and_tell_them() -> None:
    points = [Point(0, 0, "<first>"), Point(5, 10, "second & last")]
    x, y = linear_axis("width", [0, 5]), linear_axis("height", [0, 10])
    for draw, lines in ((line_chart, 1), (scatter_chart, 0)):
        chart = ET.fromstring(str(draw(points, x, y, "a <chart>")))
        assert chart.get("aria-label") == "a <chart>"
        first, second = chart.findall("circle")
        assert [mark.find("title").text for mark in (first, second)] == ["<first>", "second & last"]
        assert float(first.get("cx")) < float(second.get("cx"))
        assert float(first.get("cy")) > float(second.get("cy"))  # up is more
        assert len(chart.findall("polyline")) == lines
        texts = [text.text for text in chart.findall("text")]
        assert {"width", "height", "0", "10"} <= set(texts)

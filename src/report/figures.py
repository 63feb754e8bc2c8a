"""Charts as inline SVG, coloured by the page's style sheet and so readable on light and dark.

Charts are drawn for the width of a phone and scale up; every mark carries its values as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 14, 28, 40


class Point(NamedTuple):
    """A mark of a chart: where, in units of the axes, and its tooltip."""

    x: float
    y: float
    tip: str


class Axis(NamedTuple):
    """An axis with labelled ticks.

    Attributes:
        title: what it shows, with the unit.
        low, high: its ends.
        ticks: position and text of each tick.
        logarithmic: whether equal ratios are equal distances.
    """

    title: str
    low: float
    high: float
    ticks: list[tuple[float, str]]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0..1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(title: str, values: Sequence[float], *, start: float | None = None) -> Axis:
    """An axis over all values with about five round ticks; ``start`` is included too."""
    low, high = min([*values, *([] if start is None else [start])]), max(values)
    span = max(high - low, 1e-6)
    step = min(
        (factor * 10.0 ** math.floor(math.log10(span / 5)) for factor in (1, 2, 2.5, 5, 10)),
        key=lambda size: abs(span / size - 5),
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [(index * step, f"{index * step:.6g}") for index in range(first, last + 1)]
    return Axis(title, first * step, last * step, ticks)


def logarithmic_axis(title: str, values: Sequence[float]) -> Axis:
    """An axis over all values, which are positive, with ticks at 1, 2 and 5 times powers of ten."""
    low, high = min(values) / 1.1, max(values) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    ticks = [(value, f"{value:g}") for value in round_values if low <= value <= high]
    if len(ticks) > 7:
        ticks = [(value, text) for value, text in ticks if text.lstrip("0.").startswith("1")]
    return Axis(title, low, high, ticks, logarithmic=True)


def line_chart(points: Sequence[Point], x: Axis, y: Axis, label: str) -> Markup:
    """Marks joined by a line, in the order given.

    Args:
        points: what to draw.
        x, y: axes.
        label: what the chart shows, for screen readers.
    """
    path = " ".join(f"{_x(x, point):.1f},{_y(y, point):.1f}" for point in points)
    return _chart(
        Markup('<polyline class="line" points="{}"/>').format(path) + _marks(points, x, y), x, y, label
    )


def scatter_chart(points: Sequence[Point], x: Axis, y: Axis, label: str) -> Markup:
    """Marks alone; arguments as `line_chart`."""
    return _chart(_marks(points, x, y), x, y, label)


def _chart(content: Markup, x: Axis, y: Axis, label: str) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    rule = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            WIDTH, HEIGHT, label
        )
    ]
    for value, name in x.ticks:
        at = _LEFT + x.share(value) * (right - _LEFT)
        parts += [rule.format(at, _TOP, at, bottom), text.format(at, bottom + 15, "middle", name)]
    for value, name in y.ticks:
        at = bottom - y.share(value) * (bottom - _TOP)
        parts += [rule.format(_LEFT, at, right, at), text.format(_LEFT - 6, at + 4, "end", name)]
    parts.append(text.format((_LEFT + right) / 2, HEIGHT - 6, "middle", x.title))
    parts.append(text.format(0, 12, "start", y.title))  # above its axis, readable without turning one's head
    return Markup("").join([*parts, content, Markup("</svg>")])


def _marks(points: Sequence[Point], x: Axis, y: Axis) -> Markup:
    marks = (
        Markup('<circle class="mark" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>').format(
            _x(x, point), _y(y, point), escape(point.tip)
        )
        for point in points
    )
    return Markup("").join(marks)


def _x(axis: Axis, point: Point) -> float:
    return _LEFT + axis.share(point.x) * (WIDTH - _RIGHT - _LEFT)


def _y(axis: Axis, point: Point) -> float:
    return HEIGHT - _BOTTOM - axis.share(point.y) * (HEIGHT - _BOTTOM - _TOP)

"""A report on an evaluation as one HTML file that needs nothing else: no network, no scripts, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from src.files import write_atomically
from src.metrics.tolerance import CURVE
from src.published import Comparison as PublishedLine
from src.report.bootstrap import Interval
from src.report.comparison import Comparison
from src.report.examples import Example
from src.report.figures import Point, line_chart, linear_axis, logarithmic_axis, scatter_chart
from src.report.record import ImageRecords

METRICS = ("IoU", "BIoU", "BF1")


class PublishedScores(NamedTuple):
    """Published scores beside one's own.

    Attributes:
        method: whose they are, for example "MaSSFormer (R50)".
        lines: metric, ours, theirs and difference.
        note: why the two may not be comparable; empty when nothing speaks against it.
    """

    method: str
    lines: Sequence[PublishedLine]
    note: str = ""


class Report(NamedTuple):
    """Everything that a report shows.

    Attributes:
        title: heading of the page.
        facts: what was evaluated: name and value of each line.
        classes: K names with their RGB colours.
        intervals: scores by metric with bootstrap intervals.
        level: of the intervals, 0..1.
        confusion: (K, K) pixel counts; rows are labels.
        f1_curve: (6,) BF1 at the distances of `tolerance.CURVE`; None when BF1 was not measured.
        images: measurements by image.
        published: published scores of the same benchmark, or None.
        comparison: with another evaluation, or None.
        worst, best: photos to look at.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    classes: Mapping[str, Sequence[int]]
    intervals: Mapping[str, Interval]
    level: float
    confusion: NDArray[np.int64]
    f1_curve: Tensor | None
    images: ImageRecords
    published: PublishedScores | None
    comparison: Comparison | None
    worst: Sequence[Example]
    best: Sequence[Example]


class Bar(NamedTuple):
    """A bar in percent of its track, with the ends of its interval and its text."""

    metric: str
    length: float
    low: float
    high: float
    text: str


class DifferenceCell(NamedTuple):
    """A difference as text, with its interval and ``better``, ``worse`` or nothing where the interval holds 0."""

    text: str
    interval: str
    verdict: str


def write_report(path: Path, report: Report) -> None:
    """Write the page atomically."""
    names = list(report.classes)
    page = render_page(
        "evaluation.html",
        report=report,
        names=names,
        metrics=[metric for metric in METRICS if metric in report.intervals],
        differences=[] if report.comparison is None else _difference_rows(report.comparison, names),
        bars={name: _bars(report.intervals, index) for index, name in enumerate(names)},
        confusion=_shares(report.confusion),
        curve=None if report.f1_curve is None else _f1_chart(report.f1_curve),
        relative=[] if report.f1_curve is None else _relative_f1(report.f1_curve),
        scatter=_complexity_chart(report.images),
        trend=_rank_correlation(report.images),
    )
    write_atomically(path, page.encode(errors="backslashreplace"))


def render_page(template: str, **content: Any) -> str:
    """Fill a template of this package; every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["colour"] = lambda rgb: "#" + "".join(f"{part:02x}" for part in rgb)
    environment.globals["score"] = score_text
    return environment.get_template(template).render(**content)


def score_text(metric: str, value: float, *, signed: bool = False) -> str:
    """IoU and BIoU in percent, BF1 as a fraction, as the paper prints them; a dash for nan."""
    if np.isnan(value):
        return "-"
    sign = "+z" if signed else "z"  # z: no -0.00
    return f"{value:{sign}.4f}" if metric == "BF1" else f"{100 * value:{sign}.2f}"


def _bars(intervals: Mapping[str, Interval], index: int) -> list[Bar]:
    """The bars of a class; none for a class that never occurs."""
    bars = []
    for metric, interval in intervals.items():
        value, low, high = (float(part[index]) for part in interval)
        if not np.isnan(value):
            bars.append(Bar(metric, 100 * value, 100 * low, 100 * high, score_text(metric, value)))
    return bars


def _difference_rows(comparison: Comparison, names: Sequence[str]) -> list[tuple[str, list[DifferenceCell]]]:
    rows = []
    for index, name in enumerate([*names, "mean"]):
        cells = []
        for metric, interval in comparison.differences.items():
            value, low, high = (float(part[index]) for part in interval)
            if np.isnan(value):
                cells.append(DifferenceCell("-", "", ""))
                continue
            bounds = ", ".join(score_text(metric, bound, signed=True) for bound in (low, high))
            verdict = "better" if low > 0 else "worse" if high < 0 else ""
            cells.append(DifferenceCell(score_text(metric, value, signed=True), f"[{bounds}]", verdict))
        rows.append((name, cells))
    return rows


def _shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, K) percent of each labelled class; nan for classes without a labelled pixel."""
    totals = confusion.sum(1, keepdims=True)
    return np.divide(100 * confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)


def _f1_chart(curve: Tensor) -> Markup | None:
    """None where no photo has a labelled pixel, so that there is no score."""
    if curve.isnan().any():
        return None
    # The last tolerance is relative to each photo's size and has no place on an axis of pixels.
    points = [
        Point(tolerance.value, value, f"{tolerance}: {value:.4f}")
        for tolerance, value in zip(CURVE, curve.tolist(), strict=True)
        if tolerance.unit == "px"
    ]
    x = linear_axis("tolerance, pixels", [point.x for point in points], start=0)
    y = linear_axis("mean BF1", [point.y for point in points], start=0)
    return line_chart(points, x, y, "Boundary F1 by tolerance")


def _relative_f1(curve: Tensor) -> list[tuple[str, str]]:
    """The points that the chart leaves out: tolerance and score."""
    return [
        (str(tolerance), score_text("BF1", value))
        for tolerance, value in zip(CURVE, curve.tolist(), strict=True)
        if tolerance.unit != "px"
    ]


def _complexity_chart(images: ImageRecords) -> Markup | None:
    """None without a photo that has both measures."""
    points = [
        Point(complexity, 100 * biou, f"{name}: BIoU {100 * biou:.1f}, IPQ {complexity:.1f}")
        for name, complexity, biou in zip(images.names, images.complexity, images.biou, strict=True)
        if complexity > 0 and not np.isnan(biou)
    ]
    if not points:
        return None
    x = logarithmic_axis("mean complexity (IPQ) of the masks", [point.x for point in points])
    y = linear_axis("boundary IoU, %", [point.y for point in points], start=0)
    return scatter_chart(points, x, y, "Boundary IoU of each photo by mask complexity")


def _rank_correlation(images: ImageRecords) -> float | None:
    """Spearman's coefficient of complexity and boundary IoU; None where it says nothing."""
    present = ~np.isnan(images.complexity) & ~np.isnan(images.biou)
    complexity, biou = images.complexity[present], images.biou[present]
    if present.sum() < 10 or np.ptp(complexity) == 0 or np.ptp(biou) == 0:
        return None
    return float(spearmanr(complexity, biou).statistic)

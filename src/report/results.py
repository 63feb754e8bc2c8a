"""The files that an evaluation leaves: tables, the areas of every image, and the page to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from src.data.classes import Taxonomy
from src.data.source import PhotoSource, Window
from src.metrics.suite import SegmentationMetrics
from src.metrics.table import class_table, image_table, plain_rows, write_csv
from src.photos import read_label
from src.report.bootstrap import Interval, score_intervals
from src.report.comparison import Comparison, compare, interval_rows
from src.report.examples import Example, example, extremes
from src.report.page import PublishedScores, Report, score_text, write_report
from src.report.predictions import Measured
from src.report.record import Evaluation, ImageRecords, image_records, write_record


class Bootstrap(NamedTuple):
    """How intervals are drawn: resamples, share of them inside, seed."""

    samples: int
    level: float
    seed: int


class Findings(NamedTuple):
    """What there is to tell about an evaluation.

    Attributes:
        facts: what was evaluated: name to value, for people and for JSON.
        taxonomy: K classes.
        settings: of the metrics.
        scores: of the set, see ``SegmentationMetrics.compute``.
        measured: by image name.
        images: the same as arrays.
        bootstrap: how the intervals were drawn.
        intervals: scores by metric with their intervals.
        comparison: with another evaluation, or None.
    """

    facts: dict[str, Any]
    taxonomy: Taxonomy
    settings: dict[str, Any]
    scores: Mapping[str, Tensor]
    measured: Measured
    images: ImageRecords
    bootstrap: Bootstrap
    intervals: dict[str, Interval]
    comparison: Comparison | None


def metric_settings(metrics: SegmentationMetrics) -> dict[str, Any]:
    """What two evaluations must have in common to compare, plain values; None for what is not measured."""
    return {
        "boundary_ratio": metrics.boundary_ratio,
        "ignore_boundaries": metrics.ignore_boundaries,
        "tolerance": str(metrics.tolerances[0]) if metrics.tolerances else None,
    }


def find_out(
    facts: dict[str, Any],
    taxonomy: Taxonomy,
    metrics: SegmentationMetrics,
    scores: Mapping[str, Tensor],
    measured: Measured,
    bootstrap: Bootstrap,
) -> Findings:
    """Draw intervals."""
    images = image_records(measured.scores, measured.complexity)
    settings = metric_settings(metrics)
    intervals = score_intervals(images, **bootstrap._asdict())
    return Findings(
        {**facts, "images": len(images.names)},
        taxonomy,
        settings,
        scores,
        measured,
        images,
        bootstrap,
        intervals,
        None,
    )


def compared(findings: Findings, other: Evaluation) -> Findings:
    """The same with differences from another evaluation; errors as `comparison.compare`."""
    comparison = compare(
        findings.images, findings.taxonomy.names, findings.settings, other, **findings.bootstrap._asdict()
    )
    return findings._replace(comparison=comparison)


def write_tables(folder: Path, findings: Findings) -> None:
    """Write scores.csv, images.csv and scores.json; the last holds everything, see docs/evaluation.md."""
    names = findings.taxonomy.names
    table = class_table(findings.scores, names)
    write_csv(folder / "scores.csv", table)
    ordered = {name: findings.measured.scores[name] for name in findings.images.names}
    write_csv(folder / "images.csv", image_table(ordered, names))
    content: dict[str, Any] = {
        **findings.facts,
        "settings": findings.settings,
        "classes": list(names),
        table.corner: plain_rows(table),
        "intervals": {
            **findings.bootstrap._asdict(),
            table.corner: interval_rows(findings.intervals, names),
        },
        "confusion": findings.scores["confusion"].tolist(),
    }
    if findings.comparison is not None:
        content["comparison"] = findings.comparison.to_plain(names, findings.bootstrap.level)
    write_record(folder / "scores.json", content, findings.images)


def _facts(findings: Findings) -> list[tuple[str, str]]:
    """What was evaluated, and how, in words."""
    facts, settings = findings.facts, findings.settings
    lines = [(name, str(value)) for name, value in facts.items() if name not in ("split", "images")]
    lines.append(("photos", f"{facts['images']} of {facts['split']}"))
    ignored = "bound the classes beside them" if settings["ignore_boundaries"] else "count nowhere"
    width = f"boundaries {100 * settings['boundary_ratio']:g} % of the diagonal wide"
    lines.append(("BIoU", f"{width}; ignored regions {ignored}"))
    if settings["tolerance"] is not None:
        lines.append(("BF1", f"within {settings['tolerance']}"))
    return lines


def write_page(
    path: Path,
    findings: Findings,
    source: PhotoSource,
    predictions: Path,
    published: PublishedScores | None,
    *,
    worst: int,
    best: int,
    details: int,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        findings: what it tells.
        source: the labelled photos.
        predictions: folder with the label map of each photo.
        published: scores to show beside, or None.
        worst, best: how many photos to show.
        details: windows of each.
    """
    images = findings.images
    position = {name: index for index, name in enumerate(source.names)}
    ratio = float(findings.settings["boundary_ratio"])

    def show(index: int) -> Example:
        name = images.names[index]
        scores = [f"{metric} {score_text(metric, value)}" for metric, value in images.summary(index)]
        facts = ", ".join([*scores, f"mask complexity {images.complexity[index]:.1f}"])
        photo = source.open(position[name])
        whole = Window(0, 0, *photo.size)
        prediction: NDArray[np.uint8] = read_label(predictions / f"{name}.png")
        return example(
            name,
            facts,
            photo.image(whole),
            photo.label(whole),
            prediction,
            findings.taxonomy.colours,
            ratio=ratio,
            details=details,
        )

    lowest, highest = extremes(images, worst, best)
    curve = findings.scores.get("BF1_curve")
    colours = dict(zip(findings.taxonomy.names, findings.taxonomy.colours.tolist(), strict=True))
    report = Report(
        title=f"Evaluation on {Path(findings.facts['data']).resolve().name}, {findings.facts['split']}",
        facts=_facts(findings),
        classes=colours,
        intervals=findings.intervals,
        level=findings.bootstrap.level,
        confusion=findings.scores["confusion"].numpy(),
        f1_curve=curve,
        images=images,
        published=published,
        comparison=findings.comparison,
        worst=[show(index) for index in lowest],
        best=[show(index) for index in highest],
    )
    write_report(path, report)

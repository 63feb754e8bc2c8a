"""What an evaluation prints besides its table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from src.report.comparison import Comparison
from src.report.page import PublishedScores, score_text
from src.report.results import Findings


def interval_line(findings: Findings) -> str:
    """The means with their intervals, on one line."""
    parts = [
        f"m{metric} {score_text(metric, interval.value[-1])} "
        f"[{score_text(metric, interval.low[-1])}, {score_text(metric, interval.high[-1])}]"
        for metric, interval in findings.intervals.items()
    ]
    return f"{100 * findings.bootstrap.level:g} % intervals over images: {', '.join(parts)}"


def published_table(published: PublishedScores) -> Table:
    """Ours, paper and difference."""
    table = Table("metric", title=f"beside the paper's {published.method}", title_justify="left")
    for column in ("ours", "paper", "difference"):
        table.add_column(column, justify="right")
    for line in published.lines:
        digits = 4 if line.metric == "BF1" else 2
        table.add_row(
            line.metric,
            f"{line.ours:.{digits}f}",
            f"{line.paper:.{digits}f}",
            f"{line.difference:+.{digits}f}",
        )
    return table


def comparison_tables(comparison: Comparison, class_names: Sequence[str], most: int = 5) -> list[Table]:
    """Differences with their intervals, and the photos that changed most."""
    title = f"ours minus {comparison.other}, {comparison.images} photos; in brackets the interval"
    differences = Table("class", title=title, title_justify="left")
    for metric in comparison.differences:
        differences.add_column(metric, justify="right", no_wrap=True)
    for index, name in enumerate([*class_names, "mean"]):
        cells = []
        for metric, interval in comparison.differences.items():
            value, low, high = (score_text(metric, float(part[index]), signed=True) for part in interval)
            cells.append(value if value == "-" else f"{value}\n[{low}, {high}]")  # one line would not fit
        differences.add_row(name, *cells)
    changes = Table("photos that changed most", title_justify="left")
    for column in ("BIoU", "other", "difference"):
        changes.add_column(column, justify="right")
    for change in comparison.changes[:most]:
        values = (change.ours, change.theirs)
        signed = score_text("BIoU", change.difference, signed=True)
        changes.add_row(change.name, *(score_text("BIoU", value) for value in values), signed)
    return [differences, changes]

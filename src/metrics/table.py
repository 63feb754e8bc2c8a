"""Scores as tables: in the terminal, as CSV for spreadsheets and as JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from torch import Tensor

from src.files import write_atomically
from src.metrics.region import mean_of_present
from src.metrics.suite import ImageScores
from src.metrics.tolerance import CURVE


class ScoreTable(NamedTuple):
    """Named rows of scores.

    Attributes:
        corner: what the rows are, for example "class".
        columns: names of the scores.
        rows: a name and one score per column, 0..1 or nan.
    """

    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]


def class_table(result: Mapping[str, Tensor], class_names: Sequence[str]) -> ScoreTable:
    """Scores per class with their mean in the last row.

    Args:
        result: what `SegmentationMetrics.compute` returned, with or without BF1.
        class_names: K names.
    """
    columns = {"IoU": (result["IoU"], result["mIoU"]), "BIoU": (result["BIoU"], result["mBIoU"])}
    if "BF1" in result:
        columns["BF1"] = (result["BF1"], result["mBF1"])
        curve = zip(CURVE, result["BF1_curve_per_class"], result["BF1_curve"], strict=True)
        columns |= {f"BF1@{tolerance}": (per_class, mean) for tolerance, per_class, mean in curve}
    scores = zip(*([*per_class.tolist(), mean.item()] for per_class, mean in columns.values()), strict=True)
    rows = zip([*class_names, "mean"], scores, strict=True)
    return ScoreTable("class", tuple(columns), tuple(rows))


def image_table(images: Mapping[str, ImageScores], class_names: Sequence[str]) -> ScoreTable:
    """Scores per image: the mean over its classes and each class, for IoU, BIoU and BF1.

    Args:
        images: measurements by image name; all with BF1 or all without.
        class_names: K names.
    """
    with_f1 = all(scores.f1 is not None for scores in images.values())
    names = ["IoU", "BIoU", "BF1"] if with_f1 else ["IoU", "BIoU"]
    rows = []
    for image, scores in images.items():
        per_metric = [values for values in (scores.iou, scores.biou, scores.f1) if values is not None]
        row = [mean_of_present(values).item() for values in per_metric]
        row += [value for values in per_metric for value in values.tolist()]
        rows.append((image, tuple(row)))
    columns = [f"m{name}" for name in names] + [f"{name} {label}" for name in names for label in class_names]
    return ScoreTable("image", tuple(columns), tuple(rows))


def without_curve(table: ScoreTable) -> ScoreTable:
    """The table without BF1 at the distances of the curve, which is too wide for a terminal."""
    kept = [i for i, column in enumerate(table.columns) if "@" not in column]
    rows = tuple((name, tuple(scores[i] for i in kept)) for name, scores in table.rows)
    return ScoreTable(table.corner, tuple(table.columns[i] for i in kept), rows)


def render(table: ScoreTable, title: str) -> Table:
    """The table for a rich console: IoU and BIoU in percent, BF1 as a fraction, as the paper prints them."""
    rendered = Table(title=title, title_justify="left")
    rendered.add_column(table.corner, overflow="fold")
    for column in table.columns:
        rendered.add_column(column, justify="right")
    for name, scores in table.rows:
        if name == "mean":
            rendered.add_section()
        rendered.add_row(name, *map(_cell, table.columns, scores), style="bold" if name == "mean" else None)
    return rendered


def write_csv(path: Path, table: ScoreTable) -> None:
    """Write the table as CSV with scores 0..1; nan is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([table.corner, *table.columns])
    for name, scores in table.rows:
        writer.writerow([name, *("" if math.isnan(score) else f"{score:.6f}" for score in scores)])
    # names of files may hold bytes that are no UTF-8
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def write_json(path: Path, table: ScoreTable, **facts: Any) -> None:
    """Write the table as JSON, ``{"<corner>": {"<row>": {"<column>": score}}}``; nan is null.

    Args:
        path: the file.
        table: the scores, written as 0..1.
        facts: further entries beside the table, for example the number of images.
    """
    content = {**facts, table.corner: plain_rows(table)}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def plain_rows(table: ScoreTable) -> dict[str, dict[str, float | None]]:
    """``{"<row>": {"<column>": score}}`` for JSON: six decimals, nan is None."""
    return {
        name: {
            column: None if math.isnan(score) else round(score, 6)
            for column, score in zip(table.columns, scores, strict=True)
        }
        for name, scores in table.rows
    }


def _cell(column: str, score: float) -> str:
    if math.isnan(score):
        return "-"
    return f"{score:.4f}" if "BF1" in column else f"{100 * score:.2f}"

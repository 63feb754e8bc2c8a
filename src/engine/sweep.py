"""The runs of a sweep beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from src.metrics.table import ScoreTable, render, write_csv

_COLUMNS = ("IoU", "BIoU", "BF1")


class SweepRun(NamedTuple):
    """A run of a sweep: its number, its folder, and what was overridden."""

    number: int
    folder: Path
    overrides: tuple[str, ...]


def print_sweep(folder: Path, runs: Sequence[SweepRun]) -> None:
    """Print the mean scores of the runs so far, and write them as ``sweep.csv`` into the sweep's folder.

    A run is named by its overrides that not all have. One without scores (it failed, is under way elsewhere, or made
    no validation) has empty cells.
    """
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    rows = []
    for run in sorted(runs):
        own = [override for override in run.overrides if override not in shared]
        rows.append((f"{run.number}: {' '.join(own)}".rstrip(": "), mean_scores(run.folder / "scores.json")))
    table = ScoreTable("run", tuple(f"m{column}" for column in _COLUMNS), tuple(rows))
    write_csv(folder / "sweep.csv", table)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(render(table, f"runs of {folder} so far"))
    console.print(f"table           {folder / 'sweep.csv'}")


def mean_scores(path: Path) -> tuple[float, ...]:
    """IoU, BIoU and BF1 of a run, 0..1, means over the classes; nan where there is no score."""
    mean = json.loads(path.read_text()).get("class", {}).get("mean", {}) if path.is_file() else {}
    return tuple(math.nan if mean.get(column) is None else mean[column] for column in _COLUMNS)

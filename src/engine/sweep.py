"""The runs of a sweep beside each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from rich.console import Console

from src.metrics.table import ScoreTable, render, write_csv

_COLUMNS = ("IoU", "BIoU", "BF1")


class _Run(NamedTuple):
    number: int
    folder: Path
    overrides: tuple[str, ...]


def print_sweep(folder: Path) -> None:
    """Print the mean scores of all runs so far in a sweep's folder, and write them as ``sweep.csv`` there.

    A run is named by its overrides that not all have. One without scores (it failed, is under way elsewhere, or made
    no validation) has empty cells. Runs are in the order of their numbers; nothing is written for none.
    """
    runs = sorted(_runs(folder))
    if not runs:
        return
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    rows = []
    for run in runs:
        own = [override for override in run.overrides if override not in shared]
        rows.append((f"{run.number}: {' '.join(own)}".rstrip(": "), _means(run.folder / "scores.json")))
    table = ScoreTable("run", tuple(f"m{column}" for column in _COLUMNS), tuple(rows))
    write_csv(folder / "sweep.csv", table)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(render(table, f"runs of {folder} so far"))
    console.print(f"table           {folder / 'sweep.csv'}")


def _runs(folder: Path) -> list[_Run]:
    found = []
    for overrides in folder.glob("*/.hydra/overrides.yaml"):
        job = OmegaConf.load(overrides.with_name("hydra.yaml")).hydra.job
        found.append(_Run(int(job.num), overrides.parent.parent, tuple(map(str, OmegaConf.load(overrides)))))
    return found


def _means(path: Path) -> tuple[float, ...]:
    """Of the classes; nan where there is no score."""
    mean = json.loads(path.read_text())["class"]["mean"] if path.is_file() else {}
    return tuple(math.nan if mean.get(column) is None else mean[column] for column in _COLUMNS)

"""What a run prints when it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from src.checkpoints.files import read_file
from src.metrics.table import class_table, render, without_curve, write_csv, write_json

log = logging.getLogger(__name__)


def print_results(
    folder: Path,
    class_names: Sequence[str],
    steps: int,
    scores: Mapping[str, Tensor] | None,
    untrained: Mapping[str, Tensor] | None = None,
) -> None:
    """Print the final validation scores and where everything lies; write the table as JSON and CSV.

    Args:
        folder: of the run. class_names: K names. steps: that are done.
        scores: of the validation after the last step, see ``SegmentationMetrics.compute``; None without one.
        untrained: of the network before training, for comparison.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if scores is None:
        console.print("no validation after training, so no scores")
    else:
        table = class_table(scores, class_names)
        console.print(render(without_curve(table), "validation, at the end of training"))
        write_csv(folder / "scores.csv", table)
        write_json(folder / "scores.json", table, split="val", images=int(scores["images"]))
        before = f"before training: {means_line(untrained)}; now: " if untrained is not None else ""
        log.info("%s%s", before, means_line(scores))
    # of an earlier run in the same folder there may be some of later steps
    panels = sorted((folder / "panels").glob("step_*/*.png"), key=lambda path: path.stat().st_mtime_ns)
    best, last = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    if best.is_file():
        step, score = _best_of(best)
        console.print(f"checkpoint      {best} (step {step}{score})")
        if scores is not None and step != steps:
            console.print(f"                the table is of step {steps}: {last}")
    elif last.is_file():
        console.print(f"checkpoint      {last}")
    if scores is not None:
        console.print(f"metrics table   {folder / 'scores.csv'} (and .json)")
    console.print(f"training curve  {folder / 'metrics.csv'}")
    if panels:
        console.print(f"predictions     {panels[-1].parent} ({panels[-1].name} and others)")


def _best_of(checkpoint: Path) -> tuple[int, str]:
    """The step of a best checkpoint, and its score for people."""
    content = read_file(checkpoint)
    for state in content.get("callbacks", {}).values():
        if state.get("best_model_score") is not None:
            return content["global_step"], f", {state['monitor']} {float(state['best_model_score']):.2f}"
    return content["global_step"], ""


def means_line(scores: Mapping[str, Tensor]) -> str:
    """The means of scores 0..1 in percent, on one line."""
    return f"mIoU {100 * scores['mIoU']:.2f}, BIoU {100 * scores['mBIoU']:.2f}"

"""Published scores beside an evaluation on MaSS13K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.published import RESULTS, Scores, compare, published_result
from src.report.bootstrap import Interval
from src.report.page import PublishedScores

CLASSES = ("background", "person", "building", "tree", "ground", "sky", "water")
IMAGES = {"val": 500, "test": 1500}
LIMIT = (4096, 3072)  # that photos are fitted to
BOUNDARY_RATIO = 0.001
_REFERENCE = "MaSSFormer"


def is_mass13k(data: Mapping[str, Any]) -> bool:
    """Whether a data configuration reads MaSS13K: its classes and its layout, neither mapped nor drawn."""
    changed = any(data.get(key) is not None for key in ("class_map", "folders", "synthetic"))
    return tuple(data["classes"]) == CLASSES and not changed


def deviations(data: Mapping[str, Any], metrics: Mapping[str, Any], by_network: bool) -> list[str]:
    """In what an evaluation differs from the paper's, sentences.

    Args:
        data, metrics: configurations. by_network: whether photos went through a network here, and were not only
            compared with another program's predictions.
    """
    found = []
    limit = sorted(data.get("evaluation_limit") or LIMIT)
    if by_network and limit != sorted(LIMIT):
        found.append(f"Photos were fitted to {limit[1]}x{limit[0]} pixels, the paper fits them to 4096x3072.")
    elif by_network and not data.get("enlarge"):
        found.append(
            "Photos below 4096x3072 pixels kept their size, the paper enlarges them (data.enlarge=true)."
        )
    if (ratio := metrics.get("boundary_ratio", BOUNDARY_RATIO)) != BOUNDARY_RATIO:
        found.append(f"BIoU's boundaries are {ratio} of the diagonal wide, the paper's {BOUNDARY_RATIO}.")
    return found


def published_scores(
    intervals: Mapping[str, Interval],
    split: str,
    images: int,
    experiment: str,
    encoder: str,
    deviations: Sequence[str] = (),
) -> PublishedScores | None:
    """The published scores of the same method, or else of the paper's main result.

    Args:
        intervals: own scores.
        split: ``val`` or ``test``.
        images: how many photos were evaluated.
        experiment, encoder: of the checkpoint, see `published.published_result`; empty for predictions of
            other programs.

        deviations: of the evaluation from the paper's, sentences.

    Returns:
        None where the paper has no scores of this split.
    """
    own = published_result(experiment, encoder)
    row = own or next(row for row in RESULTS if row.method == _REFERENCE)
    miou, biou = (100 * float(intervals[metric].value[-1]) for metric in ("IoU", "BIoU"))
    bf1 = float(intervals["BF1"].value[-1]) if "BF1" in intervals else None
    lines = compare(Scores(miou, biou, bf1), row, split)
    if not lines:
        return None
    notes = list(deviations)
    if own is None:
        notes.append("Another method or backbone was evaluated; this is the paper's main result.")
    if images != IMAGES[split]:
        notes.append(f"The paper evaluates {IMAGES[split]} photos, this is an evaluation of {images}.")
    if bf1 is not None:
        notes.append("The paper's BF1 tolerance is unpublished.")
    return PublishedScores(f"{row.method} ({row.backbone}), {split}", lines, " ".join(notes))

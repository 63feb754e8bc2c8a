"""Scores of known and of new classes apart, and how much of the known ones a model has forgotten.

A model that learns a new class answers it where it used to answer "others", and labels that have the class agree. To
compare the model with what it was before, predictions and labels are *folded*: new classes become "others" again.
Known classes are scored on folded maps, new classes on the maps as they are.

K classes, N of them new and last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.metrics.suite import SegmentationMetrics
from src.structures import IGNORE

METRICS = ("IoU", "BIoU")


class CategoryScores(NamedTuple):
    """Scores 0..1 by class name, nan for classes that never occurred, and for new ones without labels.

    Attributes:
        known: metric -> class -> score on folded maps.
        new: metric -> class -> score on the maps as they are.
    """

    known: dict[str, dict[str, float]]
    new: dict[str, dict[str, float]]

    def mean(self, group: str, metric: str) -> float:
        """Mean over the classes of ``known`` or ``new`` that occurred."""
        present = [value for value in getattr(self, group)[metric].values() if value == value]
        return sum(present) / len(present) if present else float("nan")

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Name -> IoU and BIoU: known classes, their mean, new classes, their mean."""
        table: dict[str, tuple[float, ...]] = {}
        for group in ("known", "new"):
            scores = getattr(self, group)
            table |= {name: tuple(scores[metric][name] for metric in METRICS) for name in scores["IoU"]}
            table[f"mean of {group}"] = tuple(self.mean(group, metric) for metric in METRICS)
        return table


class CategoryMetrics(nn.Module):
    """Measures label maps; see ``CategoryScores``.

    Args:
        names: K class names. new_classes: the last N of them.
        others: class that new objects were called before, or "ignore".
        options: arguments of ``SegmentationMetrics``; boundary F1 is left out.
    """

    table: Tensor

    def __init__(self, names: Sequence[str], new_classes: Sequence[str], others: str, **options: Any) -> None:
        super().__init__()
        self.names = tuple(names)
        self.known = tuple(name for name in names if name not in new_classes)
        options = {**options, "boundary_f1": False}
        self.whole = SegmentationMetrics(len(self.names), **options)
        target = IGNORE if others == "ignore" else self.known.index(others)
        # outlines of new objects lie in ignored regions where they are ignored, and are nobody's boundaries
        if target == IGNORE:
            options["ignore_boundaries"] = False
        self.folded = SegmentationMetrics(len(self.known), **options)
        table = [self.known.index(name) if name in self.known else target for name in self.names]
        table += [IGNORE] * (IGNORE + 1 - len(table))
        self.register_buffer("table", torch.tensor(table, dtype=torch.uint8), persistent=False)

    def update(self, prediction: Tensor, label: Tensor, name: str = "") -> None:
        """Add one image.

        Args:
            prediction: (H, W) class ids 0..K-1. label: (H, W) class ids or 255. name: for messages.
        """
        self.whole.update(prediction, label, name)
        folded, truth = self.table[prediction.long()], self.table[label.long()]
        # where "others" has no id, a new class found is no wrong answer among the known ones: it does not count
        truth = truth.masked_fill(folded == IGNORE, IGNORE)
        self.folded.update(folded.masked_fill(folded == IGNORE, 0), truth, name)

    def compute(self) -> CategoryScores:
        """Scores over everything added, on all processes."""
        folded, whole = self.folded.compute(), self.whole.compute()
        new = [name for name in self.names if name not in self.known]
        # a class that is found but has no label anywhere would have a score of 0, and it is not known better
        labelled = whole["confusion"].sum(1) > 0
        return CategoryScores(
            {metric: dict(zip(self.known, folded[metric].tolist(), strict=True)) for metric in METRICS},
            {
                metric: {
                    name: float(whole[metric][index]) if labelled[index] else float("nan")
                    for index, name in enumerate(self.names)
                    if name in new
                }
                for metric in METRICS
            },
        )

    def reset(self) -> None:
        """Forget all images."""
        self.folded.reset()
        self.whole.reset()


def comparison_rows(before: CategoryScores, after: CategoryScores) -> list[tuple[str, tuple[float, ...]]]:
    """Name and IoU before, after and their difference, then the same for BIoU; of both ``rows``."""
    rows = []
    ours = after.rows()
    for name, old in before.rows().items():
        new = ours[name]
        rows.append((name, tuple(v for i in range(len(METRICS)) for v in (old[i], new[i], new[i] - old[i]))))
    return rows


def forgetting(before: CategoryScores, after: CategoryScores) -> Mapping[str, float]:
    """By how much the mean of the known classes has fallen, for each metric; negative when it has risen."""
    return {metric: before.mean("known", metric) - after.mean("known", metric) for metric in METRICS}

"""Two evaluations of the same photos, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from src.errors import UserError
from src.report.bootstrap import Interval, difference_intervals
from src.report.record import Evaluation, ImageRecords


class Change(NamedTuple):
    """Mean boundary IoU of a photo in both evaluations, 0..1."""

    name: str
    ours: float
    theirs: float

    @property
    def difference(self) -> float:
        return self.ours - self.theirs


class Comparison(NamedTuple):
    """Ours minus theirs.

    Attributes:
        other: the file of the other evaluation.
        images: photos that both have.
        unmatched: photos that only one of them has.
        differences: by metric, over the shared photos, with paired intervals.
        changes: shared photos whose boundary IoU has changed, by the size of the change, the largest first.
    """

    other: str
    images: int
    unmatched: int
    differences: dict[str, Interval]
    changes: list[Change]

    def to_plain(self, class_names: Sequence[str], level: float, most: int = 20) -> dict[str, Any]:
        """For JSON: scores 0..1, each difference as [value, low, high], and the photos that changed most."""
        return {
            "other": self.other,
            "images": self.images,
            "unmatched": self.unmatched,
            "level": level,
            "difference": interval_rows(self.differences, class_names),
            "changed_most": {
                change.name: {"BIoU": round(change.ours, 6), "other": round(change.theirs, 6)}
                for change in self.changes[:most]
            },
        }


def interval_rows(
    intervals: Mapping[str, Interval], class_names: Sequence[str]
) -> dict[str, dict[str, list[float | None]]]:
    """``{"<class>": {"<metric>": [value, low, high]}}`` with a row "mean"; classes that never occur are left out.

    Bounds are None where there is no interval.
    """
    rows: dict[str, dict[str, list[float | None]]] = {}
    for index, name in enumerate([*class_names, "mean"]):
        present = {
            metric: [None if np.isnan(part[index]) else round(float(part[index]), 6) for part in interval]
            for metric, interval in intervals.items()
            if not np.isnan(interval.value[index])
        }
        if present:
            rows[name] = present
    return rows


def check_comparable(
    names: Sequence[str], class_names: Sequence[str], settings: Mapping[str, Any], other: Evaluation
) -> list[str]:
    """Photos that two evaluations share, sorted; known before anything is measured.

    Args:
        names, class_names, settings: photos, classes and settings of the metrics, ours.
        other: theirs.

    Raises:
        UserError: the two have other classes, other settings of the metrics, or no photo in common.
    """
    if tuple(class_names) != other.classes:
        raise UserError(
            f"{other.path} has the classes {', '.join(other.classes)}, this evaluation {', '.join(class_names)}; "
            "only evaluations with the same classes compare"
        )
    for name, value in settings.items():
        theirs_too = other.settings.get(name)
        if None not in (value, theirs_too) and value != theirs_too:  # None: not measured
            raise UserError(
                f"{other.path} was measured with {name}={theirs_too}, this evaluation with {name}={value}; "
                "evaluate one of them again with the other's metrics.* values"
            )
    shared = sorted(set(names) & set(other.images.names))
    if not shared:
        raise UserError(f"{other.path} has no photo in common with this evaluation: was it of another split?")
    return shared


def compare(
    images: ImageRecords,
    class_names: Sequence[str],
    settings: Mapping[str, Any],
    other: Evaluation,
    *,
    samples: int,
    level: float,
    seed: int,
) -> Comparison:
    """Hold an evaluation against another one of the same photos.

    Args:
        images, class_names, settings: ours.
        other: theirs.
        samples, level, seed: of the paired bootstrap, see `bootstrap.score_intervals`.

    Raises:
        UserError: as ``check_comparable``, or the photos have other label maps there.
    """
    shared = check_comparable(images.names, class_names, settings, other)
    ours, theirs = images.take(shared), other.images.take(shared)
    differing = [
        name
        for name, mine, yours in zip(shared, ours.complexity, theirs.complexity, strict=True)
        if not np.isclose(mine, yours, equal_nan=True, rtol=1e-4)
    ]
    if differing:
        raise UserError(
            f"{other.path}: {len(differing)} of {len(shared)} photos have other label maps there, {differing[0]} "
            "for one; only evaluations against the same labels compare"
        )
    changes = [
        Change(*entry)
        for entry in zip(shared, ours.biou.tolist(), theirs.biou.tolist(), strict=True)
        if not np.isnan(entry[1:]).any() and entry[1] != entry[2]
    ]
    return Comparison(
        other=str(other.path),
        images=len(shared),
        unmatched=len(set(images.names) ^ set(other.images.names)),
        differences=difference_intervals(ours, theirs, samples, level, seed),
        changes=sorted(changes, key=lambda change: (-abs(change.difference), change.name)),
    )

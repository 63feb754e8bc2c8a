"""How far scores would move with other photos: bootstrap intervals over images.

A resample draws as many images as there are, with replacement, and scores them as a set: areas are summed
before dividing, as for the set itself. Percentiles of many resamples bound the interval. Whether one evaluation
beats another is asked of the same resamples of both: their difference varies far less than either score.

A class that a resample does not contain is left out of that resample's mean.

    N images   K classes   B resamples
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.report.record import ImageRecords

Scores = dict[str, NDArray[np.float64]]


class Interval(NamedTuple):
    """A score, or a difference of scores, with its interval; each (K + 1,), the last entry is the mean over classes.

    Attributes:
        value: of the set itself.
        low, high: bounds; nan where a class occurs in fewer than two images, of which resamples tell nothing.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def set_scores(images: ImageRecords, weights: NDArray[np.float64]) -> Scores:
    """Score sets that hold each image a number of times.

    Args:
        images: N images.
        weights: (B, N) how often each set holds each image.

    Returns:
        ``IoU``, ``BIoU`` and, where measured, ``BF1``: (B, K + 1), 0..1, the last column the mean over classes as the
        benchmark takes it; nan for classes that a set does not hold.
    """
    scores = {}
    for metric, intersection, union in (
        ("IoU", images.intersection, images.union),
        ("BIoU", images.boundary_intersection, images.boundary_union),
    ):
        ratio = _divided(weights @ intersection.astype(np.float64), weights @ union.astype(np.float64))
        scores[metric] = np.column_stack([ratio, _mean_of_present(ratio)])
    if images.f1 is not None:
        # BF1 is averaged over the classes of an image first, and then over images.
        per_image = np.column_stack([images.f1, _mean_of_present(images.f1)])
        scores["BF1"] = _divided(weights @ np.nan_to_num(per_image), weights @ (~np.isnan(per_image)))
    return scores


def resamples(count: int, samples: int, seed: int) -> NDArray[np.float64]:
    """(B, N) how often each resample holds each of N images; rows sum to N."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=samples).astype(float)


def score_intervals(images: ImageRecords, samples: int, level: float, seed: int) -> dict[str, Interval]:
    """Scores of a set by metric, with bootstrap intervals.

    Args:
        images: N images.
        samples: resamples to draw.
        level: share of the resamples inside the interval, 0..1.
        seed: of the drawing.
    """
    drawn = set_scores(images, resamples(len(images.names), samples, seed))
    return _intervals(_whole(images), drawn, _several(images), level)


def difference_intervals(
    ours: ImageRecords, theirs: ImageRecords, samples: int, level: float, seed: int
) -> dict[str, Interval]:
    """Differences "ours minus theirs" by metric, with intervals of the paired bootstrap.

    Args:
        ours, theirs: the same N images in the same order; metrics that one of them lacks are left out.
        samples, level, seed: see `score_intervals`.

    Raises:
        ValueError: the images are not the same.
    """
    if ours.names != theirs.names:
        raise ValueError("paired differences need the same images in the same order")
    weights = resamples(len(ours.names), samples, seed)
    mine, others = set_scores(ours, weights), set_scores(theirs, weights)
    whole, other_whole = _whole(ours), _whole(theirs)
    shared = [metric for metric in mine if metric in others]
    return _intervals(
        {metric: whole[metric] - other_whole[metric] for metric in shared},
        {metric: mine[metric] - others[metric] for metric in shared},
        _several(ours, theirs),
        level,
    )


def _whole(images: ImageRecords) -> Scores:
    return {name: rows[0] for name, rows in set_scores(images, np.ones((1, len(images.names)))).items()}


def _several(*evaluations: ImageRecords) -> dict[str, NDArray[np.bool_]]:
    """Whether a class, and any class at all, is scored in two images or more: (K + 1,) by metric."""
    scored: dict[str, list[NDArray[np.bool_]]] = {}
    for images in evaluations:
        scored.setdefault("IoU", []).append(images.union > 0)
        scored.setdefault("BIoU", []).append(images.boundary_union > 0)
        if images.f1 is not None:
            scored.setdefault("BF1", []).append(~np.isnan(images.f1))
    result = {}
    for metric, parts in scored.items():
        either = np.logical_or.reduce(parts)
        result[metric] = np.column_stack([either, either.any(1)]).sum(0) > 1
    return result


def _intervals(
    values: Scores, drawn: Scores, several: Mapping[str, NDArray[np.bool_]], level: float
) -> dict[str, Interval]:
    tail = (1 - level) / 2
    result = {}
    for metric, rows in drawn.items():
        low, high = np.full((2, rows.shape[1]), np.nan)
        seen = ~np.isnan(rows).all(0) & several[metric]
        if seen.any():  # nothing is where every label is ignored
            low[seen], high[seen] = np.nanquantile(rows[:, seen], [tail, 1 - tail], axis=0)
        result[metric] = Interval(values[metric], low, high)
    return result


def _divided(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean_of_present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis that skips nan; nan when all are."""
    return _divided(np.nansum(values, axis=-1), (~np.isnan(values)).sum(-1).astype(np.float64))

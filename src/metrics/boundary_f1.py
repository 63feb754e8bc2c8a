"""BF1: the boundary F1 score (Csurka et al., "What is a good evaluation measure for semantic
segmentation?", BMVC 2013), which the paper reports beside boundary IoU.

For one class of one image, precision is the share of the predicted boundary pixels that have a labelled
boundary pixel of that class within a distance, recall is the same with the maps exchanged, and the score
is their harmonic mean. The definition in full:

* The boundary is the one of boundary IoU, one pixel wide: the mask minus its 3x3 erosion, with the image
  border counting as outside. So every class in a map has a boundary.
* Ignored pixels count nowhere and create no boundaries, in the label and in the prediction.
* A class in neither map is not counted (nan). A class in only one of them scores 0.
* Distances are Euclidean and exact.

Benchmarks score a few hundred thousand boundary pixels in images of twelve million, so distances are not
transformed over whole maps: the boundary pixels of all classes are sorted by class, row and column, and
each pixel searches the rows around its own, nearest first, until no closer pixel can exist or the largest
tolerance is passed. Up to that tolerance the distances equal those of an exact Euclidean distance transform
per class and map, and one search serves every tolerance, on every device.

    H W map height and width   K classes   N boundary pixels   T tolerances
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.metrics.boundary import boundary_map
from src.metrics.tolerance import Tolerance
from src.structures import IGNORE


class BoundaryPixels(NamedTuple):
    """Boundary pixels of all classes of a map, sorted by class, row and column.

    Attributes:
        keys: (N,) int64, ascending; two pixels of one class and row differ by their distance, pixels of
            different classes never come near each other (see `boundary_pixels`).
        counts: (K,) int64 pixels per class.
    """

    keys: Tensor
    counts: Tensor


def boundary_f1(
    prediction: Tensor, label: Tensor, num_classes: int, tolerances: Sequence[Tolerance]
) -> Tensor:
    """Score one image.

    Args:
        prediction: (H, W) uint8 class ids 0..K-1.
        label: (H, W) uint8, 0..K-1 or 255, on the prediction's device.
        num_classes: K.
        tolerances: T distances.

    Returns:
        (T, K) float32 scores 0..1, nan for classes in neither map.
    """
    height, width = label.shape
    limits = [tolerance.squared_limit(height, width) for tolerance in tolerances]
    margin = math.isqrt(max(limits))
    prediction = prediction.masked_fill(label == IGNORE, IGNORE)
    predicted = boundary_pixels(prediction, num_classes, margin)
    labelled = boundary_pixels(label, num_classes, margin)

    stride = width + margin
    precision = _matched_share(predicted, labelled, stride, limits)
    recall = _matched_share(labelled, predicted, stride, limits)
    score = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    present = (predicted.counts + labelled.counts) > 0
    return score.masked_fill(~present.cpu(), math.nan).float().to(label.device)


def boundary_pixels(label: Tensor, num_classes: int, margin: int) -> BoundaryPixels:
    """Collect the boundary pixels of all classes.

    A pixel's key is its index in an array of (K, H + margin, W + margin), so whatever lies within the
    margin in the same row and class lies within the margin in the order of keys, and nothing else does.

    Args:
        label: (H, W) uint8, 0..K-1 or 255.
        num_classes: K.
        margin: largest distance to search, in pixels.
    """
    height, width = label.shape
    index = boundary_map(label, 1, ignore_boundaries=False).flatten().nonzero().squeeze(1)
    classes = label.flatten()[index]
    # Indices are in the order of rows already, so a stable sort of the small class ids is all it takes.
    classes, order = classes.sort(stable=True)
    index, classes = index[order], classes.long()
    row, column = index // width, index % width
    keys = (classes * (height + margin) + row) * (width + margin) + column
    return BoundaryPixels(keys, torch.bincount(classes, minlength=num_classes))


def nearest_squared_distance(query: Tensor, reference: Tensor, stride: int, limit: int) -> Tensor:
    """Squared distance of each query pixel to the nearest reference pixel of its class.

    Args:
        query: (N,) int64 ascending keys, see `boundary_pixels`.
        reference: (M,) int64 ascending keys of the other map, with the same margin.
        stride: width of a row of keys, W + margin.
        limit: largest squared distance of interest; the margin is the integer root of it.

    Returns:
        (N,) int64, exact up to the limit and larger than the limit beyond it.
    """
    infinity = torch.iinfo(torch.int64).max // 4  # differences of keys to it must not overflow
    sentinel = torch.full((1,), infinity, dtype=torch.int64, device=reference.device)
    search = partial(_search_rows, torch.cat([-sentinel, reference, sentinel]), stride, limit)
    if query.device.type != "cpu":
        return search(query)
    # Chunks stay in the cache, and are too small for torch to start threads of its own for each operation.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return torch.cat(list(pool.map(search, query.split(2**15))))


def _search_rows(reference: Tensor, stride: int, limit: int, query: Tensor) -> Tensor:
    """`nearest_squared_distance` for a reference between sentinels."""
    margin = math.isqrt(limit)
    nearest = torch.full_like(query, limit + 1)
    searching = torch.arange(len(query), device=query.device)
    keys, best = query, nearest
    for distance in range(margin + 1):
        for row in sorted({-distance, distance}):
            target = keys + row * stride
            right = _first_not_below(reference, target)
            across = torch.minimum(reference[right] - target, target - reference[right - 1])
            across = across.clamp(max=margin + 1)  # further is another row, or too far
            best = torch.minimum(best, across**2 + distance**2)
        nearest[searching] = best
        # Rows further out cannot hold anything closer than the best so far.
        improvable = best > (distance + 1) ** 2
        searching, keys, best = searching[improvable], keys[improvable], best[improvable]
    return nearest


def _first_not_below(ascending: Tensor, values: Tensor) -> Tensor:
    """Index of the first entry that is not below each value; NumPy's search does not start threads."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.searchsorted(ascending.numpy(), values.numpy()))
    return torch.searchsorted(ascending, values)


def _matched_share(
    query: BoundaryPixels, reference: BoundaryPixels, stride: int, limits: Sequence[int]
) -> Tensor:
    """(T, K) float64 share of each class's query pixels within each squared limit; 0 without pixels.

    On the CPU, because Apple's GPUs have no float64.
    """
    num_classes = len(query.counts)
    classes = torch.repeat_interleave(query.counts)
    # Without a reference pixel of the class nothing can match.
    searchable = (reference.counts > 0)[classes]
    classes = classes[searchable]
    squared = nearest_squared_distance(query.keys[searchable], reference.keys, stride, max(limits))
    matched = [torch.bincount(classes[squared <= limit], minlength=num_classes) for limit in limits]
    return torch.stack(matched).cpu().double() / query.counts.cpu().clamp(min=1)

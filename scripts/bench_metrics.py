"""Time IoU and boundary IoU of a 12 megapixel pair against evaluation class by class, in one run.

    python -m scripts.bench_metrics

The pair is drawn: seven classes in large regions with ragged outlines, and a prediction whose outlines
are off by some pixels. All ways must give the same counts. They take turns, and the fastest of each is
compared, because other programs can only make a turn slower. Boundary F1 is timed beside an exact distance
transform per class and map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from src.metrics.boundary import boundary_radius
from src.metrics.boundary_f1 import boundary_f1
from src.metrics.overlap import count_overlap
from src.metrics.region import region_areas
from src.metrics.tolerance import CURVE

CLASSES = 7


def draw_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a label map, (H, W) uint8."""
    generator = torch.Generator().manual_seed(0)

    def noise(cells: int) -> torch.Tensor:
        values = torch.randn(1, CLASSES, cells * 3 // 4, cells, generator=generator)
        return F.interpolate(values, (height, width), mode="bilinear")[0]

    scores = noise(12) + 0.1 * noise(160)
    label = scores.argmax(0).byte().numpy()
    prediction = (scores + 0.05 * noise(120)).argmax(0).byte().numpy()
    return prediction, label


def boundary(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mask minus its erosion; the image border counts as outside."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask & (cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=radius)[1:-1, 1:-1] == 0)


def count_class_by_class(prediction: np.ndarray, label: np.ndarray, radius: int) -> np.ndarray:
    """The definition on masks of bytes: (K, 4) region intersection and union, boundary intersection and union."""
    valid = label != 255
    counts = []
    for index in range(CLASSES):
        predicted, labelled = prediction == index, label == index
        edges = boundary(predicted, radius), boundary(labelled, radius)
        pairs = (predicted & valid, labelled & valid), edges
        counts.append(
            [operator(*pair).sum() for pair in pairs for operator in (np.logical_and, np.logical_or)]
        )
    return np.array(counts)


def count_with_torch(prediction: np.ndarray, label: np.ndarray, radius: int) -> np.ndarray:
    """The same (K, 4) counts as evaluation code usually has them: int64 maps, `torch.histc` of selected pixels."""
    predicted, labelled = torch.from_numpy(prediction).long(), torch.from_numpy(label).long()

    def areas(values: torch.Tensor) -> torch.Tensor:
        return torch.histc(values.float(), CLASSES, 0, CLASSES - 1).long()

    valid = labelled != 255
    first, second = predicted[valid], labelled[valid]
    intersection = areas(first[first == second])
    union = areas(first) + areas(second) - intersection
    counts = []
    for index in range(CLASSES):
        edges = [boundary((labels == index).numpy(), radius) for labels in (predicted, labelled)]
        counts.append([np.logical_and(*edges).sum(), np.logical_or(*edges).sum()])
    return np.column_stack([intersection, union, counts])


def count_in_one_pass(prediction: np.ndarray, label: np.ndarray, radius: int) -> np.ndarray:
    """The same (K, 4) counts by `src.metrics`."""
    counts = count_overlap(torch.from_numpy(prediction), torch.from_numpy(label), CLASSES, radius)
    region = region_areas(counts.confusion)
    columns = (region.intersection, region.union, counts.boundary.intersection, counts.boundary.union)
    return torch.stack(columns, 1).numpy()


def transform_distances(prediction: np.ndarray, label: np.ndarray) -> None:
    """What boundary F1 takes by distance transforms, without counting matches."""
    square = np.ones((3, 3), np.uint8)
    for labels in (prediction, label):
        for index in range(CLASSES):
            mask = (labels == index).astype(np.uint8)
            outside = 1 - (mask - cv2.erode(mask, square, borderType=cv2.BORDER_CONSTANT, borderValue=0))
            cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def fastest_in_turns(functions: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    """Seconds of the fastest call of each function."""
    best = [float("inf")] * len(functions)
    for _ in range(turns):
        for index, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=3072)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()

    pair = draw_pair(arguments.height, arguments.width)
    radius = boundary_radius(arguments.height, arguments.width)
    ways = [count_class_by_class, count_with_torch, count_in_one_pass]
    results = [way(*pair, radius) for way in ways]
    if not all(np.array_equal(result, results[0]) for result in results):
        raise SystemExit("the counts differ:\n" + "\n".join(map(str, results)))

    calls = [partial(way, *pair, radius) for way in ways]
    by_class, by_torch, fast = fastest_in_turns(calls, arguments.turns)
    print(
        f"{arguments.width}x{arguments.height}, {CLASSES} classes, {torch.get_num_threads()} threads, equal counts"
    )
    print(f"IoU + BIoU   one pass                {fast * 1e3:7.1f} ms")
    print(f"             class by class, bytes   {by_class * 1e3:7.1f} ms   {by_class / fast:.1f}x")
    print(f"             class by class, torch   {by_torch * 1e3:7.1f} ms   {by_torch / fast:.1f}x")

    maps = [torch.from_numpy(labels) for labels in pair]
    slow, fast = fastest_in_turns(
        [lambda: transform_distances(*pair), lambda: boundary_f1(maps[0], maps[1], CLASSES, CURVE)],
        max(1, arguments.turns // 2),
    )
    print(f"BF1          search                  {fast * 1e3:7.1f} ms")
    print(f"             distance transforms     {slow * 1e3:7.1f} ms   {slow / fast:.1f}x")


if __name__ == "__main__":
    main()

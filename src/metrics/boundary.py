"""Boundaries of all classes of a label map in one pass.

The boundary of a class is its mask minus the erosion of the mask, where everything outside of the image
counts as not the class (Boundary IoU, Cheng et al., CVPR 2021; "MaSS13K: A Matting-level Semantic
Segmentation Benchmark", CVPR 2025, section 5). Eroding n times with a 3x3 square is eroding once with a
(2n+1)x(2n+1) square, and a pixel survives the erosion of its own class exactly if that whole window
carries one class. So minimum and maximum of the label map over the window decide for every class at once:

    boundary of its own class  <=>  minimum != maximum, or the window leaves the image.

The CPU takes OpenCV's filters, other devices take max pooling; the maps are equal.

    H W map height and width
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.structures import IGNORE


def boundary_radius(height: int, width: int, ratio: float = 0.001) -> int:
    """Number of 3x3 erosions: the ratio of the image's diagonal in whole pixels, at least 1.

    The benchmark takes 0.001, which is 5 px at 4096x3072; the Boundary IoU API takes 0.02.
    """
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_map(label: Tensor, radius: int, *, ignore_boundaries: bool) -> Tensor:
    """Mark the pixels that lie on the boundary of their own class.

    Args:
        label: (H, W) uint8 label map.
        radius: width of the boundary in pixels, at least 1.
        ignore_boundaries: whether an ignored region bounds the classes beside it, as another class
            would. Without it, ignored pixels are taken to continue whatever class lies beside them.

    Returns:
        (H, W) bool, False at ignored pixels.
    """
    height, width = label.shape
    if label.device.type != "cpu":
        return _pooled_boundary(label, radius, ignore_boundaries) & (label != IGNORE)
    pixels = label.numpy()
    result = np.empty((height, width), np.uint8)
    for first, last in row_strips(height, width):
        result[first:last] = boundary_rows(pixels, first, last, radius, ignore_boundaries=ignore_boundaries)
    return torch.from_numpy(result).bool() & (label != IGNORE)


def row_strips(height: int, width: int, pixels: int = 2**18) -> list[tuple[int, int]]:
    """Cut an image into strips of whole rows, so small that the maps of a strip stay in the cache.

    Returns:
        [first, last) rows of each strip, in order.
    """
    rows = max(1, pixels // width)
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def boundary_rows(
    label: np.ndarray,
    first: int,
    last: int,
    radius: int,
    *,
    ignore_boundaries: bool,
    scratch: np.ndarray | None = None,
) -> np.ndarray:
    """`boundary_map` for the rows [first, last) of an array; 255 on a boundary, 0 elsewhere.

    The value at ignored pixels is arbitrary.

    Args:
        label: (H, W) uint8.
        first, last: rows.
        radius, ignore_boundaries: see `boundary_map`.
        scratch: (2, at least last - first + 2 radius, W) uint8 to work in, which the result is a part of: fresh
            memory for each strip costs time.
    """
    height, width = label.shape
    top = max(0, first - radius)
    strip = label[top : last + radius]
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    if scratch is None:
        scratch = np.empty((2, *strip.shape), np.uint8)
    lowest, highest = scratch[:, : len(strip)]
    # OpenCV's border never wins a minimum or maximum; the image's own border is treated below.
    cv2.erode(strip, window, dst=lowest)
    if ignore_boundaries:
        cv2.dilate(strip, window, dst=highest)
    else:
        # IGNORE is the largest uint8, so it never wins the minimum; adding 1 wraps it to 0, the smallest.
        highest[:] = cv2.dilate(strip + np.uint8(1), window)
        highest -= np.uint8(1)
    boundary = lowest[first - top : last - top]
    cv2.compare(boundary, highest[first - top : last - top], cv2.CMP_NE, dst=boundary)
    boundary[: max(0, radius - first)] = 255
    boundary[max(0, height - radius - first) :] = 255
    boundary[:, :radius] = 255
    boundary[:, max(0, width - radius) :] = 255
    return boundary


def _pooled_boundary(label: Tensor, radius: int, ignore_boundaries: bool) -> Tensor:
    """(H, W) bool boundary map by max pooling, which every device has; arbitrary at ignored pixels."""
    height, width = label.shape
    dtype = torch.float16 if label.is_cuda else torch.float32  # both hold 0..255 exactly
    values = label[None, None].to(dtype)
    upper = values if ignore_boundaries else values.masked_fill(values == IGNORE, -1)
    boundary = (_window_maximum(upper, radius) != -_window_maximum(-values, radius))[0, 0]
    boundary[:radius] = True
    boundary[max(0, height - radius) :] = True
    boundary[:, :radius] = True
    boundary[:, max(0, width - radius) :] = True
    return boundary


def _window_maximum(values: Tensor, radius: int) -> Tensor:
    """(1, 1, H, W) maximum over the (2 radius + 1)^2 window, rows first and then columns."""
    size = 2 * radius + 1
    rows = F.max_pool2d(values, (1, size), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (size, 1), stride=1, padding=(radius, 0))

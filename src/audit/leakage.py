"""Recognising a photo again, re-encoded or resized, by a thumbnail.

N M photos   T pixels of a thumbnail
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_EDGE = 32  # of thumbnails, pixels
# Root mean square difference of thumbnails: levels of 255, and a share of their contrast for foggy and dark photos.
# A copy of half the size in JPEG quality 50 differs by 1.5 levels, neighbouring frames of a video by 4.
_SAME_LEVELS, _SAME_CONTRAST = 2.0, 0.1


def thumbnail(photo: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T,) grey levels 0..255 of a reduced (H, W, 3) photo."""
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_EDGE, _EDGE), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32).ravel()


def same_photos(
    first: NDArray[np.float32], second: NDArray[np.float32], block: int = 1024
) -> list[tuple[int, int]]:
    """Which photos of two sets show the same.

    Args:
        first: (N, T) thumbnails.
        second: (M, T) thumbnails.
        block: photos of the first set to hold against all others at once, which bounds the memory.

    Returns:
        Index in the first and in the second set of each pair.
    """
    pixels = second.shape[1]
    largest = pixels * _SAME_LEVELS**2
    pairs = []
    for start in range(0, len(first), block):
        ours = first[start : start + block]
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one product instead of all differences. Single precision is good for
        # some hundreds of 60 million at worst, so candidates are measured again.
        squared = (ours**2).sum(1)[:, None] + (second**2).sum(1) - 2 * ours @ second.T
        limits = np.minimum(largest, pixels * ours.var(1) * _SAME_CONTRAST**2)
        for row, column in np.argwhere(squared < largest + 1000).tolist():
            if ((ours[row] - second[column]) ** 2).sum() <= limits[row]:
                pairs.append((start + row, column))
    return pairs

"""Training targets that are computed from label maps.

H, W  height and width of the label map
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from src.structures import IGNORE

_SQUARE = np.ones((2, 2), dtype=np.uint8)
_NEIGHBOURS = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=np.uint8)  # and the pixel itself


def boundary_map(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where the edge head should see a class boundary (the edge supervision of the paper's EGF module).

    A pixel is boundary if its class differs from the pixel above it, the pixel to its right or either
    diagonal pixel below it, neither of the two being ``IGNORE``; the result is dilated by a 2x2 square. The
    released training code then compares this 0/1 map against 255 and so trains on a map of ones; that is
    not reproduced.

    Args:
        label: (H, W) uint8 class ids.

    Returns:
        (H, W) uint8, 1 on boundaries and 0 elsewhere.
    """
    # Classes differ where the lowest among the pixel and its neighbours is not the highest. IGNORE is the largest
    # number, so it is never the lowest; one more makes it 0, which is never the highest.
    lowest = cv2.erode(label, _NEIGHBOURS)
    highest = cv2.dilate(label + np.uint8(1), _NEIGHBOURS)
    boundary = (lowest + np.uint8(1) != highest) & (label != IGNORE)
    return cv2.dilate(boundary.view(np.uint8), _SQUARE).astype(np.uint8, copy=False)

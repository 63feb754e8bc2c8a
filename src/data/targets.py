"""Training targets that are computed from label maps.

H, W  height and width of the label map
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from src.structures import IGNORE

_SQUARE = np.ones((2, 2), dtype=np.uint8)


def boundary_map(label: NDArray[np.uint8], ignore: int = IGNORE) -> NDArray[np.uint8]:
    """Where the edge head should see a class boundary (the edge supervision of the paper's EGF module).

    A pixel is boundary if its class differs from the pixel above it, the pixel to its right or either
    diagonal pixel below it, neither of the two being ignored; the result is dilated by a 2x2 square. The
    released training code then compares this 0/1 map against 255 and so trains on a map of ones; that is
    not reproduced.

    Args:
        label: (H, W) uint8 class ids.
        ignore: id of pixels that form no boundary.

    Returns:
        (H, W) uint8, 1 on boundaries and 0 elsewhere.
    """
    labelled = label != ignore
    all_labelled = bool(labelled.all())
    boundary = np.zeros(label.shape, dtype=bool)

    def mark(here: tuple[slice, slice], there: tuple[slice, slice]) -> None:
        differ = label[here] != label[there]
        if not all_labelled:
            differ &= labelled[here]
            differ &= labelled[there]
        boundary[here] |= differ

    every, first, last = (
        slice(None),
        slice(None, -1),
        slice(1, None),
    )  # first, last: all but the last, the first
    mark((last, every), (first, every))  # above
    mark((every, first), (every, last))  # right
    mark((first, first), (last, last))  # below right
    mark((first, last), (last, first))  # below left
    return cv2.dilate(boundary.view(np.uint8), _SQUARE).astype(np.uint8, copy=False)

"""Deciding the rule of varied crops from a small map of the labels, without decoding them.

A block of 16x16 pixels usually shows one class. How often a crop shows such a block's class is a product of
two counts, however the crop is scaled; only blocks with several classes leave doubt. So a map with one entry
per block bounds the share of every class, and most crops are accepted or refused with certainty. The rest is
for the label map itself to decide: the decisions are exactly those of the full label map.

    H, W  height and width of a label map   h, w  blocks: ceil(H / 16), ceil(W / 16)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.structures import IGNORE

BLOCK = 16
MIXED = IGNORE - 1  # free: class ids are 0..253


class LabelPreview(NamedTuple):
    """One entry per block of a label map.

    Attributes:
        blocks: (h, w) uint8: the class id, or ``IGNORE``, that fills the block; ``MIXED`` for several.
    """

    blocks: NDArray[np.uint8]

    def is_varied(
        self, rows: NDArray[np.intp], columns: NDArray[np.intp], max_class_share: float
    ) -> bool | None:
        """Whether the pixels at ``rows`` x ``columns`` are varied, see ``src.data.crops.is_varied``.

        Args:
            rows, columns: ascending coordinates in the label map; repeated ones count again.
            max_class_share: in (0, 1).

        Returns:
            None where the blocks do not tell.
        """
        top, left = int(rows[0]) // BLOCK, int(columns[0]) // BLOCK
        heights, widths = np.bincount(rows // BLOCK - top), np.bincount(columns // BLOCK - left)
        blocks = self.blocks[top : top + len(heights), left : left + len(widths)]
        counts = np.bincount(blocks.ravel(), np.outer(heights, widths).ravel(), minlength=256)
        doubtful = counts[MIXED]
        certain = counts[:MIXED]
        labelled, largest = certain.sum(), certain.max()
        # One pixel of slack, because the full decision is made in single precision.
        if largest + doubtful < max_class_share * (labelled + doubtful) - 1:
            return True  # even if all the doubtful pixels were of the largest class
        if largest > max_class_share * (labelled + doubtful) + 1:
            return False  # even if they were of another
        if doubtful == 0 and np.count_nonzero(certain) < 2:
            return False
        return None


def preview_blocks(label: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Reduce a label map to blocks.

    Args:
        label: (H, W) uint8 ids of any kind.

    Returns:
        (h, w) uint8, the id at the first pixel of each block, and (h, w) bool, whether it has other ids too.
    """
    rows, columns = (np.arange(0, edge, BLOCK) for edge in label.shape)
    lowest, highest = (
        extreme.reduceat(extreme.reduceat(label, rows, axis=0), columns, axis=1)
        for extreme in (np.minimum, np.maximum)
    )
    return label[::BLOCK, ::BLOCK].copy(), lowest != highest

"""Windows over a picture too large to treat at once, and weights that blend what they give.

Pure geometry. Everything is separable: spans along one side, with weights, make windows along both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """A range of rows or columns, in pixels; ``stop`` is not part of it."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def spread(length: int, size: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Spans of about equal size that cover 0..length, each overlapping the next by ``overlap``.

    Args:
        length: to cover, pixels.
        size: of the largest span, pixels; at least three overlaps, so that no three spans meet.
        overlap: pixels. multiple: of which every start is one.

    Raises:
        ValueError: the numbers contradict each other.
    """
    step = (size - overlap) // multiple * multiple
    if overlap < 0 or step < max(1, 2 * overlap):
        raise ValueError(
            f"windows of {size} px cannot overlap by {overlap} px: give at most a third of the window"
        )
    if length <= size:
        return [Span(0, length)]
    count = -(-(length - overlap) // step)
    step = -(-(length - overlap) // (count * multiple)) * multiple
    return [Span(start, min(start + step + overlap, length)) for start in range(0, length - overlap, step)]


def blend_weights(spans: list[Span], margin: int) -> list[Tensor]:
    """Weights along every span; over each pixel they sum to 1.

    Where two spans overlap the weight passes smoothly from one to the other, as a raised cosine. Next to a span's
    end, where its picture ends and its neighbour's goes on, it is 0.

    Args:
        spans: from ``spread``. margin: pixels of weight 0 at inner ends; less where the overlap is shorter.
    """
    weights = [torch.ones(span.length) for span in spans]
    for index, (left, right) in enumerate(pairwise(spans)):
        overlap = left.stop - right.start
        zeros = min(margin, (overlap - 1) // 2)
        position = (torch.arange(overlap) - zeros + 0.5) / (overlap - 2 * zeros)
        rising = torch.sin(position.clamp(0, 1) * (torch.pi / 2)) ** 2
        weights[index + 1][:overlap] *= rising
        weights[index][left.length - overlap :] *= 1 - rising
    return weights

"""What precise and pseudo labels together say about every pixel, and how far each statement can be believed.

"MaSS13K: A Matting-level Semantic Segmentation Benchmark" (CVPR 2025) extends a trained model to a new class by label
decoupling: precise masks supervise with the weight 1 + lambda w, which trusts boundaries, masks from another model
with a reversed weight, which distrusts them. Its form, its constants and the treatment of "others" are not published;
what follows is this project's reading (docs/new_categories.md).

Precise labels call a new object "others". They know where it ends, if a named class begins there, but not where it
ends inside of "others". So pixels come in two kinds. At a *closed* pixel the precise label names a class, and that
decides for every mask. At an *open* pixel it says "others" (or nothing), and pseudo labels decide between the new
classes and "others"; for masks of the other classes the precise label still decides.

K classes, N new classes, H W map size; channel 0 of (N+1, H, W) maps is "none of the new classes", channel n the n-th
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from src.structures import CERTAIN, IGNORE

_SURE = 0.5  # a class whose absence is believed less than this anywhere may be there: scores from 0.25 on


class Evidence(NamedTuple):
    """What is known of one image.

    Attributes:
        closed: (H, W) bool, the precise label decides for all masks.
        open: (H, W) bool, pseudo labels decide between "others" and the new classes. Neither: nothing is known.
        trust: (N+1, H, W) how far the pseudo labels' decision about each alternative is believed, 0..1.
        near: (N+1, H, W) bool, pixels beside a boundary of the pseudo mask.
        doubtful: (N,) bool, new classes that are not labelled but may be there.
        labelled: whether precise labels exist here at all.
    """

    closed: Tensor
    open: Tensor
    trust: Tensor
    near: Tensor
    doubtful: Tensor
    labelled: bool


def proximity(masks: Tensor, kernel: int) -> Tensor:
    """w of ``boundary_weight``, but the image's border is no boundary: a model's mask just goes on there.

    Args:
        masks: (M, H, W) float 0/1. kernel: odd side of the averaging window, pixels.
    """
    average = F.avg_pool2d(masks[:, None], kernel, 1, kernel // 2, count_include_pad=False)[:, 0]
    return (average - masks).abs()


def reversed_weight(masks: Tensor, kernel: int = 5, strength: float = 5.0) -> Tensor:
    """max(0, 1 - strength w): 1 in the interior, falling with w, 0 at every pixel that touches a boundary.

    With the constants of the precise weight (5 and 5) a straight boundary has weight 0 on the two pixels of either
    side and 1 from the third on.

    Args:
        masks: (M, H, W) float 0/1. kernel: odd side of the averaging window, pixels. strength: lambda.

    Returns:
        (M, H, W) in [0, 1].
    """
    weight = (1 - strength * proximity(masks, kernel)).clamp(min=0)
    highest = F.max_pool2d(masks[:, None], 3, 1, 1)[:, 0]
    lowest = -F.max_pool2d(-masks[:, None], 3, 1, 1)[:, 0]
    return weight.masked_fill(highest != lowest, 0)


def alternatives(pseudo: Tensor) -> Tensor:
    """Scores (N+1, H, W) in 0..1 of "none" (1 - the largest) and of every new class, from (N, H, W) uint8."""
    scores = pseudo.float() / CERTAIN
    return torch.cat((1 - scores.amax(0, keepdim=True), scores))


def confidence(pseudo: Tensor) -> Tensor:
    """How clearly the pseudo scores say for each alternative that it is there, or that it is not.

    The lead of the highest score over the second for the alternative that has it, and over the alternative for the
    others. One new class of score s gives |2 s - 1| for both alternatives.

    Args:
        pseudo: (N, H, W) uint8, 0..254.

    Returns:
        (N+1, H, W) in [0, 1].
    """
    scores = alternatives(pseudo)
    first, second = scores.topk(2, dim=0).values
    return torch.where(scores == first, first - second, first - scores)


def pseudo_masks(pseudo: Tensor) -> Tensor:
    """(N+1, H, W) float 0/1 masks that the scores (N, H, W) make; channel 0 is where no new class leads."""
    scores = alternatives(pseudo)
    masks = scores == scores.amax(0)
    masks[1:] &= scores[1:] > scores[0]
    return masks.float()


@torch.no_grad()
def weigh(
    label: Tensor, pseudo: Tensor, new: Tensor, others: int, kernel: int, strength: float, reverse: bool
) -> Evidence:
    """Weigh the pseudo labels of one image.

    Args:
        label: (H, W) uint8 class ids, precise labels whose "others" are replaced by new classes where pseudo labels
            say so.
        pseudo: (N, H, W) uint8 scores of the new classes.
        new: (N,) their class ids.
        others: class id that precise labels give to new objects, or ``IGNORE``.
        kernel, strength: of ``reversed_weight``.
        reverse: whether trust falls towards boundaries of the pseudo labels; otherwise it is their confidence alone.
    """
    split = torch.isin(label, new.to(label)) | (label == others)
    closed = ~split & (label != IGNORE)
    # Nothing but new classes: an image that has no precise labels, where pseudo labels are all there is.
    labelled = bool((closed | (label == others) & (label != IGNORE)).any())
    known = split | (label == IGNORE) & (not labelled)
    sure = confidence(pseudo)
    masks = pseudo_masks(pseudo)
    trust = sure * reversed_weight(masks, kernel, strength) if reverse else sure
    present = torch.isin(new.to(label), label)
    doubtful = ((sure[1:] < _SURE) & known).flatten(1).any(1) & ~present
    return Evidence(closed, known, trust, proximity(masks, kernel) > 0, doubtful, labelled)

"""From query predictions to class scores (MaskFormer, NeurIPS 2021, semantic inference).

B batch, Q queries, K classes, h w size of the mask logits, H W size of the result, n rows of a band
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from src.inference.bands.rows import DEVICE_BAND_BYTES, bands, resize_band, source_rows
from src.structures import MaskPrediction

BAND_BYTES = 32 * 2**20
"""Memory of one band of full-size mask logits on a CPU; larger bands leave the cache."""


def class_probabilities(class_logits: Tensor) -> Tensor:
    """(..., Q, K+1) logits -> (..., Q, K) float32: softmax over all, then "no object" is dropped."""
    return class_logits.float().softmax(-1)[..., :-1]


def telling_queries(classes: Tensor, epsilon: float) -> Tensor:
    """Queries without which no score changes by more than ``epsilon``.

    A query adds its class probabilities, times a sigmoid below 1, to the scores. So leaving queries out lowers any
    score by at most the sum of their probabilities of all classes, and a label can change only where its score
    leads by less than that. Those that say "no object" most clearly are left out, as many as the bound allows.

    Args:
        classes: (Q, K) class probabilities, without "no object". epsilon: at least 0.

    Returns:
        indices, ascending; at least one.
    """
    said, order = classes.cpu().double().sum(1).sort()  # Apple's GPUs have no float64
    count = int((said.cumsum(0) <= epsilon).sum())
    return order[min(count, len(order) - 1) :].sort().values.to(classes.device)


def semantic_scores(prediction: MaskPrediction, size: tuple[int, int]) -> Tensor:
    """Scores of every class at every pixel.

    Mask logits are resized bilinearly to ``size``; the score of class c is the sum over queries of
    softmax(class)[c] times sigmoid(mask). The sum is not normalised, and "no object" is dropped after softmax.

    Args:
        prediction: of the network. size: height and width, pixels.

    Returns:
        (B, K, H, W) float32, at least 0.
    """
    masks = F.interpolate(prediction.mask_logits.float(), size=size, mode="bilinear", align_corners=False)
    classes = class_probabilities(prediction.class_logits)
    return torch.einsum("bqk,bqhw->bkhw", classes, masks.sigmoid_())


def score_bands(
    classes: Tensor,
    mask_rows: Callable[[int, int], Tensor],
    source_height: int,
    size: tuple[int, int],
    band_bytes: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """``semantic_scores`` in bands of rows, so that no full-size map of all queries exists.

    Args:
        classes: (B, Q, K) class probabilities.
        mask_rows: gives the mask logits (B, Q, stop - start, w) of a range of source rows.
        source_height: h. size: H and W, pixels.
        band_bytes: memory of one band's resized logits; by default as suits the device.

    Yields:
        the band's first row, and its scores (B, K, n, W) float32; bands come from top to bottom.
    """
    batch, queries = classes.shape[:2]
    height, width = size
    if band_bytes is None:
        band_bytes = BAND_BYTES if classes.device.type == "cpu" else DEVICE_BAND_BYTES
    held, top = None, 0
    # (B, K, Q): with classes as rows the product takes half the time that it takes with queries as rows
    by_class = classes.transpose(1, 2).contiguous()
    for start, stop in bands(height, max(1, band_bytes // (4 * batch * queries * width))):
        rows = source_rows(start, stop, height, source_height, classes)
        held, top = _continued(held, top, mask_rows, rows.start, rows.stop)
        channels_last = held.float().contiguous(memory_format=torch.channels_last)
        masks = resize_band(channels_last, rows, width)
        with torch.autocast(masks.device.type, enabled=False):  # half precision would blur near ties
            pixels = masks.sigmoid_().permute(0, 2, 3, 1).flatten(1, 2)  # (B, n W, Q)
            scores = pixels @ by_class.mT
        yield start, scores.view(batch, stop - start, width, -1).permute(0, 3, 1, 2)


def best_class(scores: Tensor) -> Tensor:
    """(..., K, n, W) scores -> (..., n, W) class of the highest one."""
    return scores.max(-3).indices  # on a CPU several times faster than argmax


def _continued(
    held: Tensor | None, top: int, mask_rows: Callable[[int, int], Tensor], start: int, stop: int
) -> tuple[Tensor, int]:
    """Rows start..stop, of which those in ``held`` (from row ``top`` on) are not computed again."""
    if held is None or top + held.shape[2] <= start:
        return mask_rows(start, stop), start
    known = held[:, :, start - top :]
    fresh = start + known.shape[2]
    return (torch.cat((known, mask_rows(fresh, stop)), dim=2) if fresh < stop else known), start

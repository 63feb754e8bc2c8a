"""Inference on a whole image, with its full-size maps made in bands.

B batch (1 here), Q queries, K classes, D query width, H W result, h w mask features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.inference.rows import resize_band, source_rows
from src.inference.semantic import class_probabilities, score_bands


class Band(NamedTuple):
    """Rows of a prediction at the photo's size.

    Attributes:
        top: first row.
        scores: (K, n, W) float32 class scores.
        edges: (n, W) float32 probability of a class boundary, or None when the network predicts none.
    """

    top: int
    scores: Tensor
    edges: Tensor | None


class DensePrediction:
    """A prediction whose maps are computed when they are asked for, a band of rows at a time.

    Args:
        classes: (1, Q, K) class probabilities.
        mask_rows: gives mask logits (1, Q, stop - start, w) of a range of rows of the mask features.
        height: h, rows of the mask features.
        edge_logits: (1, 1, h', w') or None.
    """

    def __init__(
        self,
        classes: Tensor,
        mask_rows: Callable[[int, int], Tensor],
        height: int,
        edge_logits: Tensor | None,
    ) -> None:
        self.classes = classes
        self._mask_rows, self._height, self._edge_logits = mask_rows, height, edge_logits

    @torch.inference_mode()
    def bands(self, size: tuple[int, int]) -> Iterator[Band]:
        """Scores and edges at a size (H, W), from top to bottom."""
        for top, scores in score_bands(self.classes, self._mask_rows, self._height, size):
            edges = self._edges(top, top + scores.shape[2], size)
            yield Band(top, scores[0], edges)

    def _edges(self, start: int, stop: int, size: tuple[int, int]) -> Tensor | None:
        if self._edge_logits is None:
            return None
        logits = self._edge_logits.float()
        rows = source_rows(start, stop, size[0], logits.shape[2], logits.device)
        return resize_band(logits[:, :, rows.start : rows.stop], rows, size[1])[0, 0].sigmoid()

    def label_map(self, size: tuple[int, int]) -> Tensor:
        """(H, W) uint8 class of the highest score."""
        labels = torch.empty(size, dtype=torch.uint8, device=self.classes.device)
        for band in self.bands(size):
            labels[band.top : band.top + band.scores.shape[1]] = band.scores.argmax(0)
        return labels


@torch.inference_mode()
def predict_whole(network: Any, image: Tensor) -> DensePrediction:
    """Run a network on one image.

    Args:
        network: a segmenter in evaluation mode. image: (3, H, W) uint8 RGB on the network's device.
    """
    with _fast_masks(network.transformer_decoder):
        pixels = network.pixel_features(network.normalise(image)[None])
        last = network.transformer_decoder(pixels)[-1]

    def mask_rows(start: int, stop: int) -> Tensor:
        return last._replace(mask_features=last.mask_features[:, :, start:stop]).mask_logits

    classes = class_probabilities(last.class_logits)
    return DensePrediction(classes, mask_rows, last.mask_features.shape[2], pixels.edge_logits)


@torch.inference_mode()
def predict_labels(network: Any, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map of one image, as evaluation needs it.

    Args:
        network: a segmenter in evaluation mode; it is not changed.
        image: (3, H, W) uint8 RGB on the network's device; both sides at least 64.
        size: height and width of the label map, pixels.

    Returns:
        (*size) uint8 on the same device.
    """
    return predict_whole(network, image).label_map(size)


@contextmanager
def _fast_masks(decoder: nn.Module) -> Iterator[None]:
    """Compute attention masks at the memories' size inside the block: the same masks for fewer products."""
    before = getattr(decoder, "masks_at_memory_size", None)
    if before is None:
        yield
        return
    decoder.masks_at_memory_size = True  # type: ignore[assignment]
    try:
        yield
    finally:
        decoder.masks_at_memory_size = before

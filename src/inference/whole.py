"""Inference on a whole image, with its full-size maps made in bands.

B batch (1 here), Q queries, K classes, D query width, H W result, h w mask features
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from src.inference.bands.encoder import BandedEncoder
from src.inference.bands.high_resolution import FusedMap, HighResolutionBranch
from src.inference.bands.rows import ResizedStream, Rows, cached_bands, resize_band, resized_rows, source_rows
from src.inference.semantic import best_class, class_probabilities, score_bands, telling_queries
from src.models.segmenter import SMALLEST_SIDE
from src.photos import resized


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
        classes: (1, Q, K) class probabilities. embeddings: (1, Q, D) mask embeddings.
        mask_features: gives the rows start..stop of the mask features, (1, D, n, w).
        height: h, rows of the mask features.
        edge_logits: (1, 1, h', w') or None.
    """

    def __init__(
        self,
        classes: Tensor,
        embeddings: Tensor,
        mask_features: Rows,
        height: int,
        edge_logits: Tensor | None,
    ) -> None:
        self.classes, self.embeddings = classes, embeddings
        self._mask_features, self._height, self._edge_logits = mask_features, height, edge_logits

    def leave_out_queries(self, epsilon: float) -> None:
        """Leave out queries that change no score by more than ``epsilon``; see ``telling_queries``."""
        kept = telling_queries(self.classes[0], epsilon)
        self.classes, self.embeddings = self.classes[:, kept], self.embeddings[:, kept]

    def _mask_rows(self, start: int, stop: int) -> Tensor:
        return F.conv2d(self._mask_features(start, stop), self.embeddings[0, :, :, None, None])

    @torch.inference_mode()
    def bands(self, size: tuple[int, int]) -> Iterator[Band]:
        """Scores and edges at a size (H, W), from top to bottom."""
        for top, scores in score_bands(self.classes, self._mask_rows, self._height, size):
            edges = self._edges(top, top + scores.shape[2], size)
            yield Band(top, scores[0], edges)

    def _edges(self, start: int, stop: int, size: tuple[int, int]) -> Tensor | None:
        if self._edge_logits is None:
            return None
        return resized_rows(self._edge_logits.float(), start, stop, size)[0, 0].sigmoid()


@torch.inference_mode()
def predict_whole(network: Any, image: Tensor, encoder: BandedEncoder | None = None) -> DensePrediction:
    """Run a network on one image, without whole maps at half the image's size where the network allows it.

    Args:
        network: a segmenter in evaluation mode; it is not changed.
        image: (3, H, W) uint8 RGB on the network's device.
        encoder: the network's encoder in bands, for less memory.
    """
    branch = HighResolutionBranch.of(network.pixel_decoder)
    if branch is None:
        return _predict_plainly(network, image)
    finest = None
    if encoder is None:
        features = network.backbone(network.normalise(image)[None])
    else:
        finest, features = encoder(network, image)
    maps, g4 = network.pixel_decoder.laterals_and_context(features, finest)
    del features, finest
    s1, context, memories = network.pixel_decoder.global_branch(maps, g4)
    sizes = [(x.shape[2], x.shape[3]) for x in memories]
    # what is handed over for good is in no variable, so that whoever uses it last gives its room back
    given, waiting = [s1], [memories]
    del maps, s1, memories
    fused = branch.fuse(*half_size(network, image), given.pop(), context)
    reduced = _reduced(branch, fused, sizes)
    class_logits, embeddings = network.transformer_decoder.decode(waiting.pop(), reduced)[-1]
    return DensePrediction(
        class_probabilities(class_logits),
        embeddings,
        lambda start, stop: branch.mask_features(fused, start, stop),
        fused.sampled.shape[2],
        fused.edge_logits,
    )


def half_size(network: Any, image: Tensor) -> tuple[Rows, tuple[int, int]]:
    """Rows of the normalised image (3, H, W) uint8 at half its size, and that size: what the branch starts from."""
    size = (-(-image.shape[1] // 2), -(-image.shape[2] // 2))

    def image_rows(start: int, stop: int) -> Tensor:
        rows = source_rows(start, stop, size[0], image.shape[1], network.pixel_mean)
        pixels = resize_band(network.normalise(image[:, rows.start : rows.stop])[None], rows, size[1])
        # in the order of all that it meets: maps joined with another order would be copied back and forth
        return pixels.contiguous(memory_format=torch.channels_last)

    return image_rows, size


def _reduced(branch: HighResolutionBranch, fused: FusedMap, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Mask features (1, D, ., .) at the memories' sizes, by way of stride 4 as the decoder has it."""
    height, width = fused.sampled.shape[2:]
    quarter = (-(-height // 2), -(-width // 2))
    to_quarter = ResizedStream(height, quarter, fused.sampled)
    streams = [ResizedStream(quarter[0], size, fused.sampled) for size in sizes]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    for start, stop in cached_bands(fused.sampled.shape[1] * 4, (height, width), fused.sampled.device):
        coarse = to_quarter.push(branch.mask_features(fused, start, stop))
        for stream, found in zip(streams, parts, strict=True):
            found.append(stream.push(coarse))
    return [torch.cat(found, dim=2) for found in parts]


def _predict_plainly(network: Any, image: Tensor) -> DensePrediction:
    with _fast_masks(network.transformer_decoder):
        pixels = network.pixel_features(network.normalise(image)[None])
        last = network.transformer_decoder(pixels)[-1]
    return DensePrediction(
        class_probabilities(last.class_logits),
        last.mask_embeddings,
        lambda start, stop: last.mask_features[:, :, start:stop],
        last.mask_features.shape[2],
        pixels.edge_logits,
    )


@torch.inference_mode()
def predict_labels(network: Any, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Label map of one image, as evaluation needs it: of its scores at its own size, brought to that of the labels.

    Args:
        network: a segmenter in evaluation mode; it is not changed.
        image: (3, H, W) uint8 RGB on the network's device; enlarged where a side is below 64, as in prediction.
        size: height and width of the label map, pixels.

    Returns:
        (*size) uint8 on the same device.
    """
    if min(image.shape[1:]) < SMALLEST_SIDE:
        pixels = large_enough(image.permute(1, 2, 0).cpu().numpy())
        image = torch.from_numpy(pixels).permute(2, 0, 1).to(image.device)
    treated = (image.shape[1], image.shape[2])
    labels = torch.empty(size, dtype=torch.uint8, device=image.device)
    for band in at_size(predict_whole(network, image).bands(treated), treated, size):
        labels[band.top : band.top + band.scores.shape[1]] = best_class(band.scores)
    return labels


def large_enough(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring a very small photo (H, W, 3) to the shortest side that networks take."""
    height, width = pixels.shape[:2]
    return resized(pixels, (max(height, SMALLEST_SIDE), max(width, SMALLEST_SIDE)))


def at_size(found: Iterator[Band], treated: tuple[int, int], size: tuple[int, int]) -> Iterator[Band]:
    """Bands of a reduced or enlarged photo, brought to another size: scores are resized, as the release does.

    Args:
        found: from top to bottom. treated: height and width that they have together. size: those of the result.
    """
    if treated == size:
        yield from found
        return
    stream: ResizedStream | None = None
    top = 0
    for band in found:
        maps = band.scores if band.edges is None else torch.cat((band.scores, band.edges[None]))
        stream = stream or ResizedStream(treated[0], size, maps)
        rows = stream.push(maps[None])[0]
        if rows.shape[1]:
            scores = rows[: len(band.scores)]
            yield Band(top, scores, None if band.edges is None else rows[-1])
            top += rows.shape[1]


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

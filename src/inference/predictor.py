"""From a photo to a label map in one call.

network = load("model.ckpt")
predictor = Predictor(network)
result = predictor("photo.jpg")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from src.inference.folding import inference_copy
from src.inference.whole import Band, predict_whole
from src.photos import fit_within, read_photo

_SMALLEST = 64  # the network's shortest side, pixels

Photo = str | Path | NDArray[np.uint8]


class PhotoPrediction(NamedTuple):
    """What was found in a photo, at the photo's own size.

    Attributes:
        label: (H, W) uint8 class ids.
        scores: (K, H, W) float32 class scores, at least 0, not normalised; None when they were not asked for.
        edges: (H, W) float32 probability of a class boundary; None when the network predicts none.
    """

    label: NDArray[np.uint8]
    scores: NDArray[np.float32] | None
    edges: NDArray[np.float32] | None


class Predictor:
    """Applies a network to photos of any size.

    Args:
        network: a segmenter in evaluation mode, on any device; it is not changed.
        limit: two edge lengths, pixels; larger photos are reduced to fit, keeping their ratio, and scores are
            brought back to the photo's size. The default is the evaluation protocol of MaSS13K (section 5.1).
            None for no reduction.
        autocast: dtype of mixed precision, ``torch.bfloat16`` or ``torch.float16``; None for the network's own.
    """

    def __init__(
        self,
        network: Any,
        limit: tuple[int, int] | None = (4096, 3072),
        autocast: torch.dtype | None = None,
    ) -> None:
        if network.training:
            raise ValueError("the network is in training mode: call network.eval() first")
        self._network = inference_copy(network)
        self._limit = limit
        self._autocast = autocast

    def __call__(self, photo: Photo, *, scores: bool = True) -> PhotoPrediction:
        """Predict one photo.

        Args:
            photo: a file, or (H, W, 3) uint8 RGB.
            scores: whether to keep the scores, 4 K bytes per pixel.

        Raises:
            PhotoError: the file cannot be read. ValueError: the array is not an 8-bit RGB photo.
        """
        pixels = self.read(photo)
        size = pixels.shape[:2]
        label = np.empty(size, np.uint8)
        edges = kept = None
        for band in self.bands(pixels):
            rows = slice(band.top, band.top + band.scores.shape[1])
            label[rows] = band.scores.argmax(0).cpu().numpy()
            if scores:
                kept = np.empty((len(band.scores), *size), np.float32) if kept is None else kept
                kept[:, rows] = band.scores.cpu().numpy()
            if band.edges is not None:
                edges = np.empty(size, np.float32) if edges is None else edges
                edges[rows] = band.edges.cpu().numpy()
        return PhotoPrediction(label, kept, edges)

    def read(self, photo: Photo) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of a file or an array.

        Raises:
            PhotoError: the file cannot be read. ValueError: the array is not an 8-bit RGB photo.
        """
        if isinstance(photo, str | Path):
            return read_photo(photo)
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(
                f"a photo is a (H, W, 3) uint8 RGB array, not {photo.dtype} of shape {photo.shape}"
            )
        return photo

    def bands(self, pixels: NDArray[np.uint8]) -> Iterator[Band]:
        """Scores of an (H, W, 3) photo at its own size, in bands of rows from top to bottom."""
        size = (pixels.shape[0], pixels.shape[1])
        fitted = pixels if self._limit is None else fit_within(pixels, self._limit)
        image = torch.from_numpy(_enlarge(fitted).transpose(2, 0, 1).copy())
        device = next(self._network.parameters()).device
        with self._precision(device):
            prediction = predict_whole(self._network, image.to(device))
            yield from prediction.bands(size)

    def _precision(self, device: torch.device) -> Any:
        return nullcontext() if self._autocast is None else torch.autocast(device.type, self._autocast)


def _enlarge(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring a very small photo to the shortest side that the network takes."""
    height, width = pixels.shape[:2]
    if min(height, width) >= _SMALLEST:
        return pixels
    size = (max(width, _SMALLEST), max(height, _SMALLEST))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)

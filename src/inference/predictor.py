"""From a photo to a label map in one call.

predictor = Predictor.from_checkpoint("model.ckpt")
result = predictor("photo.jpg")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from src.allocation import return_freed_memory
from src.checkpoints.files import read
from src.checkpoints.network import load_network
from src.inference.bands.encoder import BandedEncoder
from src.inference.bands.high_resolution import HighResolutionBranch
from src.inference.folding import inference_copy
from src.inference.large_photos import PhotoInMemory, PhotoRows, open_photo
from src.inference.memory import WholeImageCost, available_bytes
from src.inference.semantic import best_class
from src.inference.tiled import TiledPredictor, Tiling, is_divisible
from src.inference.whole import Band, at_size, large_enough, predict_whole
from src.models.segmenter import SMALLEST_SIDE
from src.photos import PhotoError, fitted_size, resized

_PHOTO_SHARE = 8  # a photo above this share of the memory is kept on disk
_SCORES_SHARE = 4  # as are scores of windows side by side above this one

Mode = Literal["auto", "whole", "tiled"]
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
            brought back to the photo's size; (4096, 3072) is the evaluation protocol of MaSS13K (section 5.1).
            None for no reduction.
        mode: ``whole`` treats every photo at once, ``tiled`` in windows (see ``src.inference.tiled``), ``auto``
            in windows when the whole photo does not fit into memory.
        memory_gb: memory that the process may take, GiB; None for three quarters of what is free.
        tiling: sizes of the windows.
        autocast: dtype of mixed precision, ``torch.bfloat16`` or ``torch.float16``; None for the network's own.
        epsilon: queries are left out that together change no score by more than this; 0 keeps all of them.
        enlarge_to: two edge lengths, pixels; photos that are smaller are enlarged to fit them, and scores are brought
            back. For networks that were trained on enlarged photos. None for no enlargement.

    Attributes:
        cost: the memory that a whole photo takes, an estimate on the safe side.
        divides: whether photos that do not fit into memory are treated in windows.

    Raises:
        ValueError: an argument is none of these, or the network cannot work in windows.
    """

    def __init__(
        self,
        network: Any,
        limit: tuple[int, int] | None = None,
        mode: Mode = "auto",
        memory_gb: float | None = None,
        tiling: Tiling | None = None,
        autocast: torch.dtype | None = None,
        epsilon: float = 0.0,
        enlarge_to: tuple[int, int] | None = None,
    ) -> None:
        if network.training:
            raise ValueError("the network is in training mode: call network.eval() first")
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(get_args(Mode))}")
        self._network = inference_copy(network)
        self._device = next(network.parameters()).device
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon={epsilon}: a score's largest change lies between 0 and 1")
        self._limit, self._enlarge_to, self._mode = limit, enlarge_to, mode
        self._autocast, self._epsilon = autocast, epsilon
        self._memory = available_bytes(self._device) if memory_gb is None else int(memory_gb * 2**30)
        self._encoder = BandedEncoder.of(self._network) if is_divisible(self._network) else None
        streamed = HighResolutionBranch.of(self._network.pixel_decoder) is not None
        banded = self._encoder if streamed else None
        self.cost = WholeImageCost(self._network, None if banded is None else banded.band_bytes, streamed)
        self._whole_pixels = self.cost.pixels(self._memory)
        self._tiled = None
        self.divides = mode == "tiled" or (mode == "auto" and is_divisible(self._network))
        if self.divides:
            self._tiled = TiledPredictor(
                self._network,
                tiling or Tiling(),
                self._whole_pixels,
                self._encoder,
                epsilon,
                self._memory // _SCORES_SHARE,
            )
        return_freed_memory()

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu", **options: Any) -> Self:
        """The network of a checkpoint, with photos enlarged where it was evaluated on enlarged ones.

        Args:
            path: of the checkpoint. device: of the network. options: arguments of ``Predictor``.

        Raises:
            CheckpointError: the file is unreadable.
        """
        checkpoint = read(path)
        return cls(load_network(checkpoint).to(device), **({"enlarge_to": checkpoint.enlarge_to} | options))

    def __call__(self, photo: Photo, *, scores: bool = True) -> PhotoPrediction:
        """Predict one photo.

        Args:
            photo: a file (its path), or (H, W, 3) uint8 RGB.
            scores: whether to keep the scores, 4 K bytes per pixel.

        Raises:
            PhotoError: the file cannot be read, or a network without windows would need more memory than there is.
            ValueError: the array is not an 8-bit RGB photo.
        """
        opened = self.open(photo)
        label = np.empty(opened.size, np.uint8)
        edges = kept = None
        for band in self.bands(opened):
            rows = slice(band.top, band.top + band.scores.shape[1])
            label[rows] = best_class(band.scores).cpu().numpy()
            if scores:
                kept = np.empty((len(band.scores), *opened.size), np.float32) if kept is None else kept
                kept[:, rows] = band.scores.cpu().numpy()
            if band.edges is not None:
                edges = np.empty(opened.size, np.float32) if edges is None else edges
                edges[rows] = band.edges.cpu().numpy()
        return PhotoPrediction(label, kept, edges)

    def open(self, photo: Photo) -> PhotoRows:
        """Decode a file, or check an array.

        Raises:
            PhotoError: the file cannot be read. TypeError: neither a path nor an array. ValueError: the array is
                not an 8-bit RGB photo.
        """
        if isinstance(photo, str | Path):
            return open_photo(Path(photo), self._memory // _PHOTO_SHARE)
        if not isinstance(photo, np.ndarray):
            raise TypeError(
                f"a photo is a path or a (H, W, 3) uint8 RGB array, not a {type(photo).__name__}; "
                'for a Pillow image give np.asarray(image.convert("RGB")), for a tensor its numpy() form'
            )
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(
                f"a photo is a (H, W, 3) uint8 RGB array, not {photo.dtype} of shape {photo.shape}"
            )
        if not photo.size:
            raise ValueError(f"the photo is empty: its shape is {photo.shape}")
        # Pillow's arrays are read-only, flipped ones run backwards: PyTorch takes neither
        return PhotoInMemory(np.require(photo, requirements=["C", "W"]))

    def bands(self, photo: PhotoRows) -> Iterator[Band]:
        """Scores at the photo's own size, in bands of rows from top to bottom."""
        fitted = self._fitted_size(photo.size)
        with self._precision():
            if self._tiled is not None and (self._mode == "tiled" or math.prod(fitted) > self._whole_pixels):
                as_it_is = fitted == photo.size and min(fitted) >= SMALLEST_SIDE
                source = photo if as_it_is else PhotoInMemory(large_enough(_at(photo, fitted)))
                yield from at_size(self._tiled.bands(source), source.size, photo.size)
            else:
                self._check_room(fitted)
                image = torch.from_numpy(large_enough(_at(photo, fitted))).to(self._device).permute(2, 0, 1)
                prediction = predict_whole(self._network, image, self._encoder)
                prediction.leave_out_queries(self._epsilon)
                treated = (image.shape[1], image.shape[2])
                yield from at_size(prediction.bands(treated), treated, photo.size)

    def _check_room(self, size: tuple[int, int]) -> None:
        """Refuse what ``auto`` would treat in windows, had the network's pixel decoder such."""
        pixels = math.prod(size)
        if self._mode == "auto" and pixels > self._whole_pixels:
            raise PhotoError(
                f"{size[1]}x{size[0]} pixels take about {self.cost.bytes(pixels) / 2**30:.1f} GiB and "
                f"{self._memory / 2**30:.1f} are there; this network knows no windows: choose a smaller "
                "inference.limit, or inference=whole to try all the same"
            )

    def _fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self._limit is not None:
            size = fitted_size(size, self._limit)
        if self._enlarge_to is not None:
            size = max(size, fitted_size(size, self._enlarge_to, enlarge=True))
        return size

    def _precision(self) -> Any:
        return nullcontext() if self._autocast is None else torch.autocast(self._device.type, self._autocast)


def _at(photo: PhotoRows, size: tuple[int, int]) -> NDArray[np.uint8]:
    return resized(photo.rows(0, photo.size[0]), size)

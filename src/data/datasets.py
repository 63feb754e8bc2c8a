"""The two map-style datasets: crops for training, whole photos for evaluation.

B batch   H, W photo size   h, w label size   S crop size
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from src.allocation import keep_freed_memory
from src.data.crops import RandomCrop
from src.data.device_transforms import augment_images, boundary_maps, encode_distortion, flip_chosen
from src.data.sampling import Draw
from src.data.source import LabelledPhoto, PhotoSource, Window
from src.data.targets import boundary_map
from src.data.transforms import CropAugmentation
from src.photos import fit_within
from src.structures import CropBatch, LabelledImage, Targets


class Crop(NamedTuple):
    """One training crop.

    Attributes:
        image: (3, S, S) uint8 RGB.
        label: (S, S) uint8 class ids.
        boundary: (S, S) uint8 boundary map.
    """

    image: Tensor
    label: Tensor
    boundary: Tensor


class PseudoCrop(NamedTuple):
    """One training crop with pseudo labels.

    Attributes:
        image: (3, S, S) uint8 RGB.
        label: (S, S) uint8 class ids, new classes included.
        boundary: (S, S) uint8 boundary map.
        pseudo: (N, S, S) uint8 scores of the new classes, see ``Targets``.
    """

    image: Tensor
    label: Tensor
    boundary: Tensor
    pseudo: Tensor


class RawCrop(NamedTuple):
    """A crop that the device will augment.

    Attributes:
        image: (S, S, 3) uint8 RGB; the device puts the channels first, too.
        label: (S, S) uint8 class ids.
        code: (8,) float32, see ``encode_distortion``.
    """

    image: Tensor
    label: Tensor
    code: Tensor


class RawCropBatch(NamedTuple):
    """B crops that the device will augment: (B, S, S, 3) images, (B, S, S) labels, (B, 8) codes."""

    images: Tensor
    labels: Tensor
    codes: Tensor


class CropMaker:
    """Cuts and augments one crop of a labelled photo.

    Args:
        crop: cuts a window out of a photo.
        augment_here: augment at once, or leave that to the device, see ``augmented``.
    """

    def __init__(self, crop: RandomCrop, augment_here: bool = True) -> None:
        self._crop = crop
        self._augment_here = augment_here
        self._augment = CropAugmentation()

    def __call__(self, photo: LabelledPhoto, rng: np.random.Generator) -> Crop | PseudoCrop | RawCrop:
        image, label = self._crop(photo, rng)
        seed = int(rng.integers(2**32))
        if not self._augment_here:
            return RawCrop(
                torch.from_numpy(np.ascontiguousarray(image)),
                torch.from_numpy(label),
                encode_distortion(*self._augment.draw(seed)),
            )
        image, label = self._augment(image, label, seed)
        return self._finished(planes(image), label)

    def _finished(self, image: Tensor, label: NDArray[np.uint8]) -> Crop | PseudoCrop:
        boundary = torch.from_numpy(boundary_map(label))
        return Crop(image, torch.from_numpy(np.ascontiguousarray(label)), boundary)


def planes(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, C) to (C, H, W), contiguous."""
    separate = np.empty((image.shape[2], *image.shape[:2]), dtype=np.uint8)
    cv2.split(image, list(separate))
    return torch.from_numpy(separate)


class CropDataset(Dataset[Crop | PseudoCrop | RawCrop]):
    """Random crops, each a pure function of (seed, draw).

    Args:
        source: the labelled photos.
        make: cuts and augments.
        seed: of every random choice.
    """

    def __init__(self, source: PhotoSource, make: CropMaker, seed: int) -> None:
        self._source = source
        self._make = make
        self._seed = seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, draw: Draw | int) -> Crop | PseudoCrop | RawCrop:
        """Make a crop; a plain index, which Lightning's ``overfit_batches`` asks for, gives a fixed one."""
        draw = Draw(draw, draw) if isinstance(draw, int) else draw
        rng = np.random.default_rng([self._seed, draw.number])
        return self._make(self._source.open(draw.photo), rng)


class EvaluationDataset(Dataset[LabelledImage]):
    """Whole photos, fitted to the evaluation limit, with label maps at their own size.

    Args:
        source: the labelled photos.
        limit: two edge lengths in pixels, see ``fit_within``.
        enlarge: also enlarge smaller photos to the limit.
    """

    def __init__(self, source: PhotoSource, limit: tuple[int, int], enlarge: bool) -> None:
        self._source = source
        self._limit = limit
        self._enlarge = enlarge

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> LabelledImage:
        return whole_photo(self._source.open(index), self._limit, self._enlarge)


def whole_photo(photo: LabelledPhoto, limit: tuple[int, int], enlarge: bool) -> LabelledImage:
    """A photo fitted to the evaluation limit, with its label map; see ``EvaluationDataset``."""
    whole = Window(0, 0, *photo.size)
    image = fit_within(photo.image(whole), limit, enlarge=enlarge)
    # A view: the device puts the channels first in no time, a worker takes a tenth of the time of decoding.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return LabelledImage(pixels, torch.from_numpy(photo.label(whole)), photo.name)


def collate_crops(
    crops: Sequence[Crop] | Sequence[PseudoCrop] | Sequence[RawCrop],
) -> CropBatch | RawCropBatch:
    """Stack B crops: (B, 3, S, S) images and (B, S, S) targets."""
    # Which stacks in shared memory at once, when in a worker.
    if isinstance(crops[0], RawCrop):
        return RawCropBatch(*(default_collate(list(parts)) for parts in zip(*crops, strict=True)))
    images, *targets = (default_collate(list(parts)) for parts in zip(*crops, strict=True))
    return CropBatch(images, Targets(*targets))


def augmented(batch: RawCropBatch) -> CropBatch:
    """Augment on the device where the batch lies; the same batch as from workers that augment."""
    images = augment_images(batch.images.permute(0, 3, 1, 2).contiguous(), batch.codes)
    labels = flip_chosen(batch.labels, batch.codes)
    return CropBatch(images, Targets(labels, boundary_maps(labels)))


def single(items: Sequence[LabelledImage]) -> LabelledImage:
    """Evaluation photos differ in size, so a batch is one of them, as it is."""
    (item,) = items
    return item


def quiet_worker(_: int) -> None:
    """Keep a worker to one thread, as the loader already runs one worker per core, and to its memory.

    It also stays when a signal reaches all processes of a run, as Ctrl-C does, and SIGTERM from ``timeout`` and some
    clusters: training still has a step to finish and to save, and ends its workers itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(parent.pid,), daemon=True).start()


def _end_when_told_by(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # without clean-up, as PyTorch's own handler does

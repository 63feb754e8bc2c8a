"""The two map-style datasets: crops for training, whole photos for evaluation.

B batch   H, W photo size   h, w label size   S crop size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.crops import RandomCrop
from src.data.sampling import Draw
from src.data.source import PhotoSource, Window
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


class CropDataset(Dataset[Crop]):
    """Augmented random crops, each a pure function of (seed, draw).

    Args:
        source: the labelled photos.
        crop: cuts a window out of a photo.
        seed: of every random choice.
    """

    def __init__(self, source: PhotoSource, crop: RandomCrop, seed: int) -> None:
        self._source = source
        self._crop = crop
        self._seed = seed
        self._augment = CropAugmentation()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, draw: Draw | int) -> Crop:
        """Make a crop; a plain index, which Lightning's ``overfit_batches`` asks for, gives a fixed one."""
        draw = Draw(draw, draw) if isinstance(draw, int) else draw
        rng = np.random.default_rng([self._seed, draw.number])
        image, label = self._crop(self._source.open(draw.photo), rng)
        image, label = self._augment(image, label, seed=int(rng.integers(2**32)))
        return Crop(
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.from_numpy(np.ascontiguousarray(label)),
            torch.from_numpy(boundary_map(label)),
        )


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
        photo = self._source.open(index)
        whole = Window(0, 0, *photo.size)
        image = fit_within(photo.image(whole), self._limit, enlarge=self._enlarge)
        return LabelledImage(
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            torch.from_numpy(photo.label(whole)),
            photo.name,
        )


def collate_crops(crops: Sequence[Crop]) -> CropBatch:
    """Stack B crops: (B, 3, S, S) images and (B, S, S) targets."""
    images, labels, boundaries = (torch.stack(parts) for parts in zip(*crops, strict=True))
    return CropBatch(images, Targets(labels, boundaries))


def single(items: Sequence[LabelledImage]) -> LabelledImage:
    """Evaluation photos differ in size, so a batch is one of them, as it is."""
    (item,) = items
    return item


def quiet_worker(_: int) -> None:
    """Keep a worker to one thread: the loader already runs one worker per core."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

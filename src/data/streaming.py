"""Training and evaluation straight from shards in object storage or a folder, read by LitData.

LitData gives every process its share of the shards, fetches them ahead, shuffles, keeps the cache within its
bound and continues in the middle of an epoch. A crop depends on the seed, the epoch and the photo alone, so the
number of processes changes the order of crops but not the crops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from litdata import StreamingDataLoader, StreamingDataset

from src.data.classes import ClassMap
from src.data.datasets import whole_photo
from src.data.source import LabelledPhoto
from src.data.store.entry import Entry, StoreError
from src.data.store.source import StorePhoto
from src.structures import LabelledImage

__all__ = ["CropItems", "EntryStream", "StreamingDataLoader", "WholePhotos"]

RETRIES = 5  # of each request
_TIMEOUT = 20  # seconds to connect, and between two pieces of an answer

# (photo, epoch, number of the photo) -> item of a batch
MakeItem = Callable[[LabelledPhoto, int, int], Any]


class EntryStream(StreamingDataset):
    """Items made of streamed entries.

    Args:
        place: folder or URL of a split's shards, for example ``s3://bucket/mass13k/train``.
        class_map: translates raw ids.
        make: makes an item.
        shuffle: anew in every epoch; also drops the incomplete last batch.
        seed: of the order.
        cache_folder: where fetched shards are kept; None for LitData's own choice.
        cache_gigabytes: bound on what is kept there.

    Raises:
        StoreError: there are no shards, or the storage cannot be reached.
    """

    def __init__(
        self,
        place: str,
        class_map: ClassMap,
        make: MakeItem,
        shuffle: bool,
        seed: int,
        cache_folder: str | None = None,
        cache_gigabytes: float = 50,
    ) -> None:
        self._place = place
        self._class_map = class_map
        self._make = make
        retries = {"max_attempts": RETRIES, "mode": "standard"}
        config = Config(retries=retries, connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT)
        try:
            super().__init__(
                place,
                cache_dir=cache_folder,
                shuffle=shuffle,
                drop_last=shuffle,
                seed=seed,
                max_cache_size=f"{int(cache_gigabytes * 1000)}MB",
                storage_options={"config": config} if place.startswith("s3://") else {},
            )
            self.photos = len(self)
        except (OSError, RuntimeError, ValueError, BotoCoreError, ClientError) as error:
            raise self._unreadable(error) from error

    def __getitem__(self, index: Any) -> Any:
        try:
            sample = super().__getitem__(index)
        except (OSError, RuntimeError, BotoCoreError, ClientError) as error:
            raise self._unreadable(error) from error
        content: bytes = sample["entry"]
        name = f"{self._place}: {sample['name']}"
        entry = Entry(lambda offset, length: content[offset : offset + length], len(content), name)
        photo = StorePhoto(sample["name"], entry, self._class_map)
        return self._make(photo, int(self.current_epoch), int(sample["number"]))

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._place}: the shards cannot be read, after {RETRIES} tries ({type(error).__name__}: {error}). "
            "Check the address, the network and the credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID), then resume "
            "from the last checkpoint."
        )


class CropItems:
    """Makes crops; see ``MakeItem``.

    Args:
        make: cuts and augments a crop.
        seed: of every random choice.
    """

    def __init__(self, make: Callable[[LabelledPhoto, np.random.Generator], Any], seed: int) -> None:
        self._make = make
        self._seed = seed

    def __call__(self, photo: LabelledPhoto, epoch: int, number: int) -> Any:
        return self._make(photo, np.random.default_rng([self._seed, epoch, number]))


class WholePhotos:
    """Makes evaluation items; see ``MakeItem``.

    Args:
        limit: two edge lengths in pixels, see ``fit_within``.
        enlarge: also enlarge smaller photos to the limit.
    """

    def __init__(self, limit: tuple[int, int], enlarge: bool) -> None:
        self._limit = limit
        self._enlarge = enlarge

    def __call__(self, photo: LabelledPhoto, epoch: int, number: int) -> LabelledImage:
        return whole_photo(photo, self._limit, self._enlarge)

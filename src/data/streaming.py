"""Training and evaluation straight from shards in object storage or a folder, read by LitData.

LitData gives every process its share of the shards, fetches them ahead, shuffles, keeps the cache within its
bound and continues in the middle of an epoch. A crop depends on the seed, the epoch and the photo alone, so the
number of processes changes the order of crops but not the crops.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import get_ident
from typing import Any
from urllib.parse import urlparse

import numpy as np
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.client import S3Client
from litdata.streaming.downloader import Downloader, register_downloader

from src.data.classes import ClassMap
from src.data.datasets import whole_photo
from src.data.source import LabelledPhoto
from src.data.store.entry import Entry, StoreError
from src.data.store.source import StorePhoto
from src.structures import LabelledImage

__all__ = ["CropItems", "EntryLoader", "EntryStream", "WholePhotos"]

_CURE = "Pack the shards again: delete their folder and run src.prepare with format=litdata."
RETRIES = 5  # of each request
_TIMEOUT = 20  # seconds to connect, and between two pieces of an answer
_KINDS = {"bytes", "int", "str"}  # LitData's names of what a sample consists of
_UNREACHABLE = (OSError, RuntimeError, Boto3Error, BotoCoreError, ClientError)

# (photo, epoch, number of the photo) -> item of a batch
MakeItem = Callable[[LabelledPhoto, int, int], Any]


class S3Shards(Downloader):
    """Fetches shards from S3 with boto3; arguments as LitData gives them.

    LitData's own way refuses servers without TLS, such as one in the local network, and tries again for minutes
    when a server is gone.
    """

    def __init__(
        self,
        remote_dir: str,
        cache_dir: str,
        chunks: list[dict[str, Any]],
        storage_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(remote_dir, cache_dir, chunks, storage_options)
        self._client = S3Client(
            storage_options=storage_options, session_options=options.get("session_options")
        )

    def download_file(self, remote_chunkpath: str, local_chunkpath: str) -> None:
        """Fetch one file; it appears under its name when it is whole. Raises what boto3 raises."""
        if os.path.exists(local_chunkpath):
            return
        address = urlparse(remote_chunkpath)
        partial = f"{local_chunkpath}.tmp.{os.getpid()}.{get_ident()}"
        os.makedirs(os.path.dirname(local_chunkpath), exist_ok=True)
        try:
            self._client.client.download_file(address.netloc, address.path.lstrip("/"), partial)
            os.replace(partial, local_chunkpath)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)


register_downloader("s3://", S3Shards, overwrite=True)


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
            # on network file systems LitData would deal out whole shards and leave the same photos out in every epoch
            self.posix_fast = None
            self.photos = len(self)
        except StoreError:
            raise
        except (*_UNREACHABLE, ValueError) as error:
            raise self._unreadable(error) from error

    def _create_cache(self, *arguments: Any, **options: Any) -> Any:
        """LitData's reader, of entries only: how the parts of a sample are read stands in the index, and one way
        of LitData's is to unpickle them."""
        cache = super()._create_cache(*arguments, **options)
        kinds = set(cache._reader.config.data_format)
        if not kinds <= _KINDS:
            raise StoreError(
                f"{self._place}: these shards hold samples of the kinds {', '.join(sorted(kinds))}, so they are not "
                f"those of src.prepare. {_CURE}"
            )
        return cache

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an epoch, also where shards or their cache lie elsewhere now."""
        here = {
            "input_dir_path": self.input_dir.path,
            "input_dir_url": self.input_dir.url,
            "cache_dir_path": self.cache_dir.path,
        }
        super().load_state_dict(state_dict | here)

    def __getitem__(self, index: Any) -> Any:
        try:
            sample = super().__getitem__(index)
            content, number = sample["entry"], int(sample["number"])
            name = str(sample["name"])
        except _UNREACHABLE as error:
            raise self._unreadable(error) from error
        except (struct.error, TypeError, ValueError, LookupError, EOFError) as error:
            raise StoreError(f"{self._place}: a shard is damaged ({error}). {_CURE}") from error
        if Path(name).name != name:  # predictions get it as their file name
            raise StoreError(f"{self._place}: {name!r} is no name of a photo. {_CURE}")
        # bytes, or a view of the shard's: only what a window needs is copied
        entry = Entry(
            lambda offset, length: bytes(content[offset : offset + length]),
            len(content),
            f"{self._place}: {name}",
            _CURE,
        )
        return self._make(StorePhoto(name, entry, self._class_map), int(self.current_epoch), number)

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._place}: the shards cannot be read, after {RETRIES} tries ({type(error).__name__}: {error}). "
            "Check the address, the network and the credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID), then resume "
            "from the last checkpoint."
        )


class EntryLoader(StreamingDataLoader):
    """Batches of an ``EntryStream``; LitData's loader, which also resumes under Lightning.

    Lightning takes as many batches as the loader's length says and never asks whether there are more. LitData
    would take the epoch after a resumed one for that same epoch then, and repeat it.
    """

    _delivered = 0  # batches of the present epoch, also those before a resume
    _loaded = False  # a state that no epoch has begun from yet; Lightning may end an epoch early

    def __iter__(self) -> Iterator[Any]:
        if self._delivered >= len(self) or not self._loaded:
            self.restore = False
        self._loaded = False
        if not self.restore:
            self._delivered = 0
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        super().load_state_dict(obj)
        self._loaded = True
        stream = obj["dataset"]
        self._delivered = stream["sample_in_epoch"] // (stream["world_size"] * self.batch_size)


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

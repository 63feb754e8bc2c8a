"""The data side as Lightning sees it: one module for MaSS13K, one's own photos and synthetic scenes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from src.data.classes import ClassMap, Taxonomy
from src.data.crops import RandomCrop
from src.data.datasets import (
    CropDataset,
    CropMaker,
    EvaluationDataset,
    RawCropBatch,
    augmented,
    collate_crops,
    quiet_worker,
    single,
)
from src.data.folder import (
    IMAGE_FOLDERS,
    LABEL_FOLDER,
    DatasetError,
    FolderSource,
    Pair,
    SplitFolders,
    benchmark_folders,
    find_pairs,
    holds_files,
)
from src.data.sampling import CropSampler, EvaluationSampler, ResumableLoader
from src.data.source import PhotoSource
from src.data.store.shards import INDEX
from src.data.store.source import StoreSource
from src.data.synthetic import write_synthetic_dataset
from src.errors import UserError
from src.files import given_path
from src.photos import LABEL_SUFFIXES, PHOTO_SUFFIXES
from src.structures import CropBatch, LabelledImage

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class SegmentationDataModule(LightningDataModule):
    """Training crops and whole evaluation photos of one dataset.

    Training gives ``CropBatch``, validation and test one ``LabelledImage`` per step, all uint8 and not
    normalised. Every choice depends on ``seed`` alone, see ``src.data.sampling``.

    Args:
        root: folder of the dataset; relative paths start at the current directory.
        classes: class name to RGB colour; the position is the class id.
        class_map: raw id in the label files to class name or id; None when they are the same.
        folders: for each split ``{"images": ..., "labels": ...}``, relative to ``root``; None for MaSS13K's
            layout.
        crop_size: edge of training crops, pixels.
        batch_size: crops per step and device.
        scales: factors on the short edge, drawn uniformly for each crop.
        short_edge: short edge at factor 1, pixels; None for each photo's own.
        max_long_edge: bound on the scaled long edge, pixels; None for none.
        max_class_share: largest share of one class in a crop (10 further tries).
        samples_per_epoch: crops per epoch over all devices; None for one per photo.
        evaluation_limit: two edge lengths that evaluation photos are fitted to, pixels.
        enlarge: whether smaller evaluation photos are enlarged to the limit, as the release does.
        num_workers: loader processes per device; 0 loads in the main process.
        seed: of permutations, crops and augmentation.
        store: folder made by ``python -m src.prepare``; None to read the files themselves. The crops are the
            same, but for photos that are no JPEGs as cameras write them (see ``docs/store.md``).
            With shards (``format=litdata``) it may also be an address such as ``s3://bucket/mass13k``; an epoch is
            then one pass over the photos, in an order of LitData's, whatever ``samples_per_epoch`` says.
        cache_folder: where fetched shards are kept; None for LitData's own choice.
        cache_gigabytes: bound on what is kept there.
        augment_on: "worker" or "device", where crops are flipped and distorted and boundary maps made. The results
            are the same; on a GPU it takes work off the loader processes.
        synthetic: arguments of ``write_synthetic_dataset`` apart from ``root`` and ``class_ids``, to draw
            the dataset before it is read; None for photos that exist.
    """

    crop_maker = CropMaker

    def __init__(
        self,
        root: str,
        classes: Mapping[str, Sequence[int]],
        crop_size: int,
        batch_size: int,
        scales: Sequence[float],
        short_edge: int | None = None,
        max_long_edge: int | None = None,
        max_class_share: float = 0.75,
        samples_per_epoch: int | None = None,
        class_map: Mapping[int, int | str] | None = None,
        folders: Mapping[str, Mapping[str, str]] | None = None,
        evaluation_limit: tuple[int, int] = (4096, 3072),
        enlarge: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        store: str | None = None,
        cache_folder: str | None = None,
        cache_gigabytes: float = 50,
        augment_on: str = "worker",
        synthetic: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.taxonomy = Taxonomy.from_mapping(classes)
        if augment_on not in ("worker", "device"):
            raise UserError(f"data.augment_on={augment_on}: choose worker or device")
        self.class_map = ClassMap(self.taxonomy, class_map)
        self._root = given_path(root, "data.root")
        self._folders = folders
        self._store = None if store is None else _address(store)
        self._cache = None if cache_folder is None else str(Path(cache_folder).expanduser()), cache_gigabytes
        crop = RandomCrop(crop_size, tuple(scales), short_edge, max_long_edge, max_class_share)
        self._make_crop = self.crop_maker(crop, augment_here=augment_on == "worker")
        self._batch_size = batch_size
        self._samples_per_epoch = samples_per_epoch
        self._evaluation_limit = _two_edges(evaluation_limit)
        self._enlarge = enlarge
        self._num_workers = num_workers
        self._seed = seed
        self._synthetic = synthetic
        self._sources: dict[str, PhotoSource] = {}

    @property
    def num_classes(self) -> int:
        return self.taxonomy.num_classes

    def prepare_data(self) -> None:
        """Draw the synthetic dataset, if this is one."""
        if self._synthetic is not None:
            write_synthetic_dataset(self._root, class_ids=self.taxonomy.ids, **self._synthetic)

    def setup(self, stage: str) -> None:
        """Find and check the files of the splits that ``stage`` reads.

        Raises:
            DatasetError: folders or files are missing, unmatched or empty.
            StoreError: the store is unfinished, of another version, or the files it was made of have changed.
        """
        for split in _STAGES[stage]:
            if split not in self._sources and not self.is_streamed(split):
                self._sources[split] = self._source(split)

    def source(self, split: str) -> PhotoSource:
        """The labelled photos of a split that ``setup`` has found.

        Raises:
            UserError: the split is streamed, which gives its photos in passing only.
        """
        if self.is_streamed(split):
            raise UserError(
                f"data.store={self._store} is streamed, so its photos cannot be opened one by one; evaluate with "
                "report=null, or from the files themselves with data.store=null (+data.store=null where the "
                "checkpoint names the data)"
            )
        return self._sources[split]

    def check_epoch(self, ranks: int, accumulated: int) -> None:
        """Refuse epochs of less than one step, on so many devices, before anything else is done.

        Raises:
            UserError: the samples of an epoch do not fill a step.
        """
        if not self.is_streamed("train"):
            self._sampler(0, ranks, accumulated)

    def pairs(self, split: str) -> list[Pair]:
        """Photos and label maps of a split; errors as ``setup``."""
        return find_pairs(self._split_folders(split))

    def has_split(self, split: str) -> bool:
        """Whether a split has a folder, of those configured or in the layout of the benchmark."""
        if self._folders is not None:
            return split in self._folders and any(folder.is_dir() for folder in self._split_folders(split))
        return any((self._root / name / split).is_dir() for name in (*IMAGE_FOLDERS, LABEL_FOLDER))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment crops that workers left as they were; put the channels of whole photos first."""
        if isinstance(batch, LabelledImage):
            return batch._replace(image=batch.image.contiguous())
        return augmented(batch) if isinstance(batch, RawCropBatch) else batch

    def train_dataloader(self) -> DataLoader[CropBatch]:
        if self.is_streamed("train"):
            return self._stream("train")
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return ResumableLoader(
            CropDataset(self._sources["train"], self._make_crop, self._seed),
            batch_size=self._batch_size,
            sampler=self._sampler(*self._ranks(), accumulated),
            collate_fn=collate_crops,
            drop_last=True,
            **self._loading(),
        )

    def _sampler(self, rank: int, ranks: int, accumulated: int) -> CropSampler:
        photos = len(self._sources["train"])
        samples = self._samples_per_epoch or photos
        return CropSampler(photos, samples, self._batch_size, self._seed, rank, ranks, accumulated)

    def val_dataloader(self) -> DataLoader[LabelledImage]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[LabelledImage]:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[LabelledImage]:
        if self.is_streamed(split):
            return self._stream(split)
        source = self._sources[split]
        return DataLoader(
            EvaluationDataset(source, self._evaluation_limit, self._enlarge),
            sampler=EvaluationSampler(len(source), *self._ranks()),
            collate_fn=single,
            **self._loading(),
        )

    def is_streamed(self, split: str) -> bool:
        """Whether a split comes from shards, whose photos cannot be opened one by one."""
        if self._store is None:
            return False
        return "://" in self._store or (Path(self._store).expanduser() / split / INDEX).is_file()

    def _stream(self, split: str) -> DataLoader[Any]:
        try:
            from src.data.streaming import CropItems, EntryLoader, EntryStream, WholePhotos
        except ImportError as error:
            raise UserError(
                f"data.store={self._store} holds shards, and LitData reads them: "
                'pip install -e ".[streaming]"'
            ) from error
        training = split == "train"
        assert self._store is not None, "only stores are streamed"
        place = self._store if "://" in self._store else str(Path(self._store).expanduser())
        items = (
            CropItems(self._make_crop, self._seed)
            if training
            else WholePhotos(self._evaluation_limit, self._enlarge)
        )
        stream = EntryStream(f"{place}/{split}", self.class_map, items, training, self._seed, *self._cache)
        loader = EntryLoader(
            stream,
            batch_size=self._batch_size if training else 1,
            collate_fn=collate_crops if training else single,
            # LitData counts epochs in this process: one that ends early would begin again in a worker that stays
            **self._loading() | ({"persistent_workers": False} if training else {}),
        )
        if training and len(loader) == 0:
            raise UserError(
                f"{place}/{split}: its {stream.photos} photos do not fill one batch of {self._batch_size} crops for "
                "every device and loader process: lower recipe.batch_size or num_workers"
            )
        return loader

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self._num_workers,
            "persistent_workers": self._num_workers > 0,
            "worker_init_fn": quiet_worker,
            "generator": torch.Generator(),  # leaves the global one, and so the model's randomness, alone
            "pin_memory": torch.cuda.is_available(),
        }

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _source(self, split: str) -> PhotoSource:
        if self._store is None:
            return FolderSource(self.pairs(split), self.class_map)
        source = StoreSource(Path(self._store).expanduser() / split, self.class_map)
        if self._has_both(split):
            source.check_source(self.pairs(split))
        elif self.has_split(split):
            log.info("%s: the store is taken as it is, as the photos or the label maps are gone", split)
        return source

    def _has_both(self, split: str) -> bool:
        """Whether a split has photos and label maps; a store works without the files it was made of."""
        if not self.has_split(split):
            return False
        try:
            images, labels = self._split_folders(split)
        except DatasetError:  # in the benchmark's layout one of them is missing
            return False
        return holds_files(images, PHOTO_SUFFIXES) and holds_files(labels, LABEL_SUFFIXES)

    def _split_folders(self, split: str) -> SplitFolders:
        if self._folders is None:
            return benchmark_folders(self._root, split)
        if split not in self._folders:
            raise UserError(
                f"data.folders has no split {split!r}, only {sorted(self._folders)}; add "
                f"data.folders.{split}.images and data.folders.{split}.labels"
            )
        folders = self._folders[split]
        images, labels = (
            self._root / given_path(folders[kind], f"data.folders.{split}.{kind}")
            for kind in ("images", "labels")
        )
        return SplitFolders(images, labels)


def _two_edges(limit: Any) -> tuple[int, int]:
    if (
        not isinstance(limit, list | tuple)
        or len(limit) != 2
        or not all(type(edge) is int and edge > 0 for edge in limit)
    ):
        raise UserError(
            f"data.evaluation_limit={limit}: give two edge lengths in pixels, such as [4096,3072]; large ones, such "
            "as [100000,100000], leave every photo as it is"
        )
    return limit[0], limit[1]


def _address(store: Any) -> str:
    """A folder or an address, as it was given."""
    given_path(store, "data.store")
    return str(store)

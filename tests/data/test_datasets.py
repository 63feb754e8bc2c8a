from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from src.data.classes import ClassMap, Taxonomy
from src.data.crops import RandomCrop
from src.data.datasets import (
    CropDataset,
    CropMaker,
    EvaluationDataset,
    RawCrop,
    augmented,
    collate_crops,
    quiet_worker,
    single,
)
from src.data.folder import FolderSource, benchmark_folders, find_pairs
from src.data.sampling import Draw
from src.data.targets import boundary_map

Writer = Callable[..., Path]


@pytest.fixture
def source(write_dataset: Writer, taxonomy: Taxonomy) -> FolderSource:
    return FolderSource(find_pairs(benchmark_folders(write_dataset(), "train")), ClassMap(taxonomy))


class TestCropDataset:
    make = CropMaker(RandomCrop(32, [0.8, 1.0, 1.5]))

    def test_types_shapes_and_boundaries(self, source: FolderSource) -> None:
        crop = CropDataset(source, self.make, seed=0)[Draw(7, 2)]
        assert crop.image.shape == (3, 32, 32)
        assert crop.label.shape == crop.boundary.shape == (32, 32)
        assert {part.dtype for part in crop} == {torch.uint8}
        np.testing.assert_array_equal(crop.boundary, boundary_map(crop.label.numpy()))

    def test_a_crop_depends_on_seed_and_draw_alone(self, source: FolderSource) -> None:
        dataset = CropDataset(source, self.make, seed=5)
        first = [dataset[Draw(number, number % 5)] for number in range(12)]
        other = copy.deepcopy(dataset)
        for number in reversed(range(12)):
            for left, right in zip(first[number], other[Draw(number, number % 5)], strict=True):
                assert torch.equal(left, right)

    def test_draws_and_seeds_differ(self, source: FolderSource) -> None:
        images = {
            CropDataset(source, self.make, seed)[Draw(number, 1)].image.numpy().tobytes()
            for seed in range(3)
            for number in range(5)
        }
        assert len(images) == 15

    def test_a_plain_index_gives_a_fixed_crop(self, source: FolderSource) -> None:
        dataset = CropDataset(source, self.make, seed=0)
        assert torch.equal(dataset[2].image, dataset[Draw(2, 2)].image)

    def test_collate_stacks(self, source: FolderSource) -> None:
        dataset = CropDataset(source, self.make, seed=0)
        crops = [dataset[index] for index in range(3)]
        batch = collate_crops(crops)
        assert batch.images.shape == (3, 3, 32, 32)
        assert torch.equal(batch.targets.labels[1], crops[1].label)
        assert torch.equal(batch.targets.boundaries[2], crops[2].boundary)

    def test_the_device_augments_as_workers_do(self, source: FolderSource) -> None:
        here = CropDataset(source, self.make, seed=0)
        there = CropDataset(source, CropMaker(RandomCrop(32, [0.8, 1.0, 1.5]), augment_here=False), seed=0)
        raw = [there[Draw(number, number % 5)] for number in range(40)]
        assert all(isinstance(crop, RawCrop) for crop in raw)
        expected = collate_crops([here[Draw(number, number % 5)] for number in range(40)])
        batch = augmented(collate_crops(raw))
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.targets.labels, expected.targets.labels)
        assert torch.equal(batch.targets.boundaries, expected.targets.boundaries)


class TestEvaluationDataset:
    def test_label_keeps_its_own_size(self, source: FolderSource) -> None:
        image, label, name = EvaluationDataset(source, (28, 21), enlarge=False)[3]
        assert name == "photo_3"
        assert label.shape == (46, 56)
        assert image.shape == (3, 21, 26)
        assert image.dtype == label.dtype == torch.uint8
        assert image.permute(1, 2, 0).is_contiguous()  # the channels are put first on the device

    def test_small_photos_stay_or_grow(self, source: FolderSource) -> None:
        photo = np.asarray(Image.open(source._pairs[0].image))
        image = EvaluationDataset(source, (4096, 3072), enlarge=False)[0].image
        np.testing.assert_array_equal(image.permute(1, 2, 0), photo)
        grown = EvaluationDataset(source, (112, 80), enlarge=True)[0].image
        expected = cv2.resize(photo, (112, 80), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(grown.permute(1, 2, 0).int(), expected.astype(int), atol=1)

    def test_a_batch_is_one_photo(self, source: FolderSource) -> None:
        item = EvaluationDataset(source, (4096, 3072), enlarge=False)[1]
        assert single([item]) is item


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell who sent a signal")
def test_a_worker_ends_when_its_loader_says_so_and_for_nobody_else() -> None:
    loader = DataLoader(range(200), num_workers=1, worker_init_fn=quiet_worker)  # type: ignore[arg-type]
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # another process, as a cluster's
    assert len(list(batches)) == 199
    batches = iter(loader)
    next(batches)
    worker = batches._workers[0]  # type: ignore[attr-defined]
    worker.terminate()
    worker.join(10)
    assert worker.exitcode is not None

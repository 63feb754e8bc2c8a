"""The data module under Lightning: exact resume, workers, several processes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from yaml import safe_load

from src.data.datamodule import SegmentationDataModule
from src.data.folder import DatasetError
from src.errors import UserError
from src.structures import CropBatch, LabelledImage

CONF = Path(__file__).parents[2] / "conf/data"
Writer = Callable[..., Path]
CLASSES = {"background": [0, 0, 0], "person": [255, 0, 0], "sky": [0, 0, 255]}


def datamodule(root: Any, **changes: Any) -> SegmentationDataModule:
    arguments: dict[str, Any] = {"crop_size": 16, "batch_size": 2, "scales": [0.5, 1.0, 1.5]}
    return SegmentationDataModule(root, CLASSES, **(arguments | changes))


@pytest.mark.parametrize(
    "changes",
    [{"root": 20240501}, {"store": 2024}, {"folders": {"train": {"images": 20240501, "labels": "labels"}}}],
)
def test_numbers_for_folders_are_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="read as a number"):
        datamodule(**({"root": tmp_path} | changes)).setup("fit")


def digest(batch: CropBatch) -> str:
    parts = (batch.images, batch.targets.labels, batch.targets.boundaries)
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()[:12]


class Recorder(lightning.LightningModule):
    """Trains a small network and remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.crops: list[str] = []
        self.photos: list[str] = []

    def training_step(self, batch: CropBatch, _: int) -> Tensor:
        assert isinstance(batch, CropBatch)
        self.crops.append(digest(batch))
        return self.network(batch.images / 255).square().mean()

    def validation_step(self, item: LabelledImage, _: int) -> None:
        assert isinstance(item, LabelledImage)
        assert item.image.is_contiguous()
        self.network(item.image[None] / 255)
        self.photos.append(item.name)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(
    folder: Path, data: SegmentationDataModule, checkpoint: Path | None = None, **options: Any
) -> Recorder:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    return recorder


class SaveAt(lightning.Callback):
    """Writes a checkpoint after one training step or after one epoch."""

    def __init__(self, path: Path, step: int | None = None, epoch: int | None = None) -> None:
        self.path, self.step, self.epoch = path, step, epoch

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*ModelCheckpoint")
class TestResume:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("moment", [{"step": 1}, {"step": 5}, {"step": 8}, {"epoch": 1}])
    def test_crops_continue_where_they_stopped(
        self, write_dataset: Writer, tmp_path: Path, workers: int, moment: dict[str, int]
    ) -> None:
        """Epochs of four batches; stopped inside, at the end of and after an epoch."""
        root = write_dataset()
        data = {"samples_per_epoch": 8, "num_workers": workers}
        checkpoint = tmp_path / "stopped.ckpt"
        whole = fit(
            tmp_path,
            datamodule(root, **data),
            max_epochs=3,
            callbacks=[SaveAt(checkpoint, **moment)],
            enable_checkpointing=False,
        )
        assert len(whole.crops) == len(set(whole.crops)) == 12
        resumed = fit(
            tmp_path, datamodule(root, **data), checkpoint, max_epochs=3, enable_checkpointing=False
        )
        done = moment.get("step", 8)
        assert resumed.crops == whole.crops[done:]

    @pytest.mark.parametrize("step", [3, 4, 6, 8])
    def test_validation_inside_an_epoch_and_a_limit_of_steps(
        self, write_dataset: Writer, tmp_path: Path, step: int
    ) -> None:
        root = write_dataset()
        options = {"max_steps": 11, "val_check_interval": 2, "enable_checkpointing": False}
        checkpoint = tmp_path / "stopped.ckpt"
        data = datamodule(root, samples_per_epoch=8)
        whole = fit(tmp_path, data, callbacks=[SaveAt(checkpoint, step=step)], **options)
        assert len(whole.crops) == 11
        resumed = fit(tmp_path, datamodule(root, samples_per_epoch=8), checkpoint, **options)
        assert resumed.crops == whole.crops[step:]


class TestTraining:
    def crops(self, data: SegmentationDataModule, epochs: int = 2) -> list[str]:
        data.setup("fit")
        loader = data.train_dataloader()
        digests = []
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            digests += [digest(batch) for batch in loader]
        return digests

    def test_the_number_of_workers_changes_nothing(self, write_dataset: Writer) -> None:
        root = write_dataset()
        alone, one, four = (
            self.crops(datamodule(root, num_workers=workers, samples_per_epoch=12)) for workers in (0, 1, 4)
        )
        assert alone == one == four
        assert len(set(alone)) == 12  # two epochs share no crop

    def test_the_seed_changes_everything(self, write_dataset: Writer) -> None:
        root = write_dataset()
        assert not set(self.crops(datamodule(root, seed=0))) & set(self.crops(datamodule(root, seed=1)))

    def test_global_random_state_is_left_alone(self, write_dataset: Writer) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        self.crops(datamodule(write_dataset(), num_workers=1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_one_crop_per_photo_by_default(self, write_dataset: Writer) -> None:
        data = datamodule(write_dataset({"train": 5, "val": 1}))
        data.setup("fit")
        assert len(data.train_dataloader()) == 2  # the fifth photo comes with the next epoch

    def test_too_few_samples_for_a_batch(self, write_dataset: Writer) -> None:
        data = datamodule(write_dataset(), batch_size=8)
        data.setup("fit")
        with pytest.raises(ValueError, match=r"5 samples per epoch.*batch of 8.*samples_per_epoch"):
            data.train_dataloader()

    @pytest.mark.filterwarnings("ignore")
    def test_overfit_batches_repeats_the_same_crops(self, write_dataset: Writer, tmp_path: Path) -> None:
        data = datamodule(write_dataset({"train": 5, "val": 5}))
        recorder = fit(tmp_path, data, max_epochs=3, overfit_batches=2, enable_checkpointing=False)
        assert recorder.crops == recorder.crops[:2] * 3
        assert recorder.crops[0] != recorder.crops[1]

    def test_damaged_photo_is_named_by_the_worker(self, write_dataset: Writer) -> None:
        root = write_dataset({"train": 2, "val": 1})
        photo = root / "images/train/photo_1.png"
        photo.write_bytes(photo.read_bytes()[:500])
        data = datamodule(root, num_workers=1)
        data.setup("fit")
        with pytest.raises(ValueError, match=r"photo_1\.png: the file is truncated"):
            list(data.train_dataloader())


class TestFolders:
    def test_own_folders_and_class_map(self, write_dataset: Writer, tmp_path: Path) -> None:
        root = write_dataset()
        shutil.move(root / "images/train", root / "photos")
        shutil.move(root / "annotations/train", tmp_path / "elsewhere")
        folders = {"train": {"images": "photos", "labels": str(tmp_path / "elsewhere")}}
        data = datamodule(
            root, folders=folders | {"val": folders["train"]}, class_map={0: 2, 1: "sky", 2: 255}
        )
        data.setup("fit")
        item = next(iter(data.val_dataloader()))
        assert set(item.label.unique().tolist()) == {2, 255}

    def test_split_without_folders(self, write_dataset: Writer) -> None:
        folders = {"train": {"images": "images/train", "labels": "annotations/train"}}
        with pytest.raises(ValueError, match=r"no split 'val'.*data\.folders\.val\.images"):
            datamodule(write_dataset(), folders=folders).setup("fit")

    def test_problems_appear_before_training(self, write_dataset: Writer) -> None:
        root = write_dataset()
        (root / "annotations/val/photo_0.png").unlink()
        with pytest.raises(DatasetError, match=r"photo_0\.png"):
            datamodule(root).setup("validate")
        with pytest.raises(DatasetError, match="Expected layout"):
            datamodule(root).setup("test")

    def test_taxonomy(self, tmp_path: Path) -> None:
        data = datamodule(tmp_path)
        assert data.num_classes == 3
        assert data.taxonomy.names == ("background", "person", "sky")

    def test_evaluation_limit(self, write_dataset: Writer) -> None:
        data = datamodule(write_dataset({"test": 2}), evaluation_limit=(28, 28))
        data.setup("test")
        items = list(data.test_dataloader())
        assert [item.name for item in items] == ["photo_0", "photo_1"]
        assert items[0].image.shape == (3, 20, 28)
        assert items[0].label.shape == (40, 56)

    def test_synthetic_scenes_are_drawn_on_demand(self, tmp_path: Path) -> None:
        classes = safe_load((CONF / "classes/mass13k.yaml").read_text())
        synthetic = {"splits": {"train": 2, "val": 1}, "height": 96, "width": 128, "workers": 1}
        data = SegmentationDataModule(
            str(tmp_path / "drawn"), classes, crop_size=32, batch_size=2, scales=[1.0], synthetic=synthetic
        )
        data.prepare_data()
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert batch.images.shape == (2, 3, 32, 32)
        assert next(iter(data.val_dataloader())).image.shape == (3, 96, 128)

    def test_camvid(self, camvid: Path) -> None:
        data = SegmentationDataModule(
            str(camvid),
            safe_load((CONF / "classes/mass13k.yaml").read_text()),
            crop_size=256,
            batch_size=4,
            scales=[0.5, 1.0, 1.5],
            class_map=safe_load((CONF / "camvid.yaml").read_text())["class_map"],
        )
        data.setup("fit")
        names = [item.name for item in data.val_dataloader()]
        assert len(names) == len(set(names)) == 101
        batch = next(iter(data.train_dataloader()))
        assert set(batch.targets.labels.unique().tolist()) <= {0, 1, 2, 3, 4, 5, 255}
        assert 0.01 < batch.targets.boundaries.float().mean() < 0.3


class Shares(Recorder):
    """Writes down which photos and crops each process saw."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        lines = [*self.photos, *self.crops]
        (self.folder / f"rank_{self.global_rank}.txt").write_text("\n".join(lines))

    def teardown(self, stage: str) -> None:
        if torch.distributed.is_initialized():  # a process that ends with its threads running may be aborted
            torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_the_work(write_dataset: Writer, tmp_path: Path) -> None:
    """Three photos on two ranks: validation ends, and every photo counts once."""
    root = write_dataset()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Shares(tmp_path), datamodule=datamodule(root, samples_per_epoch=12))
    ranks = [(tmp_path / f"rank_{rank}.txt").read_text().split() for rank in range(2)]
    photos = [[line for line in lines if line.startswith("photo")] for lines in ranks]
    assert photos == [["photo_0", "photo_2"], ["photo_1"]]
    crops = [[line for line in lines if not line.startswith("photo")] for lines in ranks]
    assert len(crops[0]) == len(crops[1]) == 3
    assert not set(crops[0]) & set(crops[1])

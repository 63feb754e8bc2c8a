"""Shards from a folder and from a real S3 server on the loopback interface."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from src.config import compose_config
from src.data.classes import ClassMap, Taxonomy
from src.data.datamodule import SegmentationDataModule
from src.data.folder import SplitFolders, find_pairs
from src.data.store.convert import convert_split
from src.data.store.entry import StoreError
from src.data.store.shards import write_shards
from src.errors import UserError
from src.structures import CropBatch
from src.train import train

pytestmark = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="needs jpegtran (libjpeg-turbo-progs)"
)

BinaryWriter = pytest.importorskip("litdata.streaming.writer").BinaryWriter
boto3 = pytest.importorskip("boto3")

CLASSES = {"background": [0, 0, 0], "person": [255, 0, 0], "sky": [0, 0, 255]}
PHOTOS = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of about three photos each."""
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for split, count in (("train", PHOTOS), ("val", 3)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(count):
            noise = rng.integers(0, 256, (330, 340, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "images" / split / f"p{index:02}.jpg", quality=95)
            label = (cv2.GaussianBlur(noise, (0, 0), 3)[..., 0] > 127).astype(np.uint8)
            Image.fromarray(label).save(root / "labels" / split / f"p{index:02}.png")
        pairs = find_pairs(SplitFolders(root / "images" / split, root / "labels" / split))
        class_map = ClassMap(Taxonomy.from_mapping(CLASSES))
        convert_split(pairs, root / "store" / split, class_map, 1, lambda _: None)
        write_shards(root / "store" / split, root / "shards" / split, 1, lambda _: None)
    assert len(list((root / "shards/train").glob("*.bin"))) > 2
    return root / "shards"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """A moto server in a process of its own, filled with the shards."""

    def __init__(self, shards: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait(port)
        client = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket="photos")
        for file in shards.rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "photos", f"set/{file.relative_to(shards).as_posix()}")

    @staticmethod
    def _wait(port: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.2)
        raise TimeoutError("the server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    pytest.importorskip("moto.server")
    server = Server(shards)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.kill()


def datamodule(store: str, cache: Path, **changes: Any) -> SegmentationDataModule:
    arguments: dict[str, Any] = {"crop_size": 32, "batch_size": 2, "scales": [1.0], "cache_gigabytes": 1}
    arguments |= {"cache_folder": str(cache), "store": store}
    data = SegmentationDataModule("unused", CLASSES, **(arguments | changes))
    data.setup("fit")
    return data


class Recorder(lightning.LightningModule):
    """Trains a small network and remembers the crops it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(3, 1, 3)
        self.crops: list[bytes] = []

    def training_step(self, batch: CropBatch, _: int) -> Tensor:
        self.crops += [image.cpu().numpy().tobytes() for image in batch.images]
        return self.network(batch.images / 255).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SaveAt(lightning.Callback):
    """Writes a checkpoint after one step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data: SegmentationDataModule, folder: Path, resume: Path | None = None, **options: Any) -> Recorder:
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        **options,
    )
    recorder = Recorder()
    trainer.fit(recorder, datamodule=data, ckpt_path=resume)
    return recorder


def test_epochs_and_workers(shards: Path, tmp_path: Path) -> None:
    one = list(datamodule(str(shards), tmp_path / "a").train_dataloader())
    loader = datamodule(str(shards), tmp_path / "b", num_workers=2).train_dataloader()
    two, second_epoch = list(loader), list(loader)

    def crops(batches: list[CropBatch]) -> set[bytes]:
        return {image.numpy().tobytes() for batch in batches for image in batch.images}

    assert len(crops(one)) == PHOTOS
    assert crops(one) == crops(two)
    assert not crops(second_epoch) & crops(two)


def test_evaluation_sees_every_photo_once(shards: Path, tmp_path: Path) -> None:
    names = [item.name for item in datamodule(str(shards), tmp_path).val_dataloader()]
    assert sorted(names) == ["p00", "p01", "p02"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_s3_resumes_exactly(server: Server, tmp_path: Path, workers: int) -> None:
    store, checkpoint = "s3://photos/set", tmp_path / "stopped.ckpt"
    options = {"max_epochs": 2}
    whole = fit(
        datamodule(store, tmp_path / "a", num_workers=workers),
        tmp_path,
        callbacks=[SaveAt(checkpoint, 5)],
        **options,
    )
    assert len(set(whole.crops)) == 2 * PHOTOS
    again = tmp_path / "stopped_again.ckpt"
    resumed = fit(
        datamodule(store, tmp_path / "b", num_workers=workers),
        tmp_path,
        resume=checkpoint,
        callbacks=[SaveAt(again, 15)],
        **options,
    )
    assert resumed.crops == whole.crops[10:]
    twice = fit(datamodule(store, tmp_path / "c", num_workers=workers), tmp_path, resume=again, **options)
    assert twice.crops == whole.crops[30:]


def test_resuming_with_other_workers(shards: Path, tmp_path: Path) -> None:
    """Nothing is repeated; what does not fill a batch of every worker is left out, as in any epoch."""
    checkpoint = tmp_path / "stopped.ckpt"
    whole = fit(datamodule(str(shards), tmp_path), tmp_path, callbacks=[SaveAt(checkpoint, 5)], max_epochs=3)
    resumed = fit(datamodule(str(shards), tmp_path, num_workers=2), tmp_path, resume=checkpoint, max_epochs=3)
    assert len(resumed.crops) == len(set(resumed.crops))
    left_out = set(whole.crops[10:]) - set(resumed.crops)
    assert set(resumed.crops) < set(whole.crops[10:])
    assert left_out < set(whole.crops[10:PHOTOS])
    assert len(left_out) < 2 * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_end_early_go_on_after_a_resume(shards: Path, tmp_path: Path, workers: int) -> None:
    """Lightning ends them with ``limit_train_batches``."""
    checkpoint = tmp_path / "stopped.ckpt"
    options = {"limit_train_batches": 5, "max_epochs": 4}
    data = [datamodule(str(shards), tmp_path, num_workers=workers) for _ in range(2)]
    whole = fit(data[0], tmp_path, callbacks=[SaveAt(checkpoint, 8)], **options)
    assert len(set(whole.crops)) == len(whole.crops)  # no epoch repeats another
    resumed = fit(data[1], tmp_path, resume=checkpoint, **options)
    assert resumed.crops == whole.crops[16:]


def test_network_file_systems_leave_no_photo_out(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITDATA_POSIX_FAST", "1")  # what LitData turns on by itself where it sees one
    loader = datamodule(str(shards), tmp_path, num_workers=4, batch_size=1).train_dataloader()
    assert sum(len(batch.images) for batch in loader) == PHOTOS


def test_damaged_shards_are_named(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    for shard in (copy / "train").glob("*.bin"):
        content = bytearray(shard.read_bytes())
        start = content.index(b"\xff\xda")
        content[start + 20 : start + 20_000 : 50] = bytes(400)[
            : len(content[start + 20 : start + 20_000 : 50])
        ]
        shard.write_bytes(content)
    data = datamodule(str(copy), tmp_path / "cache", crop_size=340)
    with pytest.raises(
        StoreError, match=rf"{copy}/train: p\d\d: this store entry is damaged.*Pack the shards again"
    ):
        list(data.train_dataloader())


def packed(folder: Path, samples: list[dict[str, Any]]) -> None:
    writer = BinaryWriter(str(folder), chunk_bytes="1MB")
    for number, sample in enumerate(samples):
        writer.add_item(number, sample)
    writer.done()
    writer.merge(1)


def test_shards_of_others_run_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trapped"),)

    for split in ("train", "val"):
        sample = {"format": 2, "number": 0, "name": "a", "entry": Trap()}
        packed(tmp_path / "shards" / split, [sample] * 4)
    data = datamodule(str(tmp_path / "shards"), tmp_path / "cache")
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(StoreError, match=r"pickle.*not those of src.prepare"):
            list(loader())
    assert not (tmp_path / "trapped").exists()


def test_names_in_shards_are_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        sample = {"format": 2, "number": 0, "name": "../../a", "entry": b"x"}
        packed(tmp_path / "shards" / split, [sample] * 4)
    data = datamodule(str(tmp_path / "shards"), tmp_path / "cache")
    with pytest.raises(StoreError, match=r"'\.\./\.\./a' is no name of a photo"):
        list(data.val_dataloader())


def test_an_epoch_without_a_batch_is_refused(shards: Path, tmp_path: Path) -> None:
    data = datamodule(str(shards), tmp_path / "cache", batch_size=PHOTOS + 1)
    with pytest.raises(UserError, match=f"its {PHOTOS} photos do not fill one batch"):
        data.train_dataloader()


def test_the_cache_is_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one shard of about a megabyte and those that are fetched ahead, not for all."""
    monkeypatch.setenv("LITDATA_ASYNC_CHUNK_PREFETCH", "0")
    loader = datamodule("s3://photos/set", tmp_path, cache_gigabytes=0.001).train_dataloader()
    fetched = {path.name for _ in loader for path in tmp_path.rglob("*.bin")}
    assert len(fetched) > 3
    assert len(list(tmp_path.rglob("*.bin"))) < len(fetched)


def shares(rank: int, address: str, place: str, cache: str, folder: str) -> None:
    """Two epochs of training and one of evaluation on one of two ranks; writes what it saw."""
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    data = datamodule(place, Path(cache), num_workers=2)
    loader = data.train_dataloader()
    epochs = [[image.numpy().tobytes().hex() for batch in loader for image in batch.images] for _ in range(2)]
    names = [item.name for item in data.val_dataloader()]
    (Path(folder) / f"{rank}.json").write_text(json.dumps([*epochs, names]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_share_the_shards(shards: Path, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    # Both ranks are forks of one process that has done the imports, which take longer than the rest.
    multiprocessing.set_forkserver_preload(["src.data.datamodule", "src.data.streaming"])
    torch.multiprocessing.start_processes(
        shares, (address, str(shards), str(tmp_path), str(tmp_path)), nprocs=2, start_method="forkserver"
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for epoch in range(2):
        assert len(first[epoch]) == len(second[epoch]) == PHOTOS // 2
        assert len({*first[epoch], *second[epoch]}) == PHOTOS
    assert not {*first[0], *second[0]} & {*first[1], *second[1]}
    assert sorted(first[2] + second[2]) == ["p00", "p01", "p02"]


@pytest.mark.slow
def test_a_run_trains_and_validates_from_s3(server: Server, tmp_path: Path) -> None:
    overrides = [
        "model/size=nano",
        "model.backbone.weights=none",
        "data=mass13k",
        f"data.root={tmp_path / 'absent'}",
        "data.store=s3://photos/set",
        f"data.cache_folder={tmp_path / 'cache'}",
        "data.max_long_edge=null",
        "recipe.crop_size=64",
        "recipe.num_points=128",
        "recipe.steps=2",
        "recipe.val_every=2",
        "num_workers=1",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "callbacks.progress=null",
        "+trainer.enable_progress_bar=false",
        "logger.wandb=null",
        f"run_dir={tmp_path / 'run'}",
    ]
    train(compose_config("train", overrides))
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["images"] == 3


@pytest.mark.slow
def test_killed_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITDATA_ASYNC_CHUNK_PREFETCH", "0")  # two shards ahead, not all of this small set
    batches = iter(datamodule("s3://photos/set", tmp_path).train_dataloader())
    next(batches)
    server.kill()
    with pytest.raises(
        StoreError, match=r"s3://photos/set/train: the shards cannot be read, after 5 tries.*resume"
    ):
        list(batches)


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, os.environ.get(name, "test"))
    with pytest.raises(StoreError, match="s3://photos/set/train: the shards cannot be read"):
        datamodule("s3://photos/set", tmp_path).train_dataloader()

"""Pictures of the same few places while training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from src.config import build, data_config
from src.engine import early_look
from src.engine.early_look import EarlyLook
from src.photos import read_photo

COLOURS = data_config(["data=mass13k"])["classes"]


@pytest.fixture
def trainer(scenes: Path) -> SimpleNamespace:
    """What a trainer shows to the callback, over the scenes' validation photos."""
    overrides = ["data=mass13k", f"data.root={scenes}", "num_workers=0"]
    data = build(data_config(overrides))
    data.setup("validate")
    return SimpleNamespace(global_step=0, is_global_zero=True, loggers=[], datamodule=data)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A network that predicts one class everywhere, and asserts that it is asked in evaluation mode."""
    network = nn.Linear(1, 1)
    network.predicted = 0

    def predict(network: nn.Module, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        assert not network.training
        return torch.full(size, network.predicted)

    monkeypatch.setattr(early_look, "predict_labels", predict)
    return SimpleNamespace(network=network, device=torch.device("cpu"))


def take_steps(look: EarlyLook, trainer: SimpleNamespace, module: SimpleNamespace, *steps: int) -> None:
    for step in steps:
        trainer.global_step = step
        look.on_train_batch_end(trainer, module, None, None, 0)


def test_a_picture_every_so_many_steps(trainer, module, tmp_path: Path) -> None:
    look = EarlyLook(str(tmp_path), COLOURS, every=2, crops=3, size=48)
    take_steps(look, trainer, module, 1, 2, 2, 3, 4)  # step 2 ends two batches, with accumulated gradients
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002.png", "step_000004.png"]
    assert module.network.training

    trainer.is_global_zero = False
    take_steps(look, trainer, module, 6)
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_show_the_same_places_and_other_predictions(trainer, module, tmp_path: Path) -> None:
    look = EarlyLook(str(tmp_path), COLOURS, every=1, crops=2, size=48)
    take_steps(look, trainer, module, 1)
    module.network.predicted = 5
    take_steps(look, trainer, module, 2)
    first, second = (np.array(Image.open(path)) for path in sorted(tmp_path.iterdir()))
    assert first.shape == second.shape
    changed = np.flatnonzero((first != second).any(axis=(0, 2)))
    # photo and label, the left half, stay; prediction and errors change
    assert changed.min() >= first.shape[1] // 2


def test_crops_are_spread_over_the_photos(trainer, module, tmp_path: Path, scenes: Path) -> None:
    look = EarlyLook(str(tmp_path), COLOURS, every=1, crops=2, size=48)
    take_steps(look, trainer, module, 1)
    names = trainer.datamodule.source("val").names
    for (image, label), name in zip(look._fixed, (names[0], names[-1]), strict=True):
        assert image.shape == (3, 48, 48)
        assert label.shape == (48, 48)
        photo = torch.from_numpy(read_photo(scenes / "images_pad" / "val" / f"{name}.jpg")).permute(2, 0, 1)
        places = photo.unfold(1, 48, 1).unfold(2, 48, 1)  # every window of the photo
        assert (places == image[:, None, None]).all(dim=(0, 3, 4)).any()


@pytest.mark.parametrize("crops", [3, 20])
def test_no_more_crops_than_photos(trainer, module, tmp_path: Path, crops: int) -> None:
    look = EarlyLook(str(tmp_path), COLOURS, every=1, crops=crops, size=500)
    take_steps(look, trainer, module, 1)
    assert len(look._fixed) == 3
    assert len({image.shape for image, _ in look._fixed}) == 1  # what fits into the smallest photo

"""Fixtures of tests that train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from src.train import train
from tests.train.runs import composed


@pytest.fixture
def configure(scenes: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a tiny training run over the synthetic scenes; ``run`` names its folder."""

    def compose(*overrides: str, run: str = "run", steps: int = 4, pictures: bool = False) -> DictConfig:
        return composed(scenes, tmp_path / run, *overrides, steps=steps, pictures=pictures)

    return compose


@pytest.fixture(scope="session")
def one_step(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of one step."""
    folder = tmp_path_factory.mktemp("one_step")
    train(composed(scenes, folder, steps=1))
    return folder / "checkpoints" / "last.ckpt"

"""The data that a checkpoint names, which may come from a stranger."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from src.checkpoints.files import CheckpointError
from src.config import compose_config, to_plain
from src.data.new_categories import NewCategoryData
from src.engine.stored_data import build_data
from src.errors import UserError


def stored(*overrides: str) -> dict[str, Any]:
    return to_plain(compose_config("train", ["run_dir=.", *overrides]))


@pytest.mark.parametrize("choice", ["synthetic", "mass13k", "camvid", "own"])
def test_every_dataset_is_found_again(choice: str) -> None:
    options = ["data.root=somewhere", "model.backbone.weights=none"]
    config = stored(f"data={choice}", *options)
    data = build_data(config, num_workers=0)
    assert list(data.taxonomy.names) == list(config["data"]["classes"])


def test_data_with_new_categories() -> None:
    config = stored("data=camvid_car", "data.root=somewhere", "model.backbone.weights=none")
    assert isinstance(build_data(config), NewCategoryData)


@pytest.mark.parametrize("place", ["_target_", "root", "folders", "store", "synthetic"])
def test_nothing_else_is_called(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = {"_target_": "os.mkdir", "path": str(tmp_path / "called")}
    config = stored("model.backbone.weights=none")
    config["data"] = command if place == "_target_" else config["data"] | {place: command}
    with pytest.raises(UserError, match=r"os\.mkdir") if place == "_target_" else suppress(UserError):
        build_data(config)
    assert not (tmp_path / "called").exists()


def test_interpolations_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    config = stored("data=mass13k", "model.backbone.weights=none")
    config["data"]["root"] = str(tmp_path / "${oc.env:SECRET}")
    with pytest.raises(UserError, match=r"\$\{oc\.env:SECRET\}"):
        build_data(config).setup("validate")


def test_scenes_are_not_drawn_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = stored("model.backbone.weights=none")
    config["data"]["root"] = str(tmp_path / "there")
    with pytest.raises(CheckpointError, match="would draw synthetic scenes"):
        build_data(config)
    (tmp_path / "there").mkdir()
    build_data(config)
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize("data", [None, {}, {"_target_": 3}, {"_target_": "src.data.datamodule.log"}])
def test_broken_configurations(data: Any) -> None:
    with pytest.raises(CheckpointError, match="give the data yourself"):
        build_data({"data": data})

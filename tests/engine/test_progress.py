"""The bar of a run, as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from src.engine.progress import RunProgressBar


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.log("val/mIoU", 62.35, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(
    folder: Path,
    steps: int,
    seconds: float = 0,
    accumulate: int = 1,
    validates: bool = True,
    **options: Any,
) -> None:
    batches = torch.utils.data.DataLoader(torch.ones(4, 2))
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        callbacks=[RunProgressBar(seconds), ModelCheckpoint(folder, "last", enable_version_counter=False)],
    )
    trainer.fit(Model(), batches, batches if validates else None, **options)


def counts(printed: str) -> list[str]:
    lines = [line for line in re.split(r"[\r\n]", printed) if line.startswith("Training")]
    return [match.group() for line in lines if (match := re.search(r"\d+/\d+", line))]


def test_it_counts_steps_over_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, steps=6)
    printed = capsys.readouterr().out
    assert list(dict.fromkeys(counts(printed)))[-6:] == [f"{step}/6" for step in range(1, 7)]
    assert "Epoch" not in printed
    assert "val/mIoU=62.4%" in printed or "val/mIoU=62.3%" in printed


def test_it_counts_steps_not_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, steps=3, accumulate=2)
    assert counts(capsys.readouterr().out)[-1] == "3/3"


def test_a_resumed_run_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, steps=4)
    capsys.readouterr()
    fit(tmp_path, steps=6, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    shown = list(dict.fromkeys(counts(capsys.readouterr().out)))
    assert shown[-3:] == ["4/6", "5/6", "6/6"]
    assert not {"1/6", "2/6", "3/6"} & set(shown)


def test_it_moves_with_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, steps=40, seconds=3600, validates=False)
    shown = counts(capsys.readouterr().out)
    assert shown[-1] == "40/40"
    assert len(set(shown)) < 5

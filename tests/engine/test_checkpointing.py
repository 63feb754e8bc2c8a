"""When a run ends, and what it leaves: ends by time and by epochs, steps of several batches."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

from src.engine.checkpointing import LastCheckpoint, LastValidation, RunTimer, WholeCheckpoints


class Model(LightningModule):
    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seconds = seconds
        self.validated: list[int] = []

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, _: int) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(folder: Path, model: Model, every: int = 1000, resume: Path | None = None, **options: Any) -> Trainer:
    """Epochs of 10 batches; the callbacks of ``options`` come first."""
    last = LastCheckpoint(folder, "last", every_n_train_steps=every, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=1000,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[*options.pop("callbacks", []), last, LastValidation()],
        plugins=[WholeCheckpoints()],
        **options,
    )
    train, validation = (torch.utils.data.DataLoader(torch.ones(count, 2)) for count in (10, 1))
    trainer.fit(model, train, validation, ckpt_path=resume, weights_only=True)
    return trainer


def saved_step(folder: Path) -> int:
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert isinstance(step, int)
    return step


@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 0}])
def test_a_run_that_ends_by_time_is_saved_between_steps(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = fit(
        tmp_path,
        Model(seconds=0.1),
        max_steps=100,
        max_epochs=-1,
        accumulate_grad_batches=5,
        callbacks=[RunTimer(timedelta(seconds=0.55))],
        **options,
    )
    assert 1 <= trainer.global_step < 100
    assert saved_step(tmp_path) == trainer.global_step


def test_the_time_before_a_resume_does_not_count(tmp_path: Path) -> None:
    def steps(resume: Path | None = None) -> int:
        limit = RunTimer(timedelta(seconds=0.5))
        return fit(
            tmp_path, Model(0.1), resume=resume, max_steps=100, max_epochs=-1, callbacks=[limit]
        ).global_step

    first = steps()
    assert steps(tmp_path / "last.ckpt") > first


def test_the_last_step_of_the_last_epoch_is_saved_and_validated(tmp_path: Path) -> None:
    model = Model()
    trainer = fit(tmp_path, model, every=7, max_epochs=3)
    assert trainer.global_step == saved_step(tmp_path) == 30
    assert model.validated == [30]


def test_no_interval_saves_the_last_step_alone(tmp_path: Path) -> None:
    fit(tmp_path, Model(), every=0, max_steps=3, max_epochs=-1)
    assert saved_step(tmp_path) == 3

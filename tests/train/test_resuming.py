"""Going on with a run: exactly, or with a word about what has changed; checkpoints are never lost."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from src.checkpoints.files import write
from src.checkpoints.network import build_network
from src.config import to_plain
from src.engine.checkpointing import WholeCheckpoints
from src.engine.module import SegmentationModule
from src.errors import UserError
from src.train import train


@pytest.mark.parametrize("averaged", ["recipe.ema_decay=null", "recipe.ema_decay=0.5"])
def test_the_last_checkpoint_is_the_last_steps(
    configure: Callable[..., DictConfig], tmp_path: Path, averaged: str
) -> None:
    train(configure(averaged, "recipe.save_every=2", run="uneven", steps=3))
    train(configure(averaged, run="even", steps=3))
    uneven, even = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("uneven", "even")
    )
    assert uneven["global_step"] == even["global_step"] == 3
    for part in ("state_dict", "current_model_state"):
        assert (part in uneven) == (part in even)
        for name, tensor in even.get(part, {}).items():
            assert torch.equal(uneven[part][name], tensor), name


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["recipe.ema_decay=null", "trainer.accumulate_grad_batches=2", "num_workers=1"],
        ["trainer.max_steps=-1", "trainer.max_epochs=1", "recipe.samples_per_epoch=12"],
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    extra = [*extra, "recipe.save_every=3", "recipe.val_every=5"]  # neither falls on the end of an epoch
    train(configure(*extra, run="whole", steps=6, pictures=True))

    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 5:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_train_batch_end", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(*extra, run="killed", steps=6, pictures=True))
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    train(configure(*extra, f"resume={last}", run="resumed", steps=6, pictures=True))

    expected = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    actual = torch.load(tmp_path / "resumed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert expected["global_step"] == actual["global_step"] == 6
    for part in ("state_dict", "current_model_state"):
        for name, tensor in expected.get(part, {}).items():
            assert torch.equal(tensor, actual[part][name]), f"{part}: {name}"
    moments = expected["optimizer_states"][0]["state"]
    for index, state in moments.items():
        assert torch.equal(state["exp_avg"], actual["optimizer_states"][0]["state"][index]["exp_avg"])


def test_the_best_checkpoint_of_a_folder_stays_the_best(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint to resume from is written before its step is validated, and does not know that score."""
    log = SegmentationModule.log

    def worse_and_worse(self: SegmentationModule, name: str, value: Any, **options: Any) -> None:
        log(self, name, 100.0 - self.global_step if name == "val/mBIoU" else value, **options)

    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 2:
            raise RuntimeError("power cut")

    monkeypatch.setattr(SegmentationModule, "log", worse_and_worse)
    options = ["resume=auto", "recipe.val_every=2", "recipe.save_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_before_backward", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(*options, steps=4))
    best = tmp_path / "run/checkpoints/best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 2
    train(configure(*options, steps=4))
    assert torch.load(best, weights_only=True)["global_step"] == 2


def test_a_run_goes_on_from_its_own_folder(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a batch script that a cluster may start again and again."""
    caplog.set_level("INFO")
    auto = ["resume=auto", "recipe.save_every=1"]
    train(configure(*auto, run="whole", steps=4))
    assert "so training begins" in caplog.text

    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 2:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_before_backward", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(*auto, run="cut", steps=4))
    score = train(configure(*auto, run="cut", steps=4))
    states = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
        for run in ("whole", "cut")
    ]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name

    files = sorted((tmp_path / "cut").rglob("*"))
    assert train(configure(*auto, run="cut", steps=4)) == pytest.approx(score, abs=1e-4)
    assert "all 4 steps are done" in caplog.text
    assert sorted((tmp_path / "cut").rglob("*")) == files

    (tmp_path / "cut/scores.json").unlink()  # as of a run that was ended in its last validation
    assert train(configure(*auto, run="cut", steps=4)) == pytest.approx(score, abs=1e-4)
    assert (tmp_path / "cut/scores.json").is_file()
    assert "ended after" not in caplog.text


def test_resuming_another_network_is_refused(configure: Callable[..., DictConfig], one_step: Path) -> None:
    with pytest.raises(UserError, match="another network"):
        train(configure(f"resume={one_step}", "experiment=ablation_cst"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe.optimiser.lr=1e-5", r"recipe\.optimiser\.lr=0\.001 \(not 1e-05\)"),
        ("~data.classes.water", "trained for the"),
    ],
)
def test_resuming_with_what_would_have_no_effect_is_refused(
    configure: Callable[..., DictConfig], one_step: Path, change: str, message: str
) -> None:
    changes = [change, "model.num_classes=7"] if change.startswith("~") else [change]
    with pytest.raises(UserError, match=message):
        train(configure(f"resume={one_step}", *changes))


def test_resuming_in_the_same_folder_keeps_the_metrics(
    configure: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(configure(steps=2))
    metrics = tmp_path / "run" / "metrics.csv"
    before = metrics.read_bytes()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(configure(f"resume={last}", "recipe.batch_size=4", steps=4))
    assert (tmp_path / "run" / "metrics_1.csv").read_bytes() == before
    with metrics.open() as file:
        assert {int(row["step"]) for row in csv.DictReader(file)} == {2, 3}
    assert "data.batch_size was 2 and is 4 now" in caplog.text


def test_checkpoints_lie_between_steps_also_after_a_resume(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = WholeCheckpoints.save_checkpoint

    def record(
        self: WholeCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        saved.append(progress["current"]["processed"])
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", record)
    accumulated = ["trainer.accumulate_grad_batches=2", "recipe.save_every=1"]
    train(configure(*accumulated, steps=1))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(configure(*accumulated, f"resume={last}", "recipe.val_every=2", run="resumed", steps=2))
    assert saved
    assert all(batches % 2 == 0 for batches in saved)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # beside its place, or not at all
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpoints().save_checkpoint(
            {"step": 2, "weight": torch.zeros(1000), "broken": lambda: 0}, path
        )
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_changes_that_a_resumed_run_feels_are_told(
    configure: Callable[..., DictConfig],
    one_step: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def power_cut(*_: object) -> None:
        raise RuntimeError("power cut")

    resume = f"resume={one_step}"
    with pytest.raises(UserError, match=r"recipe\.ema_decay=0\.98 \(not None\)"):
        train(configure(resume, "recipe.ema_decay=null", steps=2))
    changed = [
        "loss.points.kernel=7",
        "+data.max_class_share=0.9",
        "data.enlarge=true",
        "+trainer.deterministic=false",
    ]
    monkeypatch.setattr(SegmentationModule, "training_step", power_cut)  # changes are told before
    for changes in (["recipe.optimiser.warmup_steps=1", "trainer.precision=bf16-mixed"], changed):
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(resume, *changes, steps=2))
    assert "data.enlarge" not in caplog.text  # of scores alone
    for key, then, now in (
        ("loss.points.kernel", "5", "7"),
        ("data.max_class_share", "None", "0.9"),
        ("recipe.steps", "1", "2"),
        ("recipe.optimiser.warmup_steps", "15", "1"),
        ("trainer.precision", "32-true", "bf16-mixed"),
    ):
        assert f"{key} was {then} and is {now} now" in caplog.text


def test_lost_weights_do_not_replace_a_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SegmentationModule.optimizer_step

    def lose(self: SegmentationModule, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        if self.global_step == 3:
            next(self.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(SegmentationModule, "optimizer_step", lose)
    with pytest.raises(FloatingPointError, match=r"not finite"):
        train(configure("recipe.save_every=1", steps=6))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_lost_statistics_count_as_lost_weights(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fp16 leaves them: its scaler skips the step of an overflow, but norms have seen it."""

    step = SegmentationModule.optimizer_step

    def overflow(self: SegmentationModule, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        norm = next(m for m in self.modules() if isinstance(m, torch.nn.BatchNorm2d))
        norm.running_var.fill_(float("inf"))

    monkeypatch.setattr(SegmentationModule, "optimizer_step", overflow)
    with pytest.raises(FloatingPointError, match="statistics are not finite"):
        train(configure("recipe.save_every=1", steps=2))


def test_fewer_steps_than_are_done_are_refused(
    configure: Callable[..., DictConfig], tmp_path: Path, one_step: Path
) -> None:
    train(configure(f"resume={one_step}", steps=2))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=r"has done 2 steps, more than recipe\.steps=1"):
        train(configure(f"resume={last}", steps=1))


def test_only_training_can_be_resumed(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    config = to_plain(configure())
    write(tmp_path / "weights.ckpt", config, build_network(config).state_dict())
    with pytest.raises(UserError, match=r"weights alone.*init_from"):
        train(configure(f"resume={tmp_path / 'weights.ckpt'}"))

"""Runs that are told to stop, interrupted, or fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from src.engine.module import SegmentationModule
from src.errors import explained
from src.train import train
from tests.train.runs import REPOSITORY, TINY


def test_giving_up_is_no_success() -> None:
    """Lightning ends a program that got SIGTERM with an exit that has no code."""
    with pytest.raises(SystemExit) as stopped, explained():
        raise SystemExit
    assert stopped.value.code == 143
    with pytest.raises(SystemExit) as stopped, explained():
        raise SystemExit(3)
    assert stopped.value.code == 3


@pytest.mark.parametrize(
    ("accumulated", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)]
)
def test_a_run_told_to_stop_loses_nothing(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accumulated: int,
    number: signal.Signals,
) -> None:
    def signal_comes(self: SegmentationModule, *_: object) -> None:
        if (
            self.trainer.fit_loop.epoch_loop.total_batch_idx == accumulated
        ):  # the first batch of the second step
            os.kill(os.getpid(), number)

    monkeypatch.setattr(SegmentationModule, "on_before_backward", signal_comes)
    with pytest.raises(SystemExit) as stopped, explained():
        train(configure("recipe.save_every=100", f"trainer.accumulate_grad_batches={accumulated}"))
    assert stopped.value.code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"with resume={last} added to its overrides the run resumes at step 2" in caplog.text
    checkpoint = torch.load(last, weights_only=True)
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    assert (checkpoint["global_step"], batches) == (2, 2 * accumulated)  # between steps


def test_a_validation_told_to_stop_is_made_by_the_resumed_run(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def signal_comes(self: SegmentationModule, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_validation_epoch_start", signal_comes)
        with pytest.raises(SystemExit) as stopped, explained():
            train(configure(steps=1))
    assert stopped.value.code == 130
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"training had ended; with resume={last} added" in caplog.text
    assert not (tmp_path / "run/scores.json").exists()
    assert train(configure(f"resume={last}", run="resumed", steps=1)) is not None
    assert (tmp_path / "resumed/scores.json").is_file()
    resumed = torch.load(tmp_path / "resumed/checkpoints/best.ckpt", weights_only=True)
    assert resumed["global_step"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell who sent a signal")
@pytest.mark.parametrize(
    ("devices", "to_all", "number"),
    [
        (1, True, signal.SIGTERM),
        pytest.param(2, True, signal.SIGTERM, marks=pytest.mark.slow),
        (2, False, signal.SIGTERM),
        (2, True, signal.SIGINT),
    ],
)
def test_a_signal_to_all_processes_of_a_run_loses_nothing(
    scenes: Path, tmp_path: Path, devices: int, to_all: bool, number: signal.Signals
) -> None:
    """To one of two devices too, which tells the other."""
    arguments = [option for option in TINY if not option.startswith(("num_workers", "trainer.devices"))]
    arguments += [
        f"trainer.devices={devices}",
        f"data.root={scenes}",
        f"run_dir={tmp_path / 'run'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    arguments += ["recipe.save_every=100000", "recipe.val_every=100000", "recipe.steps=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments, "num_workers=1"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        curve, end = tmp_path / "run" / "metrics.csv", time.monotonic() + 300
        while not (curve.exists() and curve.read_text().count("\n") > 6):
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < end, "no step in five minutes"
            time.sleep(0.2)
        (os.killpg if to_all else os.kill)(run.pid, number)  # to all: terminals, timeout and some clusters
        said, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + number, said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"with resume={last} added to its overrides the run resumes at step {step}" in said
    assert f"stopped after step {step};" in said


def test_a_run_that_fails_says_how_it_can_go_on(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationModule, "on_train_batch_start", power_cut)
    with pytest.raises(SystemExit):
        train(configure("recipe.save_every=3", steps=4))
    assert "stopped after step 2; no checkpoint had been written yet (recipe.save_every is 3" in caplog.text
    with pytest.raises(SystemExit):
        train(configure("recipe.save_every=1", steps=4))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"with resume={last} added to its overrides the run resumes at step 2" in caplog.text


def test_a_second_interrupt_ends_a_run_at_once(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def impatient(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(SegmentationModule, "on_before_backward", impatient)
    with pytest.raises(SystemExit) as stopped, explained():
        train(configure())
    assert stopped.value.code == 1
    assert "Ctrl-C again ends at once" in caplog.text
    assert "stopped after step 0; no checkpoint had been written yet" in caplog.text

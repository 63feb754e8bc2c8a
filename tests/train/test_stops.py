"""Runs that are told to stop, interrupted, or fail."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from src.engine.module import SegmentationModule
from src.engine.slurm import resumable_name
from src.errors import explained
from src.train import train
from tests.train.runs import QUIET, REPOSITORY, TINY


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
    assert f"the command, given again with resume={last}, resumes at step 2" in caplog.text
    checkpoint = torch.load(last, weights_only=True)
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    assert (checkpoint["global_step"], batches) == (2, 2 * accumulated)  # between steps


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGUSR1")
@pytest.mark.parametrize("array", [False, True])
def test_slurm_queues_a_run_again(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    array: bool,
) -> None:
    """SLURM sends SIGUSR1 before the time limit of a job with --signal=SIGUSR1@90."""

    def signal_comes(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "massformer")
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "1200")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_before_backward", signal_comes)
        with pytest.raises(SystemExit), explained():
            train(configure("recipe.save_every=100"))
        assert "submit it again" in caplog.text  # there is no scontrol here
        scontrol = tmp_path / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
        scontrol.chmod(0o755)
        patch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(SystemExit) as stopped, explained():
            train(configure("recipe.save_every=100"))
    assert stopped.value.code == 143
    assert (tmp_path / "told").read_text() == f"requeue {'1200_7' if array else '1234'}\n"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert train(configure("recipe.save_every=100", "resume=auto")) is not None
    assert "resuming after step 2" in caplog.text
    (tmp_path / "told").unlink()
    with monkeypatch.context() as patch:  # in a validation, before which all is saved
        patch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(
            SegmentationModule, "on_validation_epoch_start", lambda _: os.kill(os.getpid(), signal.SIGUSR1)
        )
        with pytest.raises(SystemExit), explained():
            train(configure(run="other", steps=1))
    assert (tmp_path / "told").read_text().count("requeue") == 1


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
    assert (
        f"all 1 steps are done, but not scored: the command, given again with resume={last}, scores"
        in caplog.text
    )
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
    assert f"the command, given again with resume={last}, resumes at step {step}" in said
    assert f"stopped after step {step};" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="SLURM's processes share a folder on Linux")
def test_a_step_of_slurm_goes_on_where_it_was_ended(scenes: Path, tmp_path: Path) -> None:
    """Two processes as srun starts them: told to stop before the time limit, and started again."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    scontrol.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PATH": f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(port),
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NAME": "massformer",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    run = [option for option in [*TINY, *QUIET] if not option.startswith(("num_workers", "trainer.devices"))]
    run += ["trainer.devices=2", f"data.root={scenes}", "recipe.save_every=100000", "resume=auto"]
    run += ["recipe.steps=100000", "recipe.val_every=100000"]

    def start(rank: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "src.train", *run],
            cwd=tmp_path,
            env={**os.environ, **shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def told(to: slice) -> tuple[Path, list[str]]:
        """Start both, send some of them the signal after a step, and wait for their end."""
        began, end = time.time(), time.monotonic() + 300
        processes = [start(rank) for rank in range(2)]
        while not any(
            curve.stat().st_mtime > began and curve.read_text().count("\n") > 3
            for curve in tmp_path.glob("outputs/massformer/slurm_1234_0_*/metrics.csv")
        ):
            ended = [process for process in processes if process.poll() is not None]
            if ended or time.monotonic() > end:
                for process in processes:
                    process.kill()  # the others wait for it
                pytest.fail(ended[0].communicate()[0] if ended else "no step in five minutes")
            time.sleep(0.2)
        for process in processes[to]:
            process.send_signal(signal.SIGUSR1)
        said = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [143, 143], said
        (folder,) = (tmp_path / "outputs" / "massformer").iterdir()
        return folder, said

    folder, _ = told(slice(2))
    last = folder / "checkpoints" / "last.ckpt"
    done = torch.load(last, weights_only=True)["global_step"]
    again, said = told(slice(1, 2))  # the second alone
    assert again == folder
    assert f"resuming after step {done}" in said[0]
    assert "resuming" not in said[1]  # heard once
    assert torch.load(last, weights_only=True)["global_step"] > done
    assert (tmp_path / "told").read_text() == "requeue 1234\n" * 2


@pytest.mark.parametrize("steps", [0, 1])
def test_runs_in_one_step_of_slurm_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    monkeypatch.setenv("SLURM_STEP_ID", str(steps))
    monkeypatch.setenv("SLURM_JOB_NAME", "massformer")
    names = [resumable_name("time", "auto", overrides) for overrides in ("seed=0", "seed=0", "seed=1")]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith(f"slurm_1234_{steps}_") for name in names)
    assert resumable_name("time", None, "seed=0") == "time"
    monkeypatch.setenv("SLURM_STEP_ID", str(0xFFFFFFFA))  # of an interactive shell
    assert resumable_name("time", "auto", "seed=0") == "time"


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
    assert f"the command, given again with resume={last}, resumes at step 2" in caplog.text


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

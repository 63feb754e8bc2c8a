"""Several runs or processes, started as commands: sweeps, devices, faults."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from src.train import train
from tests.train.runs import QUIET, REPOSITORY, TINY, run_module


@pytest.mark.slow
def test_a_sweep_makes_one_run_for_every_rung(scenes: Path, tmp_path: Path) -> None:
    rungs = ["ablation_baseline", "ablation_egf"]
    overrides = [o for o in TINY if not o.startswith("logger.wandb")]
    done = run_module(
        "src.train",
        "-m",
        f"experiment={','.join(rungs)}",
        *overrides,
        f"data.root={scenes}",
        "recipe.steps=1",
        "recipe.val_every=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        folder=tmp_path,
        WANDB_MODE="offline",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, rung in enumerate(rungs):
        folder = tmp_path / "sweep" / f"{number}_{rung}"
        for checkpoint in ("last.ckpt", "best.ckpt"):
            assert (folder / "checkpoints" / checkpoint).is_file()
        assert (folder / "scores.csv").is_file()
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [f"{i}: experiment={rung}" for i, rung in enumerate(rungs)]
    scores = json.loads((tmp_path / "sweep" / "1_ablation_egf" / "scores.json").read_text())
    assert float(rows[1]["mBIoU"]) == pytest.approx(scores["class"]["mean"]["BIoU"], abs=1e-6)
    assert "1: experiment=ablation_egf" in done.stdout


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(
    configure: Callable[..., DictConfig], scenes: Path, tmp_path: Path
) -> None:
    train(configure(pictures=True))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    common = [f"checkpoint={checkpoint}", "num_workers=0", "trainer.accelerator=cpu"]
    by_torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "src.evaluate"]
    starts = {  # Lightning starts the second process itself, and in the same run folder; torchrun does not
        "two": ["src.evaluate", *common, "trainer.devices=2"],
        "torchrun": [*by_torchrun, *common, "trainer.devices=2"],
    }
    expected = json.loads((tmp_path / "run" / "scores.json").read_text())
    for name, start in starts.items():
        (tmp_path / name).mkdir()
        done = run_module(*start, folder=tmp_path / name)
        assert done.returncode == 0, done.stderr[-3000:]
        (written,) = (tmp_path / name).glob("outputs/evaluate/*/scores.json")
        assert list(written.parent.parent.iterdir()) == [written.parent]
        if name == "torchrun":  # label maps are scored by the first process alone
            files = [f"predictions={written.parent / 'predictions'}", "data=mass13k", f"data.root={scenes}"]
            start = [*by_torchrun, *files, "num_workers=0", "report=null", "hydra.run.dir=files"]
            done = run_module(*start, folder=tmp_path / name)
            assert done.returncode == 0, done.stderr[-3000:]
            assert done.stdout.count("tables: ") == 1
        assert (written.parent / "report.html").is_file()
        assert len(list((written.parent / "predictions").iterdir())) == 3
        scores = json.loads(written.read_text())
        assert scores["images"] == 3
        for label, row in expected["class"].items():
            assert row == pytest.approx(scores["class"][label], nan_ok=True)


@pytest.mark.slow
def test_two_processes_train_together(scenes: Path, tmp_path: Path) -> None:
    done = run_module(
        "src.train",
        *[o for o in TINY if not o.startswith("trainer.devices")],
        "trainer.devices=2",
        f"data.root={scenes}",
        "recipe.steps=2",
        "recipe.val_every=2",
        f"hydra.run.dir={tmp_path / 'ddp'}",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "ddp" / "scores.json").read_text())["images"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_loss_that_one_process_loses_ends_all(scenes: Path, tmp_path: Path, rank: int) -> None:
    """Or the others would wait for its gradients."""
    program = tmp_path / "broken.py"
    program.write_text(
        f"""
import os
from src.config import run
from src.losses import criterion
from src.train import main

edge_loss, calls = criterion.edge_loss, []

def broken(logits, targets):
    calls.append(1)
    lost = len(calls) == 2 and int(os.environ.get("LOCAL_RANK", 0)) == {rank}
    return edge_loss(logits, targets) * (float("nan") if lost else 1)

criterion.edge_loss = broken
run(main, together=True)
"""
    )
    options = [option for option in [*TINY, *QUIET] if not option.startswith("trainer.devices")]
    options += ["trainer.devices=2", f"data.root={scenes}", "recipe.steps=4", "recipe.val_every=4"]
    done = subprocess.run(
        [sys.executable, str(program), *options, f"hydra.run.dir={tmp_path / 'run'}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "step 1: " in done.stderr
    assert ("loss_edge" if rank == 0 else "the loss of another process") in done.stderr


@pytest.mark.slow
def test_one_bad_run_does_not_end_a_sweep(scenes: Path, tmp_path: Path) -> None:
    done = run_module(
        "src.train",
        "-m",
        *TINY,
        f"data.root={tmp_path / 'nowhere'},{scenes}",
        "recipe.steps=1",
        "recipe.val_every=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        folder=tmp_path,
    )
    assert done.returncode == 1
    assert f"error: run 0: {tmp_path / 'nowhere'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith("these runs of the sweep failed: 0")
    assert (tmp_path / "sweep" / "1_massformer" / "scores.csv").is_file()
    failed, done_run = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()[1:]
    assert failed == f"0: data.root={tmp_path / 'nowhere'},,,"
    assert done_run.startswith(f"1: data.root={scenes},0.")


@pytest.mark.slow
def test_faults_of_the_command_end_with_one_message(tmp_path: Path) -> None:
    absent = run_module("src.train", "data=mass13k", "model/size=nano", "logger.wandb=null", folder=tmp_path)
    assert absent.returncode == 1
    assert "Traceback" not in absent.stderr
    assert "github.com/xiechenxi99/MaSS13K" in absent.stderr
    unknown = run_module("src.train", "recipe.step=3", folder=tmp_path)
    assert unknown.returncode == 1
    assert "recipe.step" in unknown.stderr

"""Tiny training runs, and programs of the project, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from omegaconf import DictConfig

from src.config import compose_config

REPOSITORY = Path(__file__).resolve().parents[2]

TINY = [
    "model/size=nano",
    "model.backbone.weights=none",
    "data=mass13k",
    "recipe.crop_size=64",
    "recipe.num_points=128",
    "recipe.samples_per_epoch=8",
    "recipe.validate_first=false",
    "num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
    "logger.wandb=null",
]


QUIET = ["callbacks.panels=null", "callbacks.early_look=null", "metrics.boundary_f1=false"]


def composed(scenes: Path, folder: Path, *overrides: str, steps: int, pictures: bool = False) -> DictConfig:
    return compose_config(
        "train",
        [
            *TINY,
            *([] if pictures else QUIET),
            f"data.root={scenes}",
            f"run_dir={folder}",
            f"recipe.steps={steps}",
            f"recipe.val_every={steps}",
            f"recipe.save_every={steps}",
            *overrides,
        ],
    )


def run_module(
    module: str, *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )

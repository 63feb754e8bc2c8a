"""Time of a training step alone and beside another one, with the libraries' waiting threads and with this project's.

    python -m scripts.bench_sharing                  # Linux, about two minutes on two cores

The nano model on two crops of 256 pixels. Each step is timed in processes of their own, all threads each; see
``src.machine.share_cores``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from scripts.bench_network import ELSEWHERE, ROOT, table
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain

_SIDES = {"libraries": {"GOMP_SPINCOUNT": ELSEWHERE["GOMP_SPINCOUNT"]}, "ours": {}}


def seconds_per_step(steps: int) -> float:
    """Mean over some steps, forward and backward, after two to warm up."""
    overrides = ["model/size=nano", "model.backbone.weights=none", "run_dir=."]
    network: Any = build_network(to_plain(compose_config("train", overrides))).train()
    images = torch.randn(2, 3, 256, 256)
    for step in range(steps + 2):
        if step == 2:
            start = time.perf_counter()
        found = network(images)
        outputs = (found.edge_logits, found.layers[-1].mask_logits, found.layers[-1].class_logits)
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
    return (time.perf_counter() - start) / steps


def measure(side: str, beside: int, steps: int) -> float:
    """Seconds per step of the slowest of ``beside`` processes that run at a time."""
    inherited = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    # as in ``python -m src.train``, the package comes before PyTorch
    program = (
        f"import src; from scripts.bench_sharing import seconds_per_step; print(seconds_per_step({steps}))"
    )
    command = [sys.executable, "-c", program]
    running = [
        subprocess.Popen(command, cwd=ROOT, env=inherited | _SIDES[side], stdout=subprocess.PIPE, text=True)
        for _ in range(beside)
    ]
    return max(float(process.communicate()[0]) for process in running)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args(arguments)
    rows = []
    for name, beside in (("alone", 1), ("two at a time", 2)):
        libraries, ours = (measure(side, beside, options.steps) for side in _SIDES)
        rows.append([name, f"{libraries:.2f}", f"{ours:.2f}", f"{libraries / ours:.2f}"])
    print(table(["seconds per step", "libraries", "ours", "ratio"], rows))


if __name__ == "__main__":
    main()

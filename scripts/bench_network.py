"""The networks, photos and processes that the benchmarks of inference and training share.

Weights are random, but no part idles: norms fit the data, and the deformable offsets are smooth and a pixel or two
long, as those of trained networks are. The time of a network does not depend on its weights otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.models.deformable import DeformableConv

# What the libraries do by themselves; the number of spins is from the manual of GNU's OpenMP.
ELSEWHERE = {"THP_MEM_ALLOC_ENABLE": "0", "GOMP_SPINCOUNT": "300000"}
ROOT = Path(__file__).resolve().parents[1]
_CELL = 16  # pixels of a photo between two random colours
_CALIBRATION = 384  # side of the images that norms and offsets fit


def training_config() -> dict[str, Any]:
    """Full MaSSFormer with a ResNet-50 and the paper's recipe, for one image at a time."""
    overrides = ["experiment=massformer", "data=mass13k", "recipe=paper", "recipe.pooled_norm=frozen"]
    return to_plain(compose_config("train", [*overrides, "run_dir=."]))


@torch.no_grad()
def make_network(seed: int = 0) -> Any:
    """MaSSFormer, ResNet-50, seven classes, random weights that use every part; in evaluation mode."""
    torch.manual_seed(seed)
    network: Any = build_network(training_config())
    offsets = [module.offset for module in network.modules() if isinstance(module, DeformableConv)]
    for conv in offsets:
        conv.weight.normal_()
    images = F.interpolate(torch.randn(2, 3, 24, 24), (_CALIBRATION, _CALIBRATION), mode="bicubic")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # of all batches alike
    handles = [conv.register_forward_hook(_limit_offsets) for conv in offsets]
    network.train().pixel_features(images)
    for handle in handles:
        handle.remove()
    for norm in norms:
        norm.reset_running_stats()
    network.pixel_features(images)
    return network.eval()


def saved_network(path: str) -> Any:
    """The network whose weights ``make_network`` made and someone saved, without what making them took."""
    network = build_network(training_config())
    network.load_state_dict(torch.load(path, weights_only=True, mmap=True))
    return network.eval()


def _limit_offsets(conv: nn.Conv2d, inputs: tuple[Tensor], offset: Tensor) -> Tensor:
    scale = 1 / offset.std()
    conv.weight.mul_(scale)
    assert conv.bias is not None
    conv.bias.normal_()
    return offset * scale + conv.bias[:, None, None]


def make_photo(height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, smooth random colours; the same for the same size."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(1, 3, height // _CELL, width // _CELL, generator=generator)
    rows = []
    for start in range(0, height, 1024):  # a large photo in float32 would count in the peak memory
        part = cells[:, :, start // _CELL : -(-min(start + 1024, height) // _CELL)]
        size = (min(1024, height - start), width)
        rows.append((F.interpolate(part, size, mode="bilinear")[0] * 50 + 128).clamp(0, 255).byte())
    return np.ascontiguousarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy())


def peak_gib(device: str = "cpu") -> float:
    """Most memory so far: of this process, resident; on a CUDA device, of its tensors."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated(device) / 2**30


class Worker:
    """A process that does one kind of work when it is asked to, and tells its time and peak memory.

    Args:
        module: script to run with ``-m``. arguments: of it.
        ours: whether it is this project's side; the others keep the allocator and the threads as they are elsewhere,
            see ``src.allocation`` and ``src.machine.share_cores``.
    """

    def __init__(self, module: str, arguments: Sequence[str], ours: bool) -> None:
        command = [sys.executable, "-m", module, *arguments]
        environment = dict(os.environ) if ours else os.environ | ELSEWHERE
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, task: str) -> dict[str, float]:
        """Send a line and wait for the answer, a line of JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: told below
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker ended early, exit code {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def answer(result: dict[str, float]) -> None:
    """Print a worker's answer."""
    print(json.dumps(result), flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, others to the right."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))

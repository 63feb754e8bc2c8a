"""What is known about memory before it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src import machine
from src.inference.memory import LiveBytes, WholeImageCost, available_bytes, bytes_per_pixel
from src.models.backbone import Backbone

KIB, GIB = 1024, 2**30


def test_live_bytes_counts_what_lives_at_a_time() -> None:
    given = torch.zeros(256)
    with LiveBytes() as live:
        a = torch.zeros(256)  # 1 KiB
        b = a.view(16, 16) + 1  # a view is no copy: 2 KiB
        del a
        c = torch.cat((b, b))  # 3 KiB
        del b, c
        given.add_(1)
        given[:4].clone()
    assert live.peak == 3 * KIB


@pytest.mark.parametrize(
    ("free", "limits", "expected"),
    [
        (40, ["max"], 30),  # no limit
        (40, ["16"], 12),
        (8, ["16"], 6),
        (40, ["24", "16"], 12),
        (0, ["16"], 12),  # no /proc/meminfo
        (40, [], 30),
        (1, [], 2),  # windows need that much
        (40, ["1"], 2),
        (0, [], 4),  # nothing is known
    ],
)
def test_the_smaller_of_what_is_free_and_what_a_container_may_take(
    free: int, limits: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory,hugetlb:/outer/inner\n0::/slurm/job\n")
    groups = ("slurm/job/memory.max", "memory/outer/memory.limit_in_bytes")
    for limit, place in zip(limits, groups, strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"{int(limit) * GIB if limit.isdigit() else limit}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {free * GIB // 1024} kB\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_GROUPS", own)
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo" if free else tmp_path / "absent")
    assert available_bytes(torch.device("cpu")) == expected * GIB


class Widening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 4, 1, 1).mean(1)  # 12 float32 channels and 1, beside the image


def test_bytes_per_pixel_of_a_known_encoder() -> None:
    assert bytes_per_pixel(Widening()) == 4 * (3 + 12 + 1)


@pytest.mark.parametrize(("name", "widest"), [("resnet50", 256 / 16), ("efficientnet_lite0", 96 / 4)])
def test_the_widest_map_counts_wherever_it_is(name: str, widest: float) -> None:
    """EfficientNet widens at stride 2, before the maps that it gives out."""
    found = bytes_per_pixel(Backbone(name, weights="none").eval())
    assert 2 * 4 * widest <= found <= 6 * 4 * widest


PREDICT = """
import sys
import numpy as np
import torch
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.inference import Predictor

torch.set_num_threads(1)
overrides = [*sys.argv[2:], "model.backbone.weights=none", "data=mass13k", "run_dir=."]
network = build_network(to_plain(compose_config("train", overrides))).eval()
side = int(sys.argv[1])
photo = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
predictor = Predictor(network, limit=None, mode="whole", memory_gb=64)
predictor(photo, scores=False)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) * 1024  # getrusage would count the peak of the process that started this one
print(peak / predictor.cost.bytes(side**2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize(
    "options",
    [
        ["model/size=nano"],
        ["experiment=massformer_lite"],
        ["experiment=massformer"],
        ["experiment=mask2former"],
        ["experiment=ablation_baseline"],
    ],
)
def test_the_estimate_bounds_the_peak_of_a_process(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, "1280", *options],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # or freed memory stays with threads, more or less of it
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.5 < float(done.stdout.split()[-1]) <= 1.0


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_features = nn.Embedding(1, 128)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.transformer_decoder = Widening(), Decoder()


def test_pixels_are_the_most_that_fit() -> None:
    for band_bytes in (None, 2**29):
        cost = WholeImageCost(Network(), band_bytes)
        for gib in (1.5, 2, 4, 16):
            pixels = cost.pixels(gib * 2**30)
            assert cost.bytes(pixels) <= gib * 2**30 < cost.bytes(pixels + 1)
    with pytest.raises(ValueError, match="too little"):
        cost.pixels(2**29)

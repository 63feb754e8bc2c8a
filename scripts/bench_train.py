"""Time and peak memory of a training step: the plain form against this project, each in its own process.

    python -m scripts.bench_train                    # 512x512, batch 1, some minutes
    python -m scripts.bench_train --device cuda --size 1024

Full MaSSFormer with a ResNet-50, forward, loss, backward and the optimiser's step. The plain form has torchvision's
deformable convolution and multiplies the mask logits of all seven predictions out before points are sampled; ours has
the project's own, samples before it multiplies, joins 1x1 convolutions with their norms, recomputes the encoder,
the high-resolution maps and the decoder's layers in backward, gives freed memory back, and keeps channels last. Both
take turns on the same crop; the losses of the first step, which start from equal weights, are printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench_network import Worker, answer, make_photo, peak_gib, table, training_config
from src.allocation import return_freed_memory
from src.checkpoints.network import build_network
from src.data.targets import boundary_map
from src.losses.criterion import SetCriterion
from src.losses.matcher import HungarianMatcher
from src.losses.points import BoundaryPoints
from src.models import pointwise
from src.models.deformable import deformable_backend
from src.models.recomputation import checkpoint_network
from src.structures import QueryPrediction, Targets, TrainingPrediction

SIDES = ("plain", "ours")
CLASSES = 7
LEARNING_RATE = 3e-4


def make_step(side: str, size: int, device: str) -> Callable[[], float]:
    """A function that does one training step and returns its loss."""
    torch.manual_seed(0)
    network: Any = build_network(training_config()).to(device)
    if side == "ours":
        checkpoint_network(network)
        network.to(memory_format=torch.channels_last)
    points = training_config()["recipe"]["num_points"]
    criterion = SetCriterion(CLASSES, HungarianMatcher(num_points=points), BoundaryPoints(points)).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, fused=side == "ours")
    image = torch.from_numpy(make_photo(size, size)).permute(2, 0, 1)[None].to(device)
    targets = make_targets(size, device)
    network.train()

    def loss_of_step() -> Tensor:
        prediction = network(network.normalise(image), targets)
        if side == "plain":
            prediction = multiplied_out(prediction)
        return torch.stack(list(criterion(prediction, targets).values())).sum()

    def step() -> float:
        torch.manual_seed(0)
        with plain_form() if side == "plain" else nullcontext():
            loss = loss_of_step()
            if side == "ours":
                return_freed_memory()
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if side == "ours":
            return_freed_memory()
        return float(loss.detach())

    return step


@contextmanager
def plain_form() -> Iterator[None]:
    """Torchvision's deformable convolution; convolution, norm and ReLU one after the other."""
    with (
        deformable_backend("torchvision"),
        mock.patch.object(pointwise, "applies", return_value=False),
    ):
        yield


def multiplied_out(prediction: TrainingPrediction) -> TrainingPrediction:
    """The same prediction, whose masks are whole maps of logits."""

    def whole(layer: QueryPrediction) -> QueryPrediction:
        logits = layer.mask_logits  # (B, Q, h, w)
        one = torch.eye(logits.shape[1], device=logits.device).expand(len(logits), -1, -1)
        return QueryPrediction(layer.class_logits, one, logits)

    return prediction._replace(layers=tuple(whole(layer) for layer in prediction.layers))


def make_targets(size: int, device: str) -> Targets:
    """Blobs of all classes."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, CLASSES, size // 32, size // 32, generator=generator)
    label: Tensor = F.interpolate(coarse, (size, size), mode="bicubic").argmax(1).byte()
    boundary = torch.from_numpy(boundary_map(np.ascontiguousarray(label[0].numpy())))
    return Targets(label.to(device), boundary[None].to(device))


def work(side: str, size: int, device: str) -> None:
    """One step for every line that comes in."""
    step = make_step(side, size, device)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = step()
        answer({"seconds": time.perf_counter() - start, "gib": peak_gib(device), "loss": loss})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "task", nargs="?", default="compare", choices=["compare", "work"], help=argparse.SUPPRESS
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=512, help="side of the crop, pixels")
    parser.add_argument("--rounds", type=int, default=3, help="after one step to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.task == "work":
        work(args.side, args.size, args.device)
        return
    common = ["--size", str(args.size), "--threads", str(args.threads), "--device", args.device]
    with (
        Worker("scripts.bench_train", ["work", "--side", "plain", *common], ours=False) as plain,
        Worker("scripts.bench_train", ["work", "--side", "ours", *common], ours=True) as ours,
    ):
        rounds = [(plain.ask("step"), ours.ask("step")) for _ in range(args.rounds + 1)]
    first, rest, last = rounds[0], rounds[1:], rounds[-1]
    seconds = [statistics.median(r[i]["seconds"] for r in rest) for i in (0, 1)]
    ratio = statistics.median(a["seconds"] / b["seconds"] for a, b in rest)
    rows = [
        [name, f"{seconds[i]:.2f}", f"{last[i]['gib']:.2f}", f"{first[i]['loss']:.4f}"]
        for i, name in enumerate(("plain form", "this project"))
    ]
    print(table([f"step {args.size}x{args.size}, batch 1", "seconds", "peak GiB", "first loss"], rows))
    print(f"{ratio:.2f} times faster, {last[1]['gib'] / last[0]['gib']:.2f} of the memory")


if __name__ == "__main__":
    main()

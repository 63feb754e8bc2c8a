"""Time the deformable convolution of this project on a CPU against torchvision's operator.

    python -m scripts.bench_deformable                  # all shapes of the network, about four minutes
    python -m scripts.bench_deformable --rounds 9 --threads 1 --only "C 128"

Both run in turns on the same inputs (smooth offsets of a few pixels, as a trained network predicts), so that a
busy machine slows both, though what else runs can still move a ratio. Printed are the medians over rounds of
both times and of their ratio, for the forward pass without gradients and for forward and backward together,
and the largest difference of the outputs or of any gradient, relative to the largest value of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from src.models.deformable import Backend, deform_conv2d


class Case(NamedTuple):
    """A deformable convolution of the network: where it is, its channels, kernel size, and map size."""

    place: str
    channels: int
    outputs: int
    kernel: int
    height: int
    width: int

    def __str__(self) -> str:
        channels = f"C {self.channels} -> {self.outputs}"
        return f"{self.place}: {channels}, k {self.kernel}, {self.height}x{self.width}"


CASES = (
    Case("RFB", 128, 32, 7, 192, 256),
    Case("RFB", 128, 32, 5, 192, 256),
    Case("RFB", 128, 32, 3, 192, 256),
    Case("RFB", 128, 32, 1, 192, 256),
    Case("LSE", 67, 64, 3, 512, 512),
    Case("EGF", 64, 64, 3, 512, 512),
    Case("CST", 128, 128, 3, 32, 32),
)
BACKENDS: tuple[Backend, Backend] = ("gather", "torchvision")


def make_inputs(case: Case, reach: float, batch: int, channels_last: bool) -> list[Tensor]:
    """x, offset, weight and mask; offsets vary over 8 pixels and have a standard deviation of ``reach``."""
    taps, size = case.kernel**2, (case.height, case.width)
    coarse = torch.randn(batch, 2 * taps, case.height // 8, case.width // 8)
    offset = F.interpolate(coarse, size=size, mode="bicubic")
    offset *= reach / offset.std()
    tensors = [
        torch.randn(batch, case.channels, *size),
        offset,
        torch.randn(case.outputs, case.channels, case.kernel, case.kernel),
        torch.rand(batch, taps, *size),
    ]
    if channels_last:
        tensors = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    return [t.requires_grad_() for t in tensors]


def forward(case: Case, tensors: list[Tensor], backend: Backend) -> Tensor:
    x, offset, weight, mask = tensors
    return deform_conv2d(x, offset, weight, mask, padding=case.kernel // 2, backend=backend)


def time_forward(case: Case, tensors: list[Tensor], backend: Backend) -> tuple[float, list[Tensor]]:
    """Seconds, and the output."""
    with torch.no_grad():
        start = time.perf_counter()
        out = forward(case, tensors, backend)
        return time.perf_counter() - start, [out]


def time_training(case: Case, tensors: list[Tensor], backend: Backend) -> tuple[float, list[Tensor]]:
    """Seconds of forward and backward, and the four gradients."""
    start = time.perf_counter()
    gradients = torch.autograd.grad(forward(case, tensors, backend).square().mean(), tensors)
    return time.perf_counter() - start, list(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each backend (default 5)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--batch", type=int, default=1, help="maps at once (default 1)")
    parser.add_argument(
        "--reach", type=float, default=1.5, help="standard deviation of offsets, pixels (default 1.5)"
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of the inputs")
    parser.add_argument("--only", default="", help="run the shapes whose name contains this, such as 'k 3'")
    args = parser.parse_args()
    cases = [case for case in CASES if args.only in str(case)]
    if not cases:
        parser.error(f"--only {args.only!r} matches none of: {'; '.join(map(str, CASES))}")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    print(
        f"torchvision against gather: {torch.get_num_threads()} threads, batch {args.batch}, median of {args.rounds}"
    )
    print(f"{'shape':36}{'pass':20}{'torchvision ms':>15}{'gather ms':>11}{'ratio':>7}{'difference':>12}")
    for case in cases:
        tensors = make_inputs(case, args.reach, args.batch, args.channels_last)
        for name, measure in (("forward", time_forward), ("forward + backward", time_training)):
            results = {backend: measure(case, tensors, backend)[1] for backend in BACKENDS}  # warms up, too
            difference = max(
                ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results.values(), strict=True)
            )
            del results
            times = [[measure(case, tensors, backend)[0] for backend in BACKENDS] for _ in range(args.rounds)]
            gather, reference = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(theirs / ours for ours, theirs in times)
            print(
                f"{case!s:36}{name:20}{reference:15.0f}{gather:11.1f}{ratio:7.1f}{difference:12.0e}",
                flush=True,
            )


if __name__ == "__main__":
    main()

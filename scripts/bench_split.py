"""Where the time of our inference goes, and what its convolutions alone would take.

Run by ``python -m scripts.bench_inference split``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.bench_network import table
from src.inference import Predictor, whole
from src.inference.bands import deformable
from src.inference.bands.encoder import BandedEncoder
from src.inference.bands.high_resolution import HighResolutionBranch
from src.models.deformable import DeformableConv

ROUNDS = 2
OTHER = "reading, image to tensor"


class Stopwatch:
    """Seconds by part; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._part, self._since = OTHER, time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        outer = self._part
        self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def _enter(self, name: str) -> None:
        now = time.perf_counter()
        self.spent[self._part] = self.spent.get(self._part, 0.0) + now - self._since
        self._part, self._since = name, now

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


def report_split(network: Any, photo: NDArray[np.uint8]) -> None:
    """Print seconds by part for one photo, and the time of the same convolutions done plainly."""
    height, width = photo.shape[:2]
    predictor = Predictor(network, limit=None, mode="whole", memory_gb=64)
    predictor(np.ascontiguousarray(photo[:256, :256]))
    watch = Stopwatch()
    decoder = predictor._network.pixel_decoder
    places: list[tuple[Any, str, str]] = [
        (BandedEncoder, "__call__", "encoder"),
        (decoder, "laterals_and_context", "laterals, squeeze-excite"),
        (decoder.context, "forward", "CST"),
        (decoder.scale, "forward", "RFB, the rest"),
        (decoder, "global_branch", "memories"),
        (deformable, "deform_conv2d", "deformable sampling and product"),
        (HighResolutionBranch, "fuse", "LSE and EGF, the rest"),
        (HighResolutionBranch, "mask_features", "mask features (twice)"),
        (whole, "_reduced", "mask features reduced"),
        (predictor._network.transformer_decoder, "decode", "transformer decoder"),
    ]
    with ExitStack() as stack:
        for owner, name, part in places:
            timed = watch.timed(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, timed))
        watch._since = time.perf_counter()
        with watch.part("scores and classes at the photo's size"):
            predictor(photo, scores=False)
    total = sum(watch.spent.values())
    limit = plain_convolutions(network, height, width)
    rows = [
        [part, f"{seconds:.2f}", f"{100 * seconds / total:.0f} %"]
        for part, seconds in sorted(watch.spent.items(), key=lambda item: -item[1])
    ]
    print(f"\n{width}x{height}")
    print(table(["part", "seconds", "share"], [*rows, ["all", f"{total:.2f}", "100 %"]]))
    print(f"the same convolutions done plainly: {limit:.2f} s; ours takes {total / limit:.2f} times that")


@torch.inference_mode()
def plain_convolutions(network: Any, height: int, width: int) -> float:
    """Seconds that every convolution of a network takes on ready inputs of the sizes it sees, nothing else.

    Deformable convolutions count as ordinary ones of the same kernel; mask products once at 1/2 and once each at the
    memories' sizes; linear layers are left out. Shapes come from a run on the ``meta`` device.
    """
    calls: dict[tuple[Any, ...], int] = {}
    shadow = copy.deepcopy(network).to("meta")

    def note(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        key = (
            type(conv),
            tuple(inputs[0].shape),
            tuple(conv.weight.shape),
            conv.stride,
            conv.padding,
            conv.groups,
        )
        calls[key] = calls.get(key, 0) + 1

    for module in shadow.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(note)
    shadow(torch.empty(1, 3, height, width, device="meta"))
    sizes = {
        "RFB": (height // 8, width // 8),
        "LSE": (height // 2, width // 2),
        "EGF": (height // 2, width // 2),
    }
    decoder = network.pixel_decoder
    for conv, size in (
        *((branch, sizes["RFB"]) for branch in decoder.scale.branches),
        (decoder.detail.deformable, sizes["LSE"]),
        (decoder.fusion.deformable, sizes["EGF"]),
        (decoder.context.coarse.deform, (height // 32, width // 32)),
        (decoder.context.fine.deform, (height // 16, width // 16)),
    ):
        assert isinstance(conv, DeformableConv)
        weight = conv.conv.weight.shape
        key = (nn.Conv2d, (1, weight[1], *size), tuple(weight), (1, 1), (conv.padding, conv.padding), 1)
        calls[key] = calls.get(key, 0) + 1
    queries = network.transformer_decoder.query_features.weight.shape
    for stride in (2, 8, 16, 32):
        key = (
            nn.Conv2d,
            (1, queries[1], height // stride, width // stride),
            (*queries, 1, 1),
            (1, 1),
            (0, 0),
            1,
        )
        calls[key] = calls.get(key, 0) + (1 if stride == 2 else 2)
    return sum(count * _time(*key) for key, count in calls.items())


def _time(
    kind: type[nn.Module],
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    stride: Any,
    padding: Any,
    groups: int,
) -> float:
    """Seconds of one convolution, in bands of rows where its maps are large; the best of some rounds."""
    largest = max(1, 2**26 // (4 * shape[1] * shape[3]))
    rows = min(shape[2], max(32, largest))
    x = torch.zeros(1, shape[1], rows, shape[3]).contiguous(memory_format=torch.channels_last)
    w = torch.zeros(weight).contiguous(memory_format=torch.channels_last)
    convolve = F.conv_transpose2d if issubclass(kind, nn.ConvTranspose2d) else F.conv2d
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        convolve(x, w, None, stride, padding, groups=groups)
        best = min(best, time.perf_counter() - start)
    return best * shape[2] / rows

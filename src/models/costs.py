"""Multiply-accumulates of a network, counted without computing anything.

The network and its input live on torch's ``meta`` device, so that a 4096x3072 image takes a second and no memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from src.models.deformable import deformable_backend

Costs = dict[str, Counter[str]]
"""Part of the network -> kind of operation -> multiply-accumulates."""

UNCOUNTED_BY_PAPER = ("deformable", "deformable_samples", "masked_scores")
"""Kinds that the paper's figures leave out, see ``count_macs``."""

OTHER = ""
"""Key of ``parts`` for everything that happens in no named module."""


def count_macs(network: nn.Module, height: int, width: int, parts: Mapping[str, str] | None = None) -> Costs:
    """Multiply-accumulates of one forward pass over one image.

    The kinds are

    ``convolution``         convolutions, transposed ones too
    ``linear``              linear layers, einsum and matrix products outside of attention
    ``attention``           scores times values, and query times key where there is no mask
    ``masked_scores``       query times key of masked attention
    ``deformable``          products with the weights of deformable convolutions
    ``deformable_samples``  bilinear samples of deformable convolutions, 4 per value
    ``sampling``            bilinear samples of deformable attention, 4 per value
    ``norm``                2 per value of BatchNorm, 5 of LayerNorm and GroupNorm
    ``resize``              bilinear resizing, 4 per value

    Activations, softmax, sums and pooling are not counted. The figures of "MaSS13K: A Matting-level Semantic
    Segmentation Benchmark" (CVPR 2025) come from counting the operators of a traced network, with a tool that
    knows neither deformable convolution nor the operator that computes masked scores: without
    ``UNCOUNTED_BY_PAPER`` the kinds add up to what that tool counts.

    Args:
        network: in evaluation mode, with all tensors on the ``meta`` device.
        height, width: of the image, pixels.
        parts: names of submodules (as in ``named_modules``; ``*`` stands for any number) and the name of the
            part that they belong to; ``OTHER`` names what happens in none of them. Modules inside others belong
            to the innermost named one.

    Raises:
        ValueError: the network is in training mode or holds memory.
    """
    if network.training or any(p.device.type != "meta" for p in network.parameters()):
        raise ValueError(
            "count_macs needs a network in evaluation mode, built under `with torch.device('meta')`"
        )
    parts = parts or {}
    counter = _Counter(parts.get(OTHER, "other"))
    handles = []
    for name, module in list(network.named_modules())[1:]:
        part = parts.get(".".join("*" if piece.isdigit() else piece for piece in name.split(".")))
        if part is not None:
            handles += counter.watch(module, part)
    try:
        with torch.no_grad(), deformable_backend("torchvision"), _Attention(counter), counter:
            network(torch.empty(1, 3, height, width, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return counter.costs


def total(costs: Costs, leaving_out: tuple[str, ...] = ()) -> int:
    """Sum over parts and kinds."""
    return sum(count for kinds in costs.values() for kind, count in kinds.items() if kind not in leaving_out)


class _Counter(TorchDispatchMode):
    """Adds up the operators that reach the dispatcher."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.costs: Costs = {}
        self._parts = [part]
        self._paused = False

    def add(self, kind: str, count: int) -> None:
        self.costs.setdefault(self._parts[-1], Counter())[kind] += count

    def watch(self, module: nn.Module, part: str) -> list[Any]:
        """Count what happens inside ``module`` as ``part``."""
        return [
            module.register_forward_pre_hook(lambda *_: self._parts.append(part)),
            module.register_forward_hook(lambda *_: self._parts.pop() and None),
        ]

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func.overloadpacket)
        if count is not None and not self._paused:
            for kind, number in count(args, out).items():
                self.add(kind, number)
        return out


class _Attention(TorchFunctionMode):
    """Counts attention where it is called: the dispatcher would see anonymous matrix products."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        (query, key, value), mask = args[:3], kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        masked = mask is not None
        rows = query.shape[:-1].numel()
        self._counter.add("masked_scores" if masked else "attention", rows * key.shape[-2] * key.shape[-1])
        self._counter.add("attention", rows * value.shape[-2] * value.shape[-1])
        with self._counter.paused():
            return func(*args, **kwargs)


def _convolution(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    x, weight, transposed = args[0], args[1], args[6]
    return {"convolution": (x if transposed else out).numel() * weight[0].numel()}


def _deformable(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    x, weight = args[:2]
    taps, positions = weight[0, 0].numel(), out.shape[0] * out[0, 0].numel()
    samples = positions * taps * x.shape[1]
    return {"deformable": out.numel() * weight[0].numel(), "deformable_samples": 4 * samples}


def _per_value(kind: str, factor: int) -> Callable[[tuple[Any, ...], Any], dict[str, int]]:
    def count(args: tuple[Any, ...], out: Any) -> dict[str, int]:
        return {kind: factor * (out[0] if isinstance(out, tuple) else out).numel()}

    return count


def _product(left: int) -> Callable[[tuple[Any, ...], Any], dict[str, int]]:
    """Matrix product of arguments ``left`` and ``left + 1``."""

    def count(args: tuple[Any, ...], out: Any) -> dict[str, int]:
        return {"linear": args[left].numel() * args[left + 1].shape[-1]}

    return count


_COUNTS: dict[Any, Callable[[tuple[Any, ...], Any], dict[str, int]]] = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.mm: _product(0),
    torch.ops.aten.bmm: _product(0),
    torch.ops.aten.addmm: _product(1),
    torch.ops.aten.baddbmm: _product(1),
    torch.ops.torchvision.deform_conv2d: _deformable,
    torch.ops.aten.grid_sampler_2d: _per_value("sampling", 4),
    torch.ops.aten.native_batch_norm: _per_value("norm", 2),
    torch.ops.aten.native_layer_norm: _per_value("norm", 5),
    torch.ops.aten.native_group_norm: _per_value("norm", 5),
    torch.ops.aten.upsample_bilinear2d: _per_value("resize", 4),
}

"""Trading computation for memory in training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_LONGEST = 6  # blocks of an encoder that are recomputed together; more at a time would take too much memory


def checkpoint_network(network: Any) -> None:
    """Make a segmenter forget its largest activations in training and recompute them in backward, in place.

    These are the inner maps of the encoder's stages and of the slots at half the image's size. Mask features stay;
    their own step keeps nothing besides them on a CPU (``src.models.pointwise``).
    """
    decoder = network.pixel_decoder
    slots = (getattr(decoder, name, None) for name in ("detail", "fusion"))
    for part in (*encoder_parts(network.backbone.encoder), *slots):
        if part is not None:
            checkpoint_activations(part)


def encoder_parts(encoder: nn.Module) -> Iterator[nn.Module]:
    """The parts of an encoder that run one after the other: its sequences of blocks; long ones block by block."""
    for child in encoder.children():
        if not isinstance(child, nn.Sequential) or isinstance(child[0], nn.Sequential):
            yield from encoder_parts(child)  # its stages may lie in one sequence
        elif len(child) > _LONGEST:
            yield from child
        elif any(True for _ in child[0].children()):
            yield child


def checkpoint_activations(module: nn.Module) -> None:
    """Make a module forget its activations in training and recompute them in backward, in place.

    Names of parameters and results stay the same. BatchNorm's running statistics are updated in the first
    computation only; plain activation checkpointing would update them twice.
    """
    # bound to the module by an argument, so that a copy of the module is bound to itself
    module.forward = functools.partial(_checkpointed, module)


def _checkpointed(module: nn.Module, *args: object) -> object:
    forward = functools.partial(type(module).forward, module)
    if not module.training:
        return forward(*args)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(norms)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """Normalise by batch statistics without moving the running ones."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1

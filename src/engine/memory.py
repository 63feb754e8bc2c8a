"""Trading computation for memory in training."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


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


def checkpoint_activations(module: nn.Module) -> None:
    """Make a module forget its activations in training and recompute them in backward, in place.

    Names of parameters and results stay the same. BatchNorm's running statistics are updated in the first
    computation only; plain activation checkpointing would update them twice.
    """
    forward = module.forward
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept([norm for norm in norms if norm.training])

    @functools.wraps(forward)
    def checkpointed(*args: object) -> object:
        if not module.training:
            return forward(*args)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)

    module.forward = checkpointed

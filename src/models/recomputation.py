"""Trading computation for memory in training."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from timm.models import FeatureListNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_LONGEST = 6  # blocks of an encoder that are recomputed together; more at a time would take too much memory


def checkpoint_network(network: Any) -> None:
    """Make a segmenter forget its largest activations in training and recompute them in backward, in place.

    These are the inner maps of the encoder's stem and stages, of the slots from stride 2 to 8, and of the layers of
    the transformer decoder. Mask features stay; their own step keeps nothing besides them on a CPU
    (``src.models.pointwise``).
    """
    decoder = network.pixel_decoder
    slots = (getattr(decoder, name, None) for name in ("scale", "detail", "fusion"))
    layers = getattr(network.transformer_decoder, "layers", ())
    checkpoint_stem(network.backbone.encoder)
    for part in (*encoder_parts(network.backbone.encoder), *slots, *layers):
        if part is not None:
            checkpoint_activations(part)


def checkpoint_stem(encoder: nn.Module) -> None:
    """Make an encoder forget the maps between its layers before the first stage, the largest that it has, in place.

    In training the first of these layers does the work of all, and the others hand on what they get. Only where timm
    runs the encoder's children one after the other, and takes no features among these.
    """
    if not isinstance(encoder, FeatureListNet):
        return
    children = list(encoder.named_children())
    stages = [i for i, (_, child) in enumerate(children) if _has_blocks(child)]
    stem = dict(children[: stages[0]] if stages else [])
    if len(stem) < 2 or stem.keys() & set(encoder.return_layers):
        return
    first, *others = stem.values()
    first.forward = functools.partial(_checkpointed, first, behind=others)
    for layer in others:
        layer.forward = functools.partial(_handed_on, layer, first)


def encoder_parts(encoder: nn.Module) -> Iterator[nn.Module]:
    """The parts of an encoder that run one after the other: its sequences of blocks; long ones block by block."""
    for child in encoder.children():
        if not isinstance(child, nn.Sequential) or isinstance(child[0], nn.Sequential):
            yield from encoder_parts(child)  # its stages may lie in one sequence
        elif len(child) > _LONGEST:
            yield from child
        elif _has_blocks(child):
            yield child


def _has_blocks(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and any(True for _ in module[0].children())


def checkpoint_activations(module: nn.Module) -> None:
    """Make a module forget its activations in training and recompute them in backward, in place.

    Names of parameters and results stay the same. BatchNorm's running statistics are updated in the first
    computation only; plain activation checkpointing would update them twice.
    """
    # bound to the module by an argument, so that a copy of the module is bound to itself
    module.forward = functools.partial(_checkpointed, module)


def _checkpointed(module: nn.Module, *args: object, behind: Sequence[nn.Module] = ()) -> object:
    """``module`` and in training also the modules behind it, of which each takes what the last one gave."""
    if not module.training:
        return _forward(module, *args)
    run = (module, *behind)
    norms = [m for part in run for m in part.modules() if isinstance(m, _BatchNorm) and m.training]

    def forward(*args: object) -> object:
        found = _forward(module, *args)
        for part in behind:
            found = _forward(part, found)
        return found

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(norms)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts)


def _handed_on(module: nn.Module, first: nn.Module, x: object) -> object:
    return x if first.training else _forward(module, x)


def _forward(module: nn.Module, *args: object) -> object:
    """What a module does apart from recomputation."""
    return type(module).forward(module, *args)


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

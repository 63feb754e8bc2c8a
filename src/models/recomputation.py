"""Trading computation for memory in training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.models import FeatureListNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

log = logging.getLogger(__name__)

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
    encoder = network.backbone.encoder
    checkpoint_stem(encoder)
    stages = stages_of(encoder)
    if not stages:
        log.warning("activation_checkpointing: the encoder's stages are not found, so its maps are all kept")
    for part in (*stages, *slots, *layers):
        if part is not None:
            checkpoint_activations(part)


def stages_of(encoder: nn.Module) -> list[nn.Module]:
    """The parts of an encoder to recompute one by one; none where they are not found."""
    return list(encoder_parts(encoder)) or list(_whole_stages(encoder))


def checkpoint_stem(encoder: nn.Module) -> None:
    """Make an encoder forget the maps between its layers before the first stage, the largest that it has, in place.

    Only where timm runs the encoder's children one after the other, and takes no features among these.
    """
    if not isinstance(encoder, FeatureListNet):
        return
    children = list(encoder.named_children())
    stages = [i for i, (_, child) in enumerate(children) if _has_blocks(child)]
    stem = [name for name, _ in children[: stages[0]]] if stages else []
    if len(stem) > 1 and not set(stem) & set(encoder.return_layers):
        encoder.forward = functools.partial(_without_stem, encoder, frozenset(stem))  # type: ignore[method-assign]


def encoder_parts(encoder: nn.Module) -> Iterator[nn.Module]:
    """The parts of an encoder that run one after the other: its sequences of blocks; long ones block by block."""
    for child in encoder.children():
        if not isinstance(child, nn.Sequential) or isinstance(child[0], nn.Sequential):
            yield from encoder_parts(child)  # its stages may lie in one sequence
        elif len(child) > _LONGEST:
            yield from child
        elif _has_blocks(child):
            yield child


def _whole_stages(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of an encoder whose stages are modules of a kind of their own, as in RegNet."""
    children = list(module.children())
    if len(children) == 1 and not isinstance(module, nn.Sequential):
        yield from _whole_stages(children[0])  # the encoder itself in a wrapper, which calls its stages alone
        return
    for child in children:
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from child.children()
        elif sum(isinstance(m, nn.Conv2d | nn.Linear) for m in child.modules()) > 1:
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


def _checkpointed(module: nn.Module, *args: object) -> object:
    def forward(*given: object) -> object:
        # HRNet's modules put what they make into the list that they get, which has to be there again in backward
        return type(module).forward(module, *(list(x) if isinstance(x, list) else x for x in given))

    return _recomputed(forward, [module], *args) if module.training else forward(*args)


def _without_stem(encoder: FeatureListNet, stem: frozenset[str], x: Tensor) -> list[Tensor]:
    """What timm's own forward pass gives. Layers are found by their names, since they may have been replaced."""
    if not encoder.training:
        return type(encoder).forward(encoder, x)
    layers = [layer for name, layer in encoder.items() if name in stem]
    found: Any = _recomputed(
        lambda image: functools.reduce(lambda x, layer: layer(x), layers, image), layers, x
    )
    features = []
    for name, layer in encoder.items():
        if name not in stem:
            found = layer(found)
            if name in encoder.return_layers:
                features.append(found)
    return features


@torch.compiler.disable  # it does not take checkpoints with contexts of their own
def _recomputed(forward: Callable[..., object], modules: Iterable[nn.Module], *args: object) -> object:
    """``forward(*args)``, which runs ``modules``, and again in the backward pass."""
    norms = [m for part in modules for m in part.modules() if isinstance(m, _BatchNorm) and m.training]

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

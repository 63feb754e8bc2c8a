"""A copy of a network for inference: convolutions do what follows them, channels last in memory.

In evaluation mode BatchNorm is a scale and a shift per channel, which a convolution before it absorbs. ReLU after a
convolution, and the sum at the end of a residual block, happen while it writes its result (see
``src.models.convolution``); receptive field boosting works in bands.
Outputs change by rounding only. The network itself is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from src.inference.bands.receptive_field import BandedReceptiveField
from src.models.convolution import Convolution, Geometry, RectifiedConv, ResidualBlock, folded
from src.models.deformable import DeformableConv
from src.models.layers import full_float32
from src.models.pixel_decoder.rfb import ReceptiveFieldBoosting

_PROBE = 64  # side of the image that shows which norm follows which convolution


@full_float32()  # or rounding would hide whether both agree
@torch.inference_mode(False)  # whose tensors do not say whether they were changed
@torch.no_grad()
def inference_copy(network: Any) -> Any:
    """A copy that gives the same answers faster.

    Args:
        network: a segmenter in evaluation mode.
    """
    like = next(network.parameters())
    probe = torch.linspace(-1, 1, 3 * _PROBE**2, dtype=like.dtype, device=like.device)
    probe = probe.view(1, 3, _PROBE, _PROBE)
    simplified = _simplified(copy.deepcopy(network), probe)
    if not _agree(network, simplified, probe):  # an encoder that uses a convolution's output in two places
        simplified = copy.deepcopy(network)
    return simplified.to(memory_format=torch.channels_last)


def _simplified(network: nn.Module, probe: Tensor) -> nn.Module:
    for module in network.modules():
        if isinstance(module, DeformableConv):
            weight, bias = folded(module.conv, module.norm)
            module.conv.weight.copy_(weight)
            module.conv.bias = nn.Parameter(bias)
            module.add_module("norm", nn.Identity())
    for conv, norm, parent, name in _followed_by(nn.BatchNorm2d, network, probe):
        weight, bias = folded(conv, norm)
        conv.weight.copy_(weight)
        conv.bias = nn.Parameter(bias)
        # timm's BatchNormAct2d holds an activation as well
        setattr(parent, name, getattr(norm, "act", nn.Identity()))
    _rectify(network, probe)
    decoder: Any = getattr(network, "pixel_decoder", None)
    if isinstance(getattr(decoder, "scale", None), ReceptiveFieldBoosting):
        decoder.scale = BandedReceptiveField(decoder.scale)
    return network


def _agree(network: Any, simplified: Any, probe: Tensor) -> bool:
    """Whether both give the same maps up to rounding."""
    tolerance = torch.finfo(probe.dtype).eps ** 0.5
    try:
        found = _maps(simplified, probe)
    except (RuntimeError, ValueError, TypeError):
        return False
    pairs = zip(_maps(network, probe), found, strict=True)
    return all(float((a - b).abs().max()) <= tolerance * float(a.abs().max()) for a, b in pairs)


def _maps(network: Any, probe: Tensor) -> list[Tensor]:
    pixels = network.pixel_features(probe)
    return [pixels.mask_features, *pixels.memories]


def _rectify(network: nn.Module, probe: Tensor) -> None:
    """Let convolutions do the ReLU and the residual sum that follow them."""
    places = _places(network)
    for conv, _, parent, name in _followed_by(nn.ReLU, network, probe):
        if isinstance(conv, nn.Conv2d) and (geometry := Geometry.of(conv)) is not None:
            owner, own_name = places[conv]
            setattr(owner, own_name, RectifiedConv(conv, geometry))
            setattr(parent, name, nn.Identity())
    for block, (parent, name) in places.items():
        if isinstance(block, BasicBlock | Bottleneck):
            setattr(parent, name, _residual(block) or block)


def _residual(block: BasicBlock | Bottleneck) -> ResidualBlock | None:
    """The same block, or None where something lies between its last convolution and the ReLU."""
    if isinstance(block, BasicBlock):
        names = ["conv1", "bn1", "drop_block", "act1", "aa"]
        last, after, relu = block.conv2, block.bn2, block.act2
    else:
        names = ["conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa"]
        last, after, relu = block.conv3, block.bn3, block.act3
    nothing_between = all(x is None or isinstance(x, nn.Identity) for x in (after, block.se, block.drop_path))
    geometry = Geometry.of(last)
    if geometry is None or not nothing_between or not isinstance(relu, nn.ReLU):
        return None
    inner = nn.Sequential(*(part for name in names if (part := getattr(block, name)) is not None))
    return ResidualBlock(inner, last, geometry, block.downsample)


def _places(network: nn.Module) -> dict[nn.Module, tuple[nn.Module, str]]:
    return {child: (parent, name) for parent in network.modules() for name, child in parent.named_children()}


def _followed_by(
    kind: type[nn.Module], network: nn.Module, probe: Tensor
) -> list[tuple[Convolution, Any, nn.Module, str]]:
    """Convolutions whose output goes into a module of a kind, with that module, its parent and its name there."""
    places = _places(network)
    with _trace(network, kind) as trace:
        network(probe)
    pairs = []
    for follower, inputs in trace.inputs.items():
        conv = next((conv for conv, y in trace.outputs.items() if all(x == y for x in inputs)), None)
        if conv is not None:
            pairs.append((conv, follower, *places[follower]))
    return pairs


class _State(NamedTuple):
    """A tensor as it was: two are equal if they are the same one, not changed in between."""

    tensor: int
    version: int


class _Trace:
    def __init__(self) -> None:
        self.outputs: dict[Convolution, _State] = {}
        self.inputs: dict[nn.Module, list[_State]] = {}
        self._alive: list[Tensor] = []  # so that no identity is given twice

    def state(self, x: Tensor) -> _State:
        self._alive.append(x)
        return _State(id(x), x._version)


@contextmanager
def _trace(network: nn.Module, kind: type[nn.Module]) -> Iterator[_Trace]:
    """Record what convolutions give and modules of a kind take."""
    trace, handles = _Trace(), []

    def gave(conv: Convolution, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        trace.outputs[conv] = trace.state(output)

    def takes(follower: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        trace.inputs.setdefault(follower, []).append(trace.state(inputs[0]))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            handles.append(module.register_forward_hook(gave))
        elif isinstance(module, kind):
            handles.append(module.register_forward_pre_hook(takes))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()

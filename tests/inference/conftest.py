"""A small network whose every part matters: no zero offsets, masks of both signs, several classes.

Its attention masks have few pixels, so that rounding which moves one mask logit across the threshold moves scores
by more than 1e-4, in the plain forward too. Whether two orders of operations are equal is therefore asked in float64,
of the ``exact`` networks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from src.models.backbone import Backbone
from src.models.deformable import DeformableConv
from src.models.pixel_decoder.cst import CrossSemanticTransmission
from src.models.pixel_decoder.dual_branch import DualBranchPixelDecoder
from src.models.pixel_decoder.egf import EdgeGuidedFusion
from src.models.pixel_decoder.lse import LowLevelStructure
from src.models.pixel_decoder.plain import PlainDetail, PlainFusion
from src.models.pixel_decoder.rfb import ReceptiveFieldBoosting
from src.models.segmenter import Segmenter
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder


def photo(size: tuple[int, int] = (170, 233)) -> torch.Tensor:
    """(3, *size) uint8, smooth colours."""
    coarse = torch.rand(1, 3, 12, 15, generator=torch.Generator().manual_seed(0)) * 255
    return nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255)[0].byte()


def limit_offsets(conv: nn.Conv2d, inputs: tuple[torch.Tensor], offset: torch.Tensor) -> torch.Tensor:
    """Let offsets differ by a pixel from place to place, around another mean for every tap."""
    scale = 1 / offset.std()
    conv.weight.mul_(scale)
    assert conv.bias is not None
    conv.bias.normal_(std=1.5)
    return offset * scale + conv.bias[:, None, None]


def build(*, high_resolution: bool, encoder: str = "resnet18") -> Segmenter:
    torch.manual_seed(6)
    decoder = functools.partial(
        DualBranchPixelDecoder,
        width=16,
        query_width=32,
        context=CrossSemanticTransmission(16, 32, window=4, num_heads=4),
        scale=ReceptiveFieldBoosting(16),
        detail=LowLevelStructure(16) if high_resolution else PlainDetail(),
        fusion=EdgeGuidedFusion(16) if high_resolution else PlainFusion(),
    )
    transformer = MaskedAttentionDecoder(3, 32, 64, num_queries=10, num_layers=3, num_heads=4)
    network = Segmenter(Backbone(encoder, weights="none"), decoder, transformer)
    with torch.no_grad():
        offsets = [module.offset for module in network.modules() if isinstance(module, DeformableConv)]
        for conv in offsets:
            conv.weight.normal_()
        # norms that fit the data keep signals alive through all layers
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        network.train().pixel_features(torch.randn(2, 3, 192, 192))
        for norm in norms:
            norm.bias.normal_(std=0.3)
        network.pixel_decoder.mask_output.norm.bias.sub_(0.5)
        network.transformer_decoder.mask_head[-1].weight.mul_(2)
        network.transformer_decoder.class_head.weight.mul_(6)
        network.transformer_decoder.query_features.weight.mul_(20)  # queries that differ
        network.eval()
        handles = [conv.register_forward_hook(limit_offsets) for conv in offsets]
        network.pixel_features(network.normalise(photo())[None])
        for handle in handles:
            handle.remove()
        answer = network(network.normalise(photo())[None])  # and classes that all win somewhere
        network.transformer_decoder.class_head.bias.sub_(answer.class_logits.mean((0, 1)))
    return network


@pytest.fixture(scope="session")
def network() -> Segmenter:
    """MaSSFormer in small, with random weights; 3 classes."""
    return build(high_resolution=True)


@pytest.fixture(scope="session")
def plain_network() -> Segmenter:
    """A rung of the ladder without high-resolution branch."""
    return build(high_resolution=False)


@pytest.fixture(scope="session")
def exact_network(network: Segmenter) -> Segmenter:
    """The same in float64."""
    return copy.deepcopy(network).double()


@pytest.fixture(scope="session")
def exact_plain_network(plain_network: Segmenter) -> Segmenter:
    """The same in float64."""
    return copy.deepcopy(plain_network).double()


@pytest.fixture(scope="session")
def build_network() -> Callable[..., Segmenter]:
    """``build``, for networks of other parts."""
    return build


@pytest.fixture
def photo_of() -> Callable[[tuple[int, int]], torch.Tensor]:
    """Makes a photo (3, H, W) uint8 of a given size."""
    return photo


@pytest.fixture
def image() -> torch.Tensor:
    """(3, 170, 233) uint8: sides that no stride divides."""
    return photo()

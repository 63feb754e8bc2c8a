"""A small network whose every part matters: no zero offsets, masks of both signs, several classes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from src.models.backbone import Backbone
from src.models.pixel_decoder.cst import CrossSemanticTransmission
from src.models.pixel_decoder.dual_branch import DualBranchPixelDecoder
from src.models.pixel_decoder.egf import EdgeGuidedFusion
from src.models.pixel_decoder.lse import LowLevelStructure
from src.models.pixel_decoder.plain import PlainDetail, PlainFusion
from src.models.pixel_decoder.rfb import ReceptiveFieldBoosting
from src.models.segmenter import Segmenter
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder


def photo() -> torch.Tensor:
    coarse = torch.rand(1, 3, 12, 15, generator=torch.Generator().manual_seed(0)) * 255
    return nn.functional.interpolate(coarse, (170, 233), mode="bicubic").clamp(0, 255)[0].byte()


def build(*, high_resolution: bool) -> Segmenter:
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
    network = Segmenter(Backbone("resnet18", weights="none"), decoder, transformer)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".offset." in name:
                parameter.normal_(std=0.1 if parameter.dim() > 1 else 1.5)
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
        answer = network.eval()(network.normalise(photo())[None])  # and classes that all win somewhere
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


@pytest.fixture
def image() -> torch.Tensor:
    """(3, 170, 233) uint8: sides that no stride divides."""
    return photo()

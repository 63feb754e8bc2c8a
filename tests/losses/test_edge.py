"""The edge loss pixel by pixel, in every precision."""

import math

import pytest
import torch

from src.losses.edge import edge_loss


def test_equals_binary_cross_entropy_by_hand():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 5, generator=generator)
    boundaries = (torch.rand(2, 6, 5, generator=generator) > 0.7).to(torch.uint8)
    total = 0.0
    for logit, target in zip(logits.flatten().tolist(), boundaries.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        total -= math.log(probability if target else 1 - probability)
    assert float(edge_loss(logits, boundaries)) == pytest.approx(total / 60, rel=1e-5)


def test_logits_are_resized_to_the_boundary_map():
    boundaries = torch.zeros(1, 9, 7, dtype=torch.uint8)
    assert float(edge_loss(torch.full((1, 1, 5, 4), -20.0), boundaries)) < 1e-6
    assert float(edge_loss(torch.full((1, 1, 5, 4), 20.0), boundaries)) == pytest.approx(20, rel=1e-5)


def test_large_half_precision_logits_stay_finite():
    logits = torch.full((1, 1, 4, 4), 6e4, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = edge_loss(logits, torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(6e4, rel=1e-3)
    loss.backward()
    assert logits.grad.isfinite().all()

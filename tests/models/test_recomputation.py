"""Trading computation for memory: what is recomputed, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from src.models.recomputation import checkpoint_activations, encoder_parts


class Counted(nn.Module):
    """A convolution with a norm that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.runs = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.norm(self.conv(x)).relu()


@pytest.mark.parametrize(("name", "count"), [("resnet18", 4), ("efficientnet_lite0", 7)])
def test_the_stages_of_an_encoder_are_found(name: str, count: int) -> None:
    encoder = timm.create_model(name, features_only=True, pretrained=False)
    parts = list(encoder_parts(encoder))
    assert len(parts) == count
    inside = {parameter for part in parts for parameter in part.parameters()}
    assert sum(p.numel() for p in inside) > 0.9 * sum(p.numel() for p in encoder.parameters())


def test_long_stages_are_recomputed_block_by_block() -> None:
    encoder = timm.create_model("resnet101", features_only=True, pretrained=False)
    assert len(list(encoder_parts(encoder))) == 3 + 23


def test_a_copy_runs_its_own_weights() -> None:
    module = Counted().train()
    checkpoint_activations(module)
    other = copy.deepcopy(module)
    nn.init.zeros_(other.conv.weight)
    x = torch.randn(1, 3, 8, 8)
    assert not torch.equal(other(x), module(x))
    assert (module.runs, other.runs) == (1, 1)


def test_recomputes_in_training_only_and_moves_statistics_once() -> None:
    module, plain = Counted().train(), Counted().train()
    plain.load_state_dict(module.state_dict())
    checkpoint_activations(module)
    x = torch.randn(2, 3, 8, 8)
    for either in (module, plain):
        either(x).square().sum().backward()
    assert (module.runs, plain.runs) == (2, 1)
    torch.testing.assert_close(module.state_dict(), plain.state_dict())
    torch.testing.assert_close(module.conv.weight.grad, plain.conv.weight.grad)
    module.eval()
    module(x).sum().backward()
    assert module.runs == 3

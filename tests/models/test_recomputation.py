"""Trading computation for memory: what is recomputed, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from src.models import recomputation
from src.models.backbone import Backbone
from src.models.recomputation import checkpoint_activations, checkpoint_stem, encoder_parts


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


def saved_bytes(encoder: nn.Module, image: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Feature maps, and what they keep for the backward pass."""
    storages = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        maps = encoder(image)
    return maps, sum(x.untyped_storage().nbytes() for x in storages.values())


@pytest.mark.parametrize("norm_trains", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_a_stem_forgets_its_maps(name: str, norm_trains: bool) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True, pretrained=False, out_indices=(1, 2)).train()
    encoder = copy.deepcopy(plain)
    checkpoint_stem(encoder)
    encoder = copy.deepcopy(encoder)  # as averaging weights does
    plain.bn1.train(norm_trains)
    encoder.bn1.train(norm_trains)
    image = torch.randn(2, 3, 64, 96)
    saved = []
    for either in (plain, encoder):
        maps, count = saved_bytes(either, image)
        saved.append(count)
        sum(x.square().mean() for x in maps).backward()
    stem = 2 * 64 * 32 * 48 * 4  # one map of it
    assert saved[1] < saved[0] - 2 * stem
    torch.testing.assert_close(encoder.state_dict(), plain.state_dict())
    for a, b in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(encoder.eval()(image), plain.eval()(image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_stem_that_gives_features_is_left_alone() -> None:
    encoder = timm.create_model("resnet18", features_only=True, pretrained=False, out_indices=(0, 1)).train()
    plain = copy.deepcopy(encoder)
    checkpoint_stem(encoder)
    image = torch.randn(1, 3, 64, 64)
    for a, b in zip(encoder(image), plain(image), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "regnety_002", "pvt_v2_b0"])
def test_gradients_stay_and_maps_go(name: str) -> None:
    """HRNet's modules write into the lists they get; RegNet's and PVT's stages are no sequences."""
    torch.manual_seed(0)
    plain = Backbone(name, weights="none").train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout | DropPath):
            module.eval()
    recomputed = copy.deepcopy(plain)
    stages = recomputation.stages_of(recomputed.encoder)
    assert len(stages) >= 4
    for stage in stages:
        checkpoint_activations(stage)
    image = torch.randn(2, 3, 64, 64)
    (expected, before), (actual, after) = (saved_bytes(encoder, image) for encoder in (plain, recomputed))
    assert after < 0.5 * before
    for maps in (expected, actual):
        torch.manual_seed(1)
        sum((x * torch.randn_like(x)).sum() for x in maps).backward()  # type: ignore[union-attr]
    for (key, ours), theirs in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        if ours.grad is not None:
            torch.testing.assert_close(theirs.grad, ours.grad, msg=key)

"""Counted multiply-accumulates against counts by hand and against those of the released code."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.models.costs import OTHER, UNCOUNTED_BY_PAPER, count_macs, total
from src.models.deformable import DeformableConv
from src.models.layers import MultiheadAttention

GIGA = 1e9
PARTS = {
    "backbone": "backbone",
    "pixel_decoder": "pixel decoder",
    "transformer_decoder.layers.*": "layers",
    "transformer_decoder.class_head": "heads",
    "transformer_decoder.mask_head": "heads",
    OTHER: "masks",
}


def build_on_meta(*overrides: str) -> Any:
    config = to_plain(compose_config("train", [*overrides, "recipe=paper", "run_dir=."]))
    with torch.device("meta"):
        return build_network(config).eval()


class Toy(nn.Module):
    """One of every kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.deform = DeformableConv(8, 6, 3)
        self.attention = MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.grouped(self.conv(x))))
        self.deform(x)
        tokens = x.flatten(2).transpose(1, 2)[:, :10]
        mask = torch.ones(10, 10, dtype=torch.bool, device=x.device)
        tokens = self.attention(tokens, tokens, tokens, mask)
        tokens = self.attention(tokens, tokens, tokens)
        nn.functional.grid_sample(x, torch.zeros(1, 5, 7, 2, device=x.device), align_corners=False)
        nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
        return torch.einsum("bnc,bchw->bnhw", self.linear(tokens)[..., :5], x[:, :5])


def test_every_kind_equals_a_count_by_hand():
    with torch.device("meta"):
        toy = Toy().eval()
    kinds = count_macs(toy, 8, 12)["other"]
    half, whole = 4 * 6, 8 * 12
    offsets = 27 * 8 * 9 * whole  # the convolution that predicts offsets and modulation
    assert kinds["convolution"] == 8 * 3 * 9 * half + 8 * 2 * 9 * half + 8 * 8 * 16 * half + offsets
    assert kinds["deformable"] == 6 * 8 * 9 * whole
    assert kinds["deformable_samples"] == 4 * 9 * 8 * whole
    assert kinds["sampling"] == 4 * 8 * 35
    assert kinds["norm"] == 2 * 8 * half + 2 * 6 * whole
    assert kinds["resize"] == 4 * 8 * half
    assert kinds["masked_scores"] == 10 * 10 * 8
    assert kinds["attention"] == 3 * 10 * 10 * 8
    assert kinds["linear"] == 2 * 4 * 10 * 8 * 8 + 10 * 8 * 5 + 10 * 5 * whole


def test_parts_add_up_to_the_whole_and_the_innermost_counts():
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 2, 1)
        ).eval()
    costs = count_macs(network, 8, 8, {"*": "outer", "*.*": "inner", OTHER: "rest"})
    assert set(costs) == {"outer", "inner"}
    assert costs["inner"]["convolution"] == 64 * (12 + 16)
    assert costs["outer"]["convolution"] == 64 * 8
    assert total(costs) == total(count_macs(network, 8, 8))


def test_a_network_with_memory_or_in_training_is_refused():
    with pytest.raises(ValueError, match="evaluation mode, built under"):
        count_macs(nn.Conv2d(3, 1, 1).eval(), 8, 8)
    with torch.device("meta"):
        training = nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match="evaluation mode"):
        count_macs(training, 8, 8)


@pytest.fixture(scope="module")
def massformer() -> Any:
    return build_on_meta("experiment=massformer")


def test_massformer_counts_as_the_released_code(massformer):
    costs = count_macs(massformer, 3072, 4096, PARTS)
    parts = {name: total({name: kinds}, UNCOUNTED_BY_PAPER) / GIGA for name, kinds in costs.items()}
    assert sum(parts.values()) == pytest.approx(2117.9, abs=0.05)
    assert parts["backbone"] == pytest.approx(1030.5, abs=0.05)
    assert parts["pixel decoder"] == pytest.approx(803.1, abs=0.05)
    assert parts["layers"] == pytest.approx(81.8, abs=0.05)
    assert costs["masks"]["linear"] / GIGA == pytest.approx(201.3, abs=0.05)
    assert sum(kinds["deformable"] for kinds in costs.values()) / GIGA == pytest.approx(314, abs=0.5)


def test_inference_stays_below_the_published_count(massformer):
    massformer.transformer_decoder.masks_at_memory_size = True
    try:
        costs = count_macs(massformer, 3072, 4096)
    finally:
        massformer.transformer_decoder.masks_at_memory_size = False
    assert total(costs, UNCOUNTED_BY_PAPER) / GIGA <= 2036


@pytest.mark.parametrize("experiment", ["mask2former", "mpformer"])
def test_mask2former_counts_as_the_released_code_with_or_without_piloting(experiment):
    costs = count_macs(build_on_meta(f"experiment={experiment}"), 3072, 4096)
    assert total(costs, UNCOUNTED_BY_PAPER) / GIGA == pytest.approx(3122.0, abs=0.05)

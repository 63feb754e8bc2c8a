"""The recipe: which parameters learn how fast, and when."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from src.config import build, compose_config
from src.engine.optimisation import Optimisation, parameter_groups
from src.models.deformable import DeformableConv

SETTINGS = Optimisation(
    lr=0.1, weight_decay=0.05, backbone_lr_factor=0.5, offset_lr_factor=0.2, warmup_steps=4
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.deformable = DeformableConv(4, 4, 3)
        self.queries = nn.Embedding(2, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.frozen = nn.Parameter(self.head[0].weight.detach().clone(), requires_grad=False)


def test_every_parameter_has_its_rate_and_decay() -> None:
    network = Network()
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in parameter_groups(network, SETTINGS)
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    expected = {
        "backbone.0.weight": (0.05, 0.05),
        "backbone.0.bias": (0.05, 0.05),
        "backbone.1.weight": (0.05, 0.0),
        "backbone.1.bias": (0.05, 0.0),
        "deformable.offset.weight": (0.02, 0.05),
        "deformable.offset.bias": (0.02, 0.05),
        "deformable.conv.weight": (0.1, 0.05),
        "deformable.norm.weight": (0.1, 0.0),
        "deformable.norm.bias": (0.1, 0.0),
        "queries.weight": (0.1, 0.0),
        "head.0.weight": (0.1, 0.05),
        "head.0.bias": (0.1, 0.05),
        "head.1.weight": (0.1, 0.0),
        "head.1.bias": (0.1, 0.0),
    }
    actual = {name: found[id(p)] for name, p in network.named_parameters() if id(p) in found}
    assert {name: pytest.approx(values) for name, values in expected.items()} == actual


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    factor = SETTINGS.schedule(24)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(14) == pytest.approx(0.5)
    assert factor(9) == pytest.approx(0.853553, abs=1e-6)  # (1 + cos 45 degrees) / 2
    assert factor(24) == factor(30) == pytest.approx(0.0)


def test_the_published_recipe() -> None:
    """As released: 80,000 steps of 16 crops of 1024 x 1024; weights of the losses as in Mask2Former, edges 10."""
    config = compose_config("train", ["experiment=massformer", "data=mass13k", "recipe=paper", "run_dir=."])
    recipe = config.recipe
    assert (recipe.steps, recipe.crops_per_step, recipe.crop_size, recipe.short_edge) == (
        80_000,
        16,
        1024,
        3072,
    )
    assert list(recipe.scales) == pytest.approx([0.5 + 0.1 * i for i in range(16)])
    assert (recipe.max_long_edge, recipe.num_points) == (8192, 12544)
    optimiser = recipe.optimiser
    assert (optimiser.lr, optimiser.weight_decay, optimiser.backbone_lr_factor) == (3e-4, 0.05, 0.1)
    assert (optimiser.offset_lr_factor, optimiser.warmup_steps) == (1.0, 0)
    assert config.trainer.gradient_clip_val == optimiser.clip_norm == 0.01
    loss = build(config.loss)
    assert (loss.class_weight, loss.mask_weight, loss.dice_weight, loss.edge_weight) == (2.0, 5.0, 5.0, 10.0)
    assert loss.class_weights.tolist() == pytest.approx([1.0] * 7 + [0.1])


def test_positions_and_norms_of_encoders_do_not_decay() -> None:
    network = nn.Module()
    network.backbone = nn.ModuleList(
        [
            timm.create_model("swin_tiny_patch4_window7_224", features_only=True, pretrained=False),
            timm.create_model("convnext_zepto_rms", features_only=True, pretrained=False),
        ]
    )
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in parameter_groups(network, SETTINGS)
        if group["weight_decay"]
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    assert not [name for name in decayed if "norm" in name or "position_bias_table" in name]
    assert any("norm" in name for name in names.values())

"""Parameter groups and the learning rate schedule of the recipe (MaSS13K, section 5; released configuration)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from src.models.deformable import DeformableConv
from src.models.layers import FrozenStatisticsNorm

# of encoders: positions
_EMBEDDINGS = ("relative_position_bias_table", "pos_embed")
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, FrozenStatisticsNorm)


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a linear warm-up and a cosine to 0.

    Attributes:
        lr: learning rate of the decoders at its peak. backbone_lr_factor: the backbone's, relative to it.
        offset_lr_factor: the factor of the convolutions that predict deformable offsets. They see features that
            no norm bounds, and large steps throw their samples off the map for good; Deformable DETR uses 0.1.
        weight_decay: of everything but norms and embeddings.
        warmup_steps: optimiser steps of linear warm-up.
        clip_norm: largest norm of the gradient; the trainer clips, see ``trainer.gradient_clip_val``.
    """

    lr: float
    weight_decay: float
    backbone_lr_factor: float
    offset_lr_factor: float
    warmup_steps: int
    clip_norm: float | None = None

    def optimiser(self, network: nn.Module, *, fused: bool = False) -> torch.optim.AdamW:
        """AdamW over the trainable parameters of a network that has a ``backbone``.

        ``fused`` updates all parameters at once; Lightning cannot clip gradients for it in mixed precision.
        """
        groups = parameter_groups(network, self)
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    def schedule(self, steps: int) -> Callable[[int], float]:
        """Factor of the learning rate at every step of ``steps``."""

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

        return factor


def parameter_groups(network: nn.Module, settings: Optimisation) -> list[dict[str, object]]:
    """Backbone, decoders and deformable offsets, each with weight decay or without (norms and embeddings).

    Groups carry a ``name`` for logging; empty ones are left out.
    """
    undecayed, offsets = set(), set()
    for module in network.modules():
        if isinstance(module, (*_NORMS, nn.Embedding)) or "Norm" in type(module).__name__:  # timm has its own
            undecayed |= {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, DeformableConv):
            offsets |= {id(parameter) for parameter in module.offset.parameters()}
    factors = {"backbone": settings.backbone_lr_factor, "offsets": settings.offset_lr_factor, "decoder": 1.0}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            if name.endswith(_EMBEDDINGS):
                undecayed.add(id(parameter))
            part = "backbone" if name.startswith("backbone.") else "decoder"
            part = "offsets" if id(parameter) in offsets else part
            groups.setdefault((part, id(parameter) in undecayed), []).append(parameter)
    return [
        {
            "name": f"{part}_undecayed" if plain else part,
            "params": parameters,
            "lr": settings.lr * factors[part],
            "weight_decay": 0.0 if plain else settings.weight_decay,
        }
        for (part, plain), parameters in groups.items()
    ]

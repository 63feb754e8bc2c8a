"""What is known about memory before it is used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from src.inference.memory import LiveBytes, bytes_per_pixel
from src.models.backbone import Backbone

KIB = 1024


def test_live_bytes_counts_what_lives_at_a_time() -> None:
    given = torch.zeros(256)
    with LiveBytes() as live:
        a = torch.zeros(256)  # 1 KiB
        b = a.view(16, 16) + 1  # a view is no copy: 2 KiB
        del a
        c = torch.cat((b, b))  # 3 KiB
        del b, c
        given.add_(1)
        given[:4].clone()
    assert live.peak == 3 * KIB


class Widening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 4, 1, 1).mean(1)  # 12 float32 channels and 1, beside the image


def test_bytes_per_pixel_of_a_known_encoder() -> None:
    assert bytes_per_pixel(Widening()) == 4 * (3 + 12 + 1)


@pytest.mark.parametrize(("name", "widest"), [("resnet50", 256 / 16), ("efficientnet_lite0", 96 / 4)])
def test_the_widest_map_counts_wherever_it_is(name: str, widest: float) -> None:
    """EfficientNet widens at stride 2, before the maps that it gives out."""
    found = bytes_per_pixel(Backbone(name, weights="none").eval())
    assert 2 * 4 * widest <= found <= 6 * 4 * widest

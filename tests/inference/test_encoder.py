"""The encoder in bands gives what it gives at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.inference import encoder as banded
from src.inference.encoder import BandedEncoder, reach, shallow_stages
from src.inference.folding import inference_copy
from src.models.backbone import Backbone
from src.models.segmenter import Segmenter


@pytest.mark.parametrize("band_bytes", [1, 30_000, 2**30])
def test_bands_equal_the_whole(
    exact_network: Segmenter, image: Tensor, band_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banded, "_BAND_BYTES", band_bytes)
    network = inference_copy(exact_network)
    with torch.inference_mode():
        expected = network.backbone(network.normalise(image)[None])
        encoder = BandedEncoder.of(network)
        assert encoder is not None
        finest, features = encoder(network, image)
        torch.testing.assert_close(finest, network.pixel_decoder.laterals[0](expected[0]), rtol=0, atol=1e-9)
    for found, whole in zip(features[1:], expected[1:], strict=True):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)


def test_reach_is_the_receptive_field() -> None:
    """7x7 and pooling, four 3x3 at stride 4, four at stride 8: 49 pixels on one side."""
    assert reach(shallow_stages(Backbone("resnet18", weights="none").eval())) in (56, 64)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_common_encoders_can_be_divided(network: Segmenter, name: str) -> None:
    other = inference_copy(network)
    other.backbone = Backbone(name, weights="none").eval()
    assert BandedEncoder.of(other) is not None


def test_encoders_that_look_everywhere_stay_whole(network: Segmenter) -> None:
    other = inference_copy(network)
    other.backbone = Backbone("seresnet18", weights="none").eval()
    assert BandedEncoder.of(other) is None

"""The encoder in bands gives what it gives at once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from src.inference import Predictor, semantic_scores
from src.inference.bands import rows, shallow_stages
from src.inference.bands.encoder import BandedEncoder
from src.inference.bands.shallow_stages import StreamedStages, banded_stages, reach
from src.inference.folding import inference_copy
from src.models.backbone import Backbone
from src.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def exact_networks(build_network: Callable[..., Segmenter]) -> Callable[[str], Segmenter]:
    """Makes the small network in float64 with an encoder of the given name."""
    return functools.cache(lambda encoder: build_network(high_resolution=True, encoder=encoder).double())


@pytest.mark.parametrize(
    ("encoder", "band_bytes"),
    [
        ("resnet18", 1),
        ("resnet18", 2**30),
        ("resnet50", 100_000),
        ("resnet50", 2**30),
        ("efficientnet_lite0", 2**18),
        ("efficientnet_lite0", 2**30),
        ("tf_efficientnet_lite0", 2**18),
    ],
)
def test_bands_equal_the_whole(
    exact_networks: Callable[[str], Segmenter],
    image: Tensor,
    encoder: str,
    band_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "BAND_BYTES", band_bytes)
    monkeypatch.setattr(shallow_stages, "_BAND_BYTES", band_bytes)
    exact_network = exact_networks(encoder)
    network = inference_copy(exact_network)
    with torch.inference_mode():
        expected = exact_network.backbone(exact_network.normalise(image)[None])
        banded = BandedEncoder.of(network)
        assert banded is not None
        finest, features = banded(network, image)
        projected = exact_network.pixel_decoder.laterals[0](expected[0])
        torch.testing.assert_close(finest, projected, rtol=0, atol=1e-9)
    for found, whole in zip(features[1:], expected[1:], strict=True):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_streams_in_single_precision(
    exact_networks: Callable[[str], Segmenter], image: Tensor, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where convolution, sum and ReLU are one step, which float64 has not."""
    monkeypatch.setattr(rows, "BAND_BYTES", 100_000)
    monkeypatch.setattr(shallow_stages, "_BAND_BYTES", 100_000)
    exact = exact_networks(encoder)
    network = inference_copy(exact).float()
    banded = BandedEncoder.of(network)
    assert banded is not None
    with torch.inference_mode():
        expected = exact.backbone(exact.normalise(image)[None])
        finest, features = banded(network, image)
        projected = exact.pixel_decoder.laterals[0](expected[0])
    for found, whole in zip([finest, *features[1:]], [projected, *expected[1:]], strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize(
    ("encoder", "streamed"), [("resnet18", True), ("resnet50", True), ("efficientnet_lite0", False)]
)
def test_layers_of_resnets_are_streams(
    exact_networks: Callable[[str], Segmenter], encoder: str, streamed: bool
) -> None:
    backbone = inference_copy(exact_networks(encoder)).backbone
    found = banded_stages(backbone, shallow_stages.shallow_stages(backbone))
    assert isinstance(found, StreamedStages) is streamed


def test_streams_keep_their_state_to_themselves(exact_network: Segmenter, image: Tensor) -> None:
    network = inference_copy(exact_network)
    encoder = BandedEncoder.of(network)
    assert encoder is not None
    with torch.inference_mode():
        first, _ = encoder(network, image)
        encoder(network, image[:, :100, :80])
        again, _ = encoder(network, image)
    assert torch.equal(first, again)


def test_reach_is_the_receptive_field() -> None:
    """7x7 and pooling, four 3x3 at stride 4, four at stride 8: 49 pixels on one side."""
    assert reach(shallow_stages.shallow_stages(Backbone("resnet18", weights="none").eval())) in (56, 64)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto"])
def test_common_encoders_can_be_divided(network: Segmenter, name: str) -> None:
    other = inference_copy(network)
    other.backbone = Backbone(name, weights="none", pad_to=1).eval()
    assert BandedEncoder.of(other) is not None


@pytest.mark.parametrize("name", ["twins_svt_small", "tf_mobilenetv3_small_minimal_100"])
def test_encoders_that_are_not_divided_are_not_changed(
    exact_networks: Callable[[str], Segmenter], image: Tensor, name: str
) -> None:
    """One whose stages lie inside of another module, and one that pads before it convolves and rectifies."""
    network = exact_networks(name)
    with torch.inference_mode():
        expected = semantic_scores(network(network.normalise(image)[None]), (170, 233))[0].numpy()
    found = Predictor(network)(image.permute(1, 2, 0).numpy()).scores
    assert np.abs(found - expected).max() < 1e-4


def test_encoders_that_look_everywhere_stay_whole(network: Segmenter) -> None:
    other = inference_copy(network)
    other.backbone = Backbone("seresnet18", weights="none").eval()
    assert BandedEncoder.of(other) is None

"""The whole network: published parameter counts, every input size, errors."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.models.segmenter import count_parameters
from src.structures import MaskPrediction, TrainingPrediction


def build(*overrides: str, device: str = "cpu") -> Any:
    config = to_plain(compose_config("train", [*overrides, "recipe=paper", "run_dir=."]))
    with torch.device(device):
        return build_network(config)


SMALL = ("model/size=lite", "model.size.width=16", "model.size.query_width=32", "model.size.feedforward=48")


@pytest.fixture(scope="module")
def small():
    """A narrow MaSSFormer whose zero-initialised parts have values."""
    torch.manual_seed(0)
    network = build(*SMALL, "model.size.num_queries=12", "model.size.num_layers=3")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "offset" in name or parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def test_parameters_of_every_part_are_the_released_ones():
    network = build("experiment=massformer", device="meta")
    decoder, transformer = network.pixel_decoder, network.transformer_decoder
    fusion = decoder.fusion
    edge = count_parameters(fusion.edge_reduce) + count_parameters(fusion.edge_head)
    counts = {
        "all": count_parameters(network),
        "backbone": count_parameters(network.backbone),
        "pixel decoder": count_parameters(decoder),
        "laterals": count_parameters(decoder.laterals),
        "outputs": count_parameters(decoder.mask_output) + count_parameters(decoder.memory_outputs),
        "global context": count_parameters(decoder.global_context),
        "squeeze-excite": count_parameters(decoder.excitations),
        "CST": count_parameters(decoder.context),
        "RFB": count_parameters(decoder.scale),
        "LSE": count_parameters(decoder.detail),
        "edge head": edge,
        "fusion": count_parameters(fusion) - edge,
        "transformer decoder": count_parameters(transformer.layers) + count_parameters(transformer.norm),
        "embeddings": sum(
            count_parameters(part)
            for part in (transformer.query_features, transformer.query_positions, transformer.level_embedding)
        ),
        "class head": count_parameters(transformer.class_head),
        "mask head": count_parameters(transformer.mask_head),
    }
    assert counts == {
        "all": 37_578_176,
        "backbone": 23_508_032,
        "pixel decoder": 4_345_720,
        "laterals": 492_544,
        "outputs": 133_120,
        "global context": 262_400,
        "squeeze-excite": 66_048,
        "CST": 1_541_174,
        "RFB": 1_702_652,
        "LSE": 76_282,
        "edge head": 2_097,
        "fusion": 69_403,
        "transformer decoder": 9_473_024,
        "embeddings": 51_968,
        "class head": 2_056,
        "mask head": 197_376,
    }


def test_lite_has_its_published_parameters():
    assert count_parameters(build("experiment=massformer_lite", device="meta")) / 1e6 == pytest.approx(
        15.08, abs=0.005
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(64, 160), st.integers(64, 160))
@torch.no_grad()
def test_every_size_from_64_is_answered(small, height, width):
    prediction = small(torch.randn(1, 3, height, width))
    assert isinstance(prediction, MaskPrediction)
    half = (-(-height // 2), -(-width // 2))
    assert prediction.class_logits.shape == (1, 12, 8)
    assert prediction.mask_logits.shape == (1, 12, *half)
    assert prediction.edge_logits.shape == (1, 1, *half)
    assert all(x.isfinite().all() for x in prediction)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (333, 250), (250, 333), (64, 640)])
@torch.no_grad()
def test_odd_sizes_portraits_and_strips(small, size):
    prediction = small(torch.randn(2, 3, *size))
    assert prediction.mask_logits.shape == (2, 12, -(-size[0] // 2), -(-size[1] // 2))
    assert all(x.isfinite().all() for x in prediction)


@torch.no_grad()
def test_images_of_a_batch_do_not_influence_each_other(small):
    torch.manual_seed(0)
    images = torch.randn(3, 3, 96, 80)
    together = small(images)
    for b in range(3):
        alone = small(images[b : b + 1])
        for x, y in zip(together, alone, strict=True):
            torch.testing.assert_close(x[b : b + 1], y, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_forcing_the_padding_path_changes_nothing_at_multiples_of_256(small, monkeypatch):
    torch.manual_seed(0)
    images = torch.randn(1, 3, 256, 256)
    expected = small(images)
    context = small.pixel_decoder.context
    monkeypatch.setattr(context, "_valid_keys", lambda like: torch.ones(1, 1, 1, 256, dtype=torch.bool))
    for x, y in zip(small(images), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_layers_are_predicted_in_evaluation_mode_too(small):
    images = torch.randn(1, 3, 64, 96)
    layers = small.predict_layers(images)
    assert isinstance(layers, TrainingPrediction)
    assert len(layers.layers) == 4
    prediction = small(images)
    torch.testing.assert_close(layers.layers[-1].mask_logits, prediction.mask_logits)
    torch.testing.assert_close(layers.edge_logits, prediction.edge_logits)


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((1, 3, 63, 200), "at least 64 pixels on both sides, not 63x200"),
        ((1, 3, 200, 10), "at least 64 pixels on both sides, not 200x10"),
        ((3, 64, 64), r"must have shape \(B, 3, H, W\), not \(3, 64, 64\)"),
        ((1, 4, 64, 64), r"must have shape \(B, 3, H, W\), not \(1, 4, 64, 64\)"),
    ],
)
def test_images_of_other_shapes_are_refused(small, shape, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(torch.randn(shape))


def test_images_that_were_not_normalised_are_refused(small):
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"not torch\.uint8; network\.normalise\(images\)"):
        small(images)
    assert small(small.normalise(images)).mask_logits.shape[-2:] == (32, 32)


def test_training_with_one_image_per_device_explains_itself(small):
    small.train()
    try:
        with pytest.raises(ValueError, match=r"cannot train with one image per device.*pooled_norm=frozen"):
            small(torch.randn(1, 3, 64, 64))
    finally:
        small.eval()


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_other_norms_of_pooled_maps_train_with_one_image(norm):
    network = build(*SMALL, "model.size.num_layers=3", f"recipe.pooled_norm={norm}").train()
    prediction = network(torch.randn(1, 3, 64, 64))
    assert len(prediction.layers) == 4
    assert prediction.layers[-1].mask_logits.isfinite().all()


def test_normalisation_is_the_backbones():
    network = build(*SMALL, "model.size.num_layers=3")
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (image / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(network.normalise(image), expected, atol=1e-5, rtol=1e-5)
    assert network.normalise(image[None]).shape == (1, 3, 4, 5)
    assert not any("pixel_mean" in name for name in network.state_dict())

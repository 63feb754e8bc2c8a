"""Multi-scale deformable attention against a loop over pixels, and the pixel decoder around it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from src.errors import UserError
from src.models.backbone import Backbone
from src.models.pixel_decoder import multiscale_deformable_sampling
from src.models.pixel_decoder.multiscale_deformable import (
    DeformableAttention,
    MultiscaleDeformablePixelDecoder,
    _centres,
)
from src.models.pixel_decoder.multiscale_deformable_sampling import (
    _sample_bags,
    _sample_grids,
    sample_levels,
)
from src.models.segmenter import Segmenter, count_parameters
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder
from src.models.transformer_decoder.piloting import MaskPiloting
from src.structures import PixelFeatures

SIZES = [(2, 3), (4, 5), (7, 9)]
TOKENS = sum(height * width for height, width in SIZES)
HEADS, POINTS, CHANNELS = 2, 3, 4

Arguments = tuple[Tensor, list[tuple[int, int]], Tensor, Tensor, Tensor]


def make_arguments(reach: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Arguments:
    """Arguments of ``sample_levels`` for two images; offsets are normal with deviation ``reach`` pixels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=dtype)

    return (
        normal(2, TOKENS, HEADS, CHANNELS),
        SIZES,
        _centres(SIZES, torch.device("cpu")).to(dtype),
        reach * normal(2, TOKENS, HEADS, len(SIZES), POINTS, 2),
        normal(2, TOKENS, HEADS, len(SIZES), POINTS),
    )


def sample_slowly(
    values: Tensor, sizes: list[tuple[int, int]], centres: Tensor, offsets: Tensor, weights: Tensor
) -> Tensor:
    """The definition, one pixel at a time: zero outside, bilinear between pixel centres."""
    batch, tokens, heads, channels = values.shape
    out = torch.zeros(batch, tokens, heads, channels, dtype=values.dtype)
    first = 0
    for level, (height, width) in enumerate(sizes):
        maps = values[:, first : first + height * width].unflatten(1, (height, width))
        first += height * width
        for b, s, m, p in torch.cartesian_prod(*map(torch.arange, (batch, tokens, heads, weights.shape[4]))):
            x, y = (centres[s, level] + offsets[b, s, m, level, p]).tolist()
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        out[b, s, m] += weights[b, s, m, level, p] * share * maps[b, row, column, m]
    return out.flatten(2)


@pytest.mark.parametrize("sample", [_sample_bags, _sample_grids])
@pytest.mark.parametrize("reach", [0.0, 2.0, 30.0])
def test_samples_equal_the_definition(sample, reach):
    arguments = make_arguments(reach)
    torch.testing.assert_close(sample(*arguments), sample_slowly(*arguments), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sample", [_sample_bags, _sample_grids])
def test_gradients_equal_finite_differences(sample):
    values, sizes, centres, offsets, weights = make_arguments(dtype=torch.float64)
    sizes, tokens = SIZES[:2], 26

    def few(values: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        return sample(values, sizes, centres[:tokens, :2], offsets, weights)

    inputs = [
        x.clone().requires_grad_()
        for x in (values[:1, :tokens], offsets[:1, :tokens, :, :2, :1], weights[:1, :tokens, :, :2, :1])
    ]
    assert torch.autograd.gradcheck(few, inputs, fast_mode=True)


@given(seed=st.integers(0, 1000), reach=st.sampled_from([0.5, 4.0, 1e9]))
@settings(max_examples=25, deadline=None)
def test_both_ways_of_sampling_agree(seed, reach):
    values, sizes, centres, offsets, weights = make_arguments(reach, seed)
    results = []
    for sample in (_sample_bags, _sample_grids):
        inputs = [x.clone().requires_grad_() for x in (values, offsets, weights)]
        out = sample(inputs[0], sizes, centres, *inputs[1:])
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("strip", [1, 7, TOKENS - 1])
def test_strips_change_nothing(monkeypatch, strip):
    arguments = make_arguments()
    whole = _sample_bags(*arguments)
    monkeypatch.setattr(multiscale_deformable_sampling, "STRIP_TOKENS", strip)
    torch.testing.assert_close(_sample_bags(*arguments), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_offset_that_is_not_finite_reads_no_foreign_memory(bad):
    values, sizes, centres, offsets, weights = make_arguments()
    healthy = sample_levels(values, sizes, centres, offsets, weights)
    offsets[0, 5, 0, 1, 0, 0] = bad
    out = sample_levels(values, sizes, centres, offsets, weights)
    elsewhere = torch.ones_like(out, dtype=torch.bool)
    elsewhere[0, 5, :CHANNELS] = False
    assert torch.equal(out[elsewhere], healthy[elsewhere])
    # an overflow stays visible; an infinite distance is merely outside
    assert out[0, 5, :CHANNELS].isnan().all() == math.isnan(bad)


def test_half_precision_samples_in_float32():
    values, sizes, centres, offsets, weights = make_arguments()
    half = values.bfloat16()
    out = sample_levels(half, sizes, centres, offsets, weights)
    assert out.dtype == torch.bfloat16
    exact = _sample_bags(half.float(), sizes, centres, offsets, weights)
    assert torch.equal(out, exact.bfloat16())


def test_points_start_on_rays():
    attention = DeformableAttention(32, num_heads=4, num_points=3)
    offsets = attention.offsets.bias.view(4, 3, 3, 2)
    steps = torch.tensor([1.0, 2.0, 3.0])
    for head, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for level in range(3):
            expected = torch.stack((x * steps, y * steps), dim=-1)
            torch.testing.assert_close(offsets[head, level], expected, atol=1e-5, rtol=0)


def test_a_token_has_the_same_relative_place_on_every_level():
    sizes = [(2, 3), (4, 6), (8, 12)]
    centres = _centres(sizes, torch.device("cpu"))
    relative = torch.cat(
        [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in sizes
        ]
    )
    scale = torch.tensor([(w, h) for h, w in sizes])
    torch.testing.assert_close((centres + 0.5) / scale, relative[:, None].expand(-1, 3, -1))


# ------------------------------------------------------------------------------------------ the pixel decoder

CHANNELS_OF_STAGES = (8, 12, 16, 24)


def small_decoder(**options: object) -> MultiscaleDeformablePixelDecoder:
    torch.manual_seed(0)
    decoder = MultiscaleDeformablePixelDecoder(CHANNELS_OF_STAGES, 32, 2, num_heads=4, **options)
    with torch.no_grad():
        for parameter in decoder.parameters():  # nothing may stay at zero
            parameter.add_(0.02 * torch.randn_like(parameter))
    return decoder


def decode(
    decoder: MultiscaleDeformablePixelDecoder, height: int, width: int, batch: int = 1
) -> PixelFeatures:
    generator = torch.Generator().manual_seed(1)
    features = [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator)
        for c, s in zip(CHANNELS_OF_STAGES, (4, 8, 16, 32), strict=True)
    ]
    return decoder(torch.empty(batch, 3, height, width), features)


@given(height=st.integers(64, 200), width=st.integers(64, 200))
@settings(max_examples=15, deadline=None)
def test_any_size(height, width):
    with torch.no_grad():
        pixels = decode(small_decoder(), height, width)
    sizes = [tuple(x.shape) for x in (pixels.mask_features, *pixels.memories)]
    assert sizes == [(1, 32, -(-height // s), -(-width // s)) for s in (4, 32, 16, 8)]
    assert pixels.edge_logits is None
    assert all(x.isfinite().all() for x in (pixels.mask_features, *pixels.memories))


def test_images_of_a_batch_are_independent():
    decoder = small_decoder(feature_norm=True)
    with torch.no_grad():
        both = decode(decoder, 70, 90, batch=2)
        generator = torch.Generator().manual_seed(1)
        features = [
            torch.randn(2, c, -(-70 // s), -(-90 // s), generator=generator)[1:]
            for c, s in zip(CHANNELS_OF_STAGES, (4, 8, 16, 32), strict=True)
        ]
        second = decoder(torch.empty(1, 3, 70, 90), features)
    torch.testing.assert_close(both.mask_features[1:], second.mask_features, atol=1e-5, rtol=1e-5)


def test_autocast_stays_close():
    decoder = small_decoder()
    with torch.no_grad():
        exact = decode(decoder, 96, 64)
        with torch.autocast("cpu", torch.bfloat16):
            fast = decode(decoder, 96, 64)
    assert fast.mask_features.dtype == torch.bfloat16
    error = (fast.mask_features.float() - exact.mask_features).abs().mean() / exact.mask_features.abs().mean()
    assert error < 0.03


def test_every_parameter_gets_a_gradient():
    decoder = small_decoder(feature_norm=True)
    pixels = decode(decoder, 64, 96)
    sum(x.square().sum() for x in (pixels.mask_features, *pixels.memories)).backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_unfit_widths_are_refused():
    with pytest.raises(UserError, match=r"query_width .* multiple of 32, not 100"):
        MultiscaleDeformablePixelDecoder(CHANNELS_OF_STAGES, 100)
    with pytest.raises(UserError, match="width 96 must be divisible by 5 heads"):
        MultiscaleDeformablePixelDecoder(CHANNELS_OF_STAGES, 96, num_heads=5)
    with pytest.raises(ValueError, match="strides 4, 8, 16 and 32; got 3"):
        MultiscaleDeformablePixelDecoder(CHANNELS_OF_STAGES[1:])


@pytest.mark.parametrize(("mpformer", "expected"), [(False, 44_004_616), (True, 43_980_808)])
def test_parameters_of_the_published_networks(mpformer, expected):
    """MP-Former trades 100 query positions of width 256 for 7 class embeddings."""
    with torch.device("meta"):
        network = Segmenter(
            Backbone("resnet50", weights="none"),
            partial(MultiscaleDeformablePixelDecoder),
            MaskedAttentionDecoder(7, num_layers=9, activation="relu", learned_positions=not mpformer),
            MaskPiloting(7, 256) if mpformer else None,
        )
    assert count_parameters(network) == expected

"""Small layers against plain formulas and torch's own modules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from src.models.layers import (
    ConvNormAct,
    GlobalContext,
    MultiheadAttention,
    SqueezeExcite,
    crop_like,
    full_float32,
    pooled_norm,
    resize,
    upsample,
)


def test_conv_norm_act_keeps_the_size_and_has_no_bias():
    for kernel in (1, 3, 7):
        layer = ConvNormAct(5, 6, kernel).eval()
        assert layer.conv.bias is None
        out = layer(torch.randn(2, 5, 9, 11))
        assert out.shape == (2, 6, 9, 11)
        assert out.min() >= 0


def test_squeeze_excite_applies_the_sigmoid_twice():
    torch.manual_seed(0)
    layer = SqueezeExcite(8).eval()
    x = torch.randn(2, 8, 5, 7)
    out = layer(x)
    for b in range(2):
        pooled = torch.tensor([x[b, c].mean() for c in range(8)])
        hidden = layer.reduce.weight[:, :, 0, 0] @ pooled
        hidden = (hidden / (1 + layer.norm.eps) ** 0.5).clamp(min=0)  # fresh statistics: mean 0, variance 1
        z = layer.expand.weight[:, :, 0, 0] @ hidden
        gate = 1 / (1 + (-(1 / (1 + (-z).exp()))).exp())
        torch.testing.assert_close(out[b], x[b] + x[b] * gate[:, None, None])


def test_global_context_is_the_normalised_mean():
    layer = GlobalContext(6, 4).eval()
    x = torch.randn(3, 6, 4, 5)
    expected = layer.conv.weight[:, :, 0, 0] @ x.flatten(2).mean(2).T / (1 + layer.norm.eps) ** 0.5
    torch.testing.assert_close(layer(x)[:, :, 0, 0], expected.T.clamp(min=0))


def test_batch_norm_of_pooled_maps_explains_why_one_image_cannot_train():
    for layer in (SqueezeExcite(8), GlobalContext(8, 8)):
        with pytest.raises(
            ValueError, match=r"recipe\.batch_size=2.*recipe\.pooled_norm=frozen.*group.*sync_batchnorm"
        ):
            layer.train()(torch.randn(1, 8, 4, 4))
        assert layer.eval()(torch.randn(1, 8, 4, 4)).isfinite().all()
        assert layer.train()(torch.randn(2, 8, 4, 4)).isfinite().all()


@pytest.mark.parametrize("kind", ["frozen", "group"])
def test_other_pooled_norms_train_with_one_image(kind):
    layer = SqueezeExcite(32, kind).train()
    out = layer(torch.randn(1, 32, 4, 4, requires_grad=True))
    out.sum().backward()
    assert layer.norm.weight.grad is not None
    assert layer.norm.weight.grad.isfinite().all()


def test_frozen_statistics_never_move_and_share_the_names_of_batch_norm():
    norm = pooled_norm("frozen", 4)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = 5 + torch.randn(8, 4, 1, 1)
    new, told = norm(x), norm.train()(x)  # Lightning tells no new module its mode
    torch.testing.assert_close(new, x / math.sqrt(1 + norm.eps))
    assert torch.equal(new, told)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    assert set(before) == set(pooled_norm("batch", 4).state_dict())
    moving = pooled_norm("batch", 4)
    moving.train()(5 + torch.randn(8, 4, 1, 1))
    assert not torch.equal(moving.running_mean, torch.zeros(4))


@pytest.mark.parametrize("channels", [3, 8, 18, 32, 64, 128, 140])
def test_group_norm_fits_every_width(channels):
    assert pooled_norm("group", channels)(torch.randn(1, channels, 1, 1)).isfinite().all()


def test_an_unknown_pooled_norm_is_named():
    with pytest.raises(ValueError, match=r"recipe\.pooled_norm is 'layer'; choose batch, frozen or group"):
        pooled_norm("layer", 8)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_torch_multihead_attention(masked):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        ours.projection.bias.normal_()
        ours.output.bias.normal_()
        theirs.in_proj_weight.copy_(ours.projection.weight)
        theirs.in_proj_bias.copy_(ours.projection.bias)
        theirs.out_proj.load_state_dict(ours.output.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    allowed = torch.rand(2, 5, 7) > 0.5
    allowed[..., 0] = True
    out = ours(query, key, value, allowed[:, None] if masked else None)
    forbidden = ~allowed.repeat_interleave(4, 0) if masked else None
    torch.testing.assert_close(out, theirs(query, key, value, attn_mask=forbidden)[0], atol=1e-6, rtol=1e-5)


def test_attention_needs_a_width_that_the_heads_divide():
    with pytest.raises(ValueError, match="width 20 must be divisible by 8 heads"):
        MultiheadAttention(20)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_upsampling_a_coarser_map_covers_the_finer_one(height, width):
    coarse = torch.randn(1, 2, -(-height // 2), -(-width // 2))
    up = upsample(coarse)
    out = crop_like(up, torch.empty(1, 1, height, width))
    assert out.shape[-2:] == (height, width)
    assert torch.equal(out, up[:, :, :height, :width])


def test_resize_to_the_same_size_is_the_map_itself():
    x = torch.randn(1, 2, 3, 4)
    assert resize(x, (3, 4)) is x
    assert resize(x, (6, 8)).shape == (1, 2, 6, 8)
    torch.testing.assert_close(resize(x, (6, 8)), upsample(x))


@pytest.fixture
def tf32_settings():
    """Gives back what a test has set."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32_settings")
@pytest.mark.parametrize("allowed", [True, False])
def test_full_float32_ends_where_it_began(allowed):
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    for place in places:
        place.allow_tf32 = allowed
    with full_float32():
        assert not any(place.allow_tf32 for place in places)
    assert all(place.allow_tf32 is allowed for place in places)


@pytest.mark.usefixtures("tf32_settings")
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="an interface of PyTorch 2.9")
def test_full_float32_beside_the_newer_interface():
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.rnn.fp32_precision = "tf32", "ieee"
    with full_float32():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"

"""Convolution, sum and ReLU in one pass equal the three one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models import convolution
from src.models.convolution import Geometry, RectifiedConv, convolve, separate_steps

GEOMETRIES = [
    Geometry(),
    Geometry(padding=(1, 1)),
    Geometry(stride=(2, 2), padding=(3, 0)),
    Geometry(padding=(2, 2), dilation=(2, 3), groups=2),
]


def some_map(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).to(memory_format=torch.channels_last)


@pytest.fixture(params=[True, False], ids=["fused", "plain"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(convolution, "_fused_operators_work", lambda: request.param)
    return request.param


def test_this_pytorch_has_the_operators() -> None:
    """Otherwise the other tests compare a form with itself; a PyTorch without oneDNN may skip this."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    assert convolution._fused_operators_work()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_equals_the_steps(geometry: Geometry, dtype: torch.dtype, has_bias: bool, fused: bool) -> None:
    x, weight = some_map(2, 6, 11, 9, dtype=dtype), some_map(4, 6 // geometry.groups, 3, 3, dtype=dtype)
    bias = some_map(1, 4, 1, 1, dtype=dtype).flatten() if has_bias else None
    product = F.conv2d(x, weight, bias, *geometry)
    add = some_map(*product.shape, dtype=dtype)
    torch.testing.assert_close(convolve(x, weight, bias, geometry), product.relu(), rtol=1e-5, atol=1e-5)
    before = add.clone()
    for overwrite in (False, True):
        found = convolve(x, weight, bias, geometry, add=add, overwrite=overwrite)
        torch.testing.assert_close(found, (product + before).relu(), rtol=1e-5, atol=1e-5)
        if not overwrite:
            assert torch.equal(add, before)


@torch.no_grad()
def test_overwrites_the_given_rows_only(fused: bool) -> None:
    whole, x, weight = some_map(1, 4, 20, 9), some_map(1, 6, 5, 9), some_map(4, 6, 1, 1)
    before = whole.clone()
    found = convolve(x, weight, add=whole[:, :, 7:12], overwrite=True)
    torch.testing.assert_close(found, (F.conv2d(x, weight) + before[:, :, 7:12]).relu())
    assert torch.equal(whole[:, :, :7], before[:, :, :7])
    assert torch.equal(whole[:, :, 12:], before[:, :, 12:])


@torch.no_grad()
def test_separate_steps_keep_what_is_not_a_number(fused: bool) -> None:
    x = some_map(1, 6, 5, 9)
    x[0, :, 2, 3] = torch.nan
    with separate_steps():
        assert convolve(x, some_map(4, 6, 1, 1))[0, :, 2, 3].isnan().all()


def test_gradients_are_not_lost_in_silence() -> None:
    x, weight = some_map(1, 6, 5, 9), some_map(4, 6, 1, 1).requires_grad_()
    convolve(x, weight).sum().backward()
    assert weight.grad is not None


@torch.no_grad()
def test_rectified_conv_shares_weights(fused: bool) -> None:
    conv = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    geometry = Geometry.of(conv)
    assert geometry is not None
    rectified = RectifiedConv(conv, geometry)
    assert rectified.weight is conv.weight
    x = some_map(1, 6, 11, 9)
    torch.testing.assert_close(rectified(x), conv(x).relu())


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_other_paddings_are_left_alone(options: dict[str, object]) -> None:
    assert Geometry.of(nn.Conv2d(6, 4, 3, **options)) is None  # type: ignore[arg-type]

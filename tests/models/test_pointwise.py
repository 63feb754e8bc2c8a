"""1x1 convolution, norm and ReLU in one step against the three modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from src.models import pointwise
from src.models.layers import ConvNormAct
from src.models.pixel_decoder.egf import EdgeGuidedFusion


def run(modules: nn.Sequential, x: Tensor, grad: Tensor, fused: bool) -> tuple[Tensor, ...]:
    """Output, gradients and statistics."""
    modules, x = copy.deepcopy(modules), x.clone().requires_grad_()
    conv, norm = modules[0], modules[1]
    relu = len(modules) == 3
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    out = pointwise.pointwise_norm(x, conv, norm, relu) if fused else modules(x)
    out.backward(grad)
    assert x.grad is not None
    return out, x.grad, *(p.grad for p in modules.parameters() if p.grad is not None), *norm.buffers()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_equals_the_modules_one_after_the_other(
    relu: bool, bias: bool, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointwise, "_STRIP", 50)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    parts = [nn.Conv2d(5, 7, 1, bias=bias), norm, *([nn.ReLU()] if relu else [])]
    modules = nn.Sequential(*parts).to(dtype)
    x = torch.randn(2, 5, 9, 13, dtype=dtype) + 3  # means that are not small beside the deviation
    grad = torch.randn(2, 7, 9, 13, dtype=dtype)
    for expected, found in zip(run(modules, x, grad, False), run(modules, x, grad, True), strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def trained(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    """Outputs, gradients and statistics of a copy."""
    module, inputs = copy.deepcopy(module), tuple(x.clone().requires_grad_() for x in inputs)
    found = module(*inputs)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    torch.autograd.backward(outputs, [torch.ones_like(x).cumsum(-1).sin() for x in outputs])
    tensors = [*enumerate(outputs), *((f"input {i}", x.grad) for i, x in enumerate(inputs))]
    tensors += [(f"{name}.grad", p.grad) for name, p in module.named_parameters()]
    return {str(name): x for name, x in [*tensors, *module.named_buffers()]}


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (ConvNormAct(8, 6), [(2, 8, 9, 13)]),
        (EdgeGuidedFusion(8), [(2, 8, 10, 14), (2, 8, 5, 7)]),
    ],
    ids=["block", "fusion"],
)
def test_modules_that_use_it_train_as_without_it(
    module: nn.Module, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = module.double().train()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    inputs = tuple(torch.randn(shape, dtype=torch.float64) + 1 for shape in shapes)
    found = trained(module, inputs)
    monkeypatch.setattr(pointwise, "applies", lambda *_: False)
    torch.testing.assert_close(found, trained(module, inputs), atol=1e-10, rtol=1e-10)


def test_an_input_without_gradient_gets_none() -> None:
    block = ConvNormAct(3, 4).train()
    block(torch.randn(2, 3, 8, 8)).sum().backward()
    assert block.conv.weight.grad is not None


def test_is_used_in_training_with_batch_statistics_only() -> None:
    block = ConvNormAct(3, 4)
    x = torch.randn(1, 3, 8, 8)
    assert pointwise.applies(x, block.conv, block.norm)
    assert not pointwise.applies(x.half(), block.conv, block.norm)
    assert not pointwise.applies(x, block.conv, nn.SyncBatchNorm(4))
    assert not pointwise.applies(x, ConvNormAct(3, 4, 3).conv, block.norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pointwise.applies(x, block.conv, block.norm)
    block.eval()
    assert not pointwise.applies(x, block.conv, block.norm)


def test_one_value_per_channel_is_refused_as_by_the_norm() -> None:
    with pytest.raises(ValueError, match="one value per channel"):
        ConvNormAct(3, 4).train()(torch.randn(1, 3, 1, 1))

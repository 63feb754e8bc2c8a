"""Deformable convolution against torchvision's operator, finite differences, and its own limits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from src.models import deformable_gather
from src.models.deformable import DeformableConv, DeformableUp, deform_conv2d, deformable_backend


def make_inputs(
    batch: int = 2,
    channels: int = 6,
    outputs: int = 5,
    kernel: int = 3,
    size: tuple[int, int] = (9, 11),
    out_size: tuple[int, int] | None = None,
    reach: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """x, offset, weight and mask; offsets are normal with standard deviation ``reach`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    out_size = out_size or size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return [
        normal(batch, channels, *size),
        reach * normal(batch, 2 * kernel**2, *out_size),
        normal(outputs, channels, kernel, kernel),
        normal(batch, kernel**2, *out_size),
    ]


def output_and_gradients(
    tensors: Sequence[Tensor],
    bias: Tensor | None = None,
    needed: Sequence[bool] | None = None,
    **options: object,
) -> list[Tensor]:
    """The output, and the gradients of all that need one for a fixed random upstream gradient."""
    leaves = [t.detach().requires_grad_(need) for t, need in zip(tensors, needed or [True] * 4, strict=True)]
    bias = bias if bias is None else bias.detach().requires_grad_()
    out = deform_conv2d(*leaves, bias=bias, **options)  # type: ignore[misc,arg-type]
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    wanted = [t for t in (*leaves, bias) if t is not None and t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


def assert_equal_to_torchvision(tensors: Sequence[Tensor], **options: object) -> None:
    ours = output_and_gradients(tensors, backend="gather", **options)
    theirs = output_and_gradients(tensors, backend="torchvision", **options)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(1.0, b.abs().max().item())
        assert a.shape == b.shape
        assert (a - b).abs().max().item() < scale * (1e-4 if index else 1e-5)


@pytest.mark.parametrize("strip_bytes", [1, 3000, 2**23])
@pytest.mark.parametrize(
    ("geometry", "out_size"),
    [({"padding": 1}, (14, 11)), ({"stride": (2, 1), "padding": (-1, 3), "dilation": (1, 2)}, (5, 13))],
)
@torch.no_grad()
def test_with_bias_and_relu(
    strip_bytes: int, geometry: dict[str, Any], out_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients all happens in one pass; rows are cut off by a negative padding."""
    monkeypatch.setattr(deformable_gather, "STRIP_BYTES", strip_bytes)
    tensors = make_inputs(size=(14, 11), out_size=out_size)
    bias = torch.randn(5)
    found = deform_conv2d(*tensors, bias=bias, relu=True, backend="gather", **geometry)
    apart = deform_conv2d(*tensors, backend="gather", **geometry)
    torch.testing.assert_close(found, (apart + bias[:, None, None]).relu(), rtol=1e-5, atol=1e-5)
    assert (found == 0).any()
    assert (found > 0).any()


def test_gradients_pass_through_bias_and_relu() -> None:
    leaves = [t.requires_grad_() for t in (*make_inputs(), torch.randn(5))]
    *tensors, bias = leaves
    out = deform_conv2d(*tensors, bias=bias, relu=True, padding=1, backend="gather")
    theirs = torchvision_deform_conv2d(tensors[0], tensors[1], tensors[2], bias, 1, 1, 1, tensors[3]).relu()
    for ours, other in zip(
        torch.autograd.grad(out.square().sum(), leaves),
        torch.autograd.grad(theirs.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("strip_bytes", [1, 3000, 2**23])
@pytest.mark.parametrize("reach", [0.0, 0.4, 3.0, 1e4])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_equals_torchvision(
    kernel: int, reach: float, strip_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deformable_gather, "STRIP_BYTES", strip_bytes)
    assert_equal_to_torchvision(
        make_inputs(kernel=kernel, reach=reach), bias=torch.randn(5), padding=kernel // 2
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_torchvision_for_any_shape(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel = data.draw(st.sampled_from([1, 2, 3, 5]))
    stride, padding, dilation = ((draw(low, 3), draw(low, 3)) for low in (1, 0, 1))
    out_size = (draw(1, 6), draw(1, 6))
    size = [
        max(1, stride[i] * (out_size[i] - 1) + dilation[i] * (kernel - 1) + 1 - 2 * padding[i])
        for i in (0, 1)
    ]
    out_size = tuple(
        (size[i] + 2 * padding[i] - dilation[i] * (kernel - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    tensors = make_inputs(
        draw(1, 3),
        draw(1, 9),
        draw(1, 5),
        kernel,
        (size[0], size[1]),
        (out_size[0], out_size[1]),
        data.draw(st.sampled_from([0.0, 1.0, 8.0])),
        draw(0, 1000),
    )
    if data.draw(st.booleans()):
        tensors[1].round_()  # exactly on pixels, on the border and one pixel beyond it
    assert_equal_to_torchvision(tensors, stride=stride, padding=padding, dilation=dilation)


def test_rectangular_kernel() -> None:
    x, weight = torch.randn(1, 3, 8, 9), torch.randn(4, 3, 3, 5)
    offset, mask = torch.randn(1, 30, 8, 9), torch.rand(1, 15, 8, 9)
    assert_equal_to_torchvision((x, offset, weight, mask), padding=(1, 2))


def test_zero_offset_and_unit_mask_are_a_convolution() -> None:
    x, offset, weight, mask = make_inputs(reach=0)
    ours = deform_conv2d(x, offset, weight, torch.ones_like(mask), padding=1, backend="gather")
    torch.testing.assert_close(ours, F.conv2d(x, weight, padding=1), rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_gather, "STRIP_BYTES", 600)
    tensors = [
        t.requires_grad_() for t in make_inputs(2, 2, 2, 2, (3, 4), (2, 3), reach=1.0, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(
        lambda *t: deform_conv2d(*t, backend="gather"),  # type: ignore[arg-type]
        tensors,
        eps=1e-7,
    )


@pytest.mark.parametrize(
    "needed", [(False, True, True, True), (True, False, False, False), (False, False, True, False)]
)
def test_only_needed_gradients(needed: tuple[bool, ...]) -> None:
    tensors = make_inputs()
    ours = output_and_gradients(tensors, needed=needed, padding=1, backend="gather")
    complete = output_and_gradients(tensors, padding=1, backend="gather")
    expected = [complete[0], *(g for g, need in zip(complete[1:], needed, strict=True) if need)]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_memory_layout_does_not_matter() -> None:
    tensors = make_inputs(channels=8)
    strided = [t.repeat_interleave(2, dim=-1)[..., ::2] for t in tensors]
    last = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    expected = output_and_gradients(tensors, padding=1, backend="gather")
    for other in (strided, last):
        for a, b in zip(output_and_gradients(other, padding=1, backend="gather"), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_empty_batch() -> None:
    out, *gradients = output_and_gradients(make_inputs(batch=0), padding=1, backend="gather")
    assert out.shape == (0, 5, 9, 11)
    assert [g.numel() for g in gradients] == [0, 0, 5 * 6 * 9, 0]
    assert not gradients[2].any()


@pytest.mark.parametrize("far", [float("inf"), -float("inf"), 3e38, -1e9])
def test_offsets_far_outside_sample_zero(far: float) -> None:
    x, offset, weight, mask = make_inputs()
    offset[:, 4] = far
    out, *gradients = output_and_gradients((x, offset, weight, mask), padding=1, backend="gather")
    mask[:, 2] = 0  # the same as switching the third tap off
    offset[:, 4] = 0
    torch.testing.assert_close(out, deform_conv2d(x, offset, weight, mask, padding=1), rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[1][:, 4:6].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_nan_offsets_stay_where_they_are(axis: int) -> None:
    tensors = make_inputs()
    healthy = output_and_gradients(tensors, padding=1, backend="gather")
    tensors[1][0, 6 + axis, 4, 5] = torch.nan
    out, grad_x, grad_offset, *_ = output_and_gradients(tensors, padding=1, backend="gather")
    touched = torch.zeros(2, 1, 9, 11, dtype=torch.bool)
    touched[0, 0, 4, 5] = True
    assert torch.equal(out.isnan(), touched.expand_as(out))
    torch.testing.assert_close(out[~out.isnan()], healthy[0][~out.isnan()])
    assert grad_x.isfinite().all()
    assert grad_offset.isfinite()[~touched.expand_as(grad_offset)].all()


def test_nan_in_the_map_stays_local() -> None:
    x, offset, weight, mask = make_inputs(reach=0)
    x[0, 0, 0, 0] = torch.nan
    out = deform_conv2d(x, offset, weight, mask, padding=1, backend="gather")
    expected = torchvision_deform_conv2d(x, offset, weight, padding=1, mask=mask)
    assert torch.equal(out.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", ["gather", "torchvision"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    tensors = [t.to(dtype) for t in make_inputs()]
    out, *gradients = output_and_gradients(tensors, padding=1, backend=backend)
    expected = output_and_gradients([t.float() for t in tensors], padding=1, backend="torchvision")
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected[0].to(dtype), rtol=1e-2, atol=1e-2)
    assert all(g.dtype == dtype for g in gradients)


def test_autocast_changes_nothing_but_the_dtype_of_the_map() -> None:
    tensors = make_inputs()
    expected = output_and_gradients(tensors, padding=1, backend="gather")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # backward included
        ours = output_and_gradients(tensors, padding=1, backend="gather")
        module = DeformableConv(6, 4, 3)
        out = module(tensors[0])
        out.float().sum().backward()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def operators_called(function: object, *args: Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*args)  # type: ignore[operator]
    return {event.key for event in profile.key_averages()} & {
        "massformer::deform_conv2d",
        "torchvision::deform_conv2d",
    }


def test_backend_selection() -> None:
    tensors = make_inputs()

    def run(backend: str = "auto") -> None:
        deform_conv2d(*tensors, padding=1, backend=backend)  # type: ignore[arg-type]

    ours, theirs = {"massformer::deform_conv2d"}, {"torchvision::deform_conv2d"}
    assert operators_called(run) == ours
    with deformable_backend("torchvision"):
        assert operators_called(run) == theirs
        assert operators_called(lambda: run("gather")) == ours
        with deformable_backend("auto"):
            assert operators_called(run) == ours
        other: list[set[str]] = []
        thread = threading.Thread(target=lambda: other.append(operators_called(run)))
        thread.start()
        thread.join()
        assert other == [ours]
    assert operators_called(run) == ours


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        deform_conv2d(*make_inputs(), padding=1, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose one of"), deformable_backend("best"):  # type: ignore[arg-type]
        pass


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, offset, weight, mask = make_inputs()
    with pytest.raises(ValueError, match="offset must be"):
        deform_conv2d(x, offset, weight, mask, padding=0, backend="gather")
    with pytest.raises(ValueError, match="with the same C"):
        deform_conv2d(x[:, 1:], offset, weight, mask, padding=1, backend="gather")


def test_export_and_tracing_use_the_operator_with_an_onnx_counterpart() -> None:
    module, x = DeformableConv(3, 4, 3).eval(), torch.randn(1, 3, 8, 8)
    exported = str(torch.export.export(module, (x,)).graph)
    traced = str(torch.jit.trace(module, x).inlined_graph)
    for graph in (exported, traced):
        assert "torchvision" in graph
        assert "massformer" not in graph


def test_operator_is_registered_correctly() -> None:
    tensors = [t.requires_grad_() for t in make_inputs(dtype=torch.float64)]
    torch.library.opcheck(
        torch.ops.massformer.deform_conv2d.default, (*tensors, (1, 1), (1, 1), (1, 1), 4000)
    )


def test_compiles_to_one_graph() -> None:
    torch.manual_seed(0)
    module = DeformableConv(4, 6, 3)
    nn.init.normal_(module.offset.weight, std=0.1)
    x = torch.randn(2, 4, 12, 10)
    expected = torch.autograd.grad(module(x).square().sum(), list(module.parameters()))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    gradients = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_grad_saves_nothing() -> None:
    tensors = [t.requires_grad_() for t in make_inputs()]
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        with torch.no_grad():
            out = deform_conv2d(*tensors, padding=1, backend="gather")
        assert not saved
        assert not out.requires_grad
        deform_conv2d(*tensors, padding=1, backend="gather")
    assert len(saved) == 4  # the inputs and nothing else: samples are computed again


def peak_memory(function: Callable[[], object], folder: Path) -> float:
    """Most bytes that torch holds at once during a call, beyond those before it, in MiB."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = function()
    del kept
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    return max(accumulate(change for _, change in sorted(changes))) / 2**20


@pytest.mark.parametrize("reach", [1.0, 100.0])
def test_memory_is_bounded(reach: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strip = 0.25  # MiB; all columns together take 54 MiB
    monkeypatch.setattr(deformable_gather, "STRIP_BYTES", int(strip * 2**20))
    tensors = make_inputs(1, 48, 16, 5, (96, 128), reach=reach)
    x, offset, _, mask = (t.numel() * 4 / 2**20 for t in tensors)

    def forward(backend: str) -> Tensor:
        return deform_conv2d(*tensors, padding=2, backend=backend)  # type: ignore[arg-type]

    border = 1.2  # the table has a border
    assert peak_memory(lambda: forward("gather"), tmp_path) < border * x + x / 3 + 4 * strip
    assert peak_memory(lambda: forward("torchvision"), tmp_path) > 54

    for t in tensors:
        t.requires_grad_()
    out = forward("gather")
    upstream = torch.randn_like(out)
    peak = peak_memory(lambda: torch.autograd.grad(out, tensors, upstream), tmp_path)
    assert peak < 2 * border * x + x + offset + mask + 16 * strip


def test_deformable_conv_starts_as_a_convolution_at_half_strength() -> None:
    module = DeformableConv(5, 7, 3).eval()
    x = torch.randn(2, 5, 10, 12)
    expected = module.norm(0.5 * F.conv2d(x, module.conv.weight, padding=1)).relu()
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert module.offset.out_channels == 27
    assert {name.split(".")[0] for name in module.state_dict()} == {"offset", "conv", "norm"}


def test_deformable_conv_order_of_offsets_and_modulation() -> None:
    torch.manual_seed(0)
    module, x = DeformableConv(5, 7, 3).eval(), torch.randn(1, 5, 10, 12)
    nn.init.normal_(module.offset.weight, std=0.2)
    nn.init.normal_(module.offset.bias)
    raw = module.offset(x)
    expected = torchvision_deform_conv2d(
        x, raw[:, :18], module.conv.weight, padding=1, mask=raw[:, 18:].sigmoid()
    )
    torch.testing.assert_close(module(x), module.norm(expected).relu(), rtol=1e-4, atol=1e-5)


def test_deformable_conv_trains_all_its_parameters() -> None:
    module = DeformableConv(4, 4, 5)
    module(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (module.offset.weight, module.conv.weight))


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd"):
        DeformableConv(3, 3, 2)


def test_deformable_up_starts_bilinear() -> None:
    module = DeformableUp(4).eval()
    with torch.no_grad():
        small, large = module(torch.randn(1, 4, 6, 8))
    assert small.shape == (1, 4, 6, 8)
    assert large.shape == (1, 4, 12, 16)
    expected = F.interpolate(small, scale_factor=2, mode="bilinear") / (1 + module.norm.eps) ** 0.5
    inside = (..., slice(1, -1), slice(1, -1))  # the transposed convolution fades to zero at the border
    torch.testing.assert_close(large[inside], expected[inside], rtol=1e-5, atol=1e-5)


def test_mixed_precision_does_not_round_offsets() -> None:
    """In bfloat16 33.3 would be 33.25, and at stride 8 a pixel is eight of the photo's."""
    module = DeformableConv(1, 1, 3).eval()
    nn.init.constant_(module.offset.bias, 33.3)
    nn.init.zeros_(module.conv.weight)
    nn.init.ones_(module.conv.weight[..., 1, 1])
    x = (torch.arange(80.0) - 40).expand(1, 1, 80, 80)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = module(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert found[0, 0, 20, 7].item() == pytest.approx(7 + 33.3 - 40, abs=0.01)

"""The four slots of the dual-branch decoder: windows at every size, sizes of all maps, what gates what."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import UserError
from src.models.pixel_decoder.cst import CrossSemanticTransmission
from src.models.pixel_decoder.dual_branch import DualBranchPixelDecoder
from src.models.pixel_decoder.egf import EdgeGuidedFusion
from src.models.pixel_decoder.lse import LowLevelStructure, SpatialAttention
from src.models.pixel_decoder.plain import PlainContext, PlainDetail, PlainFusion, PlainScale
from src.models.pixel_decoder.rfb import ReceptiveFieldBoosting
from src.models.position import sine_position

WIDTH = 16


def ceil(size, stride):
    return -(-size // stride)


def feature_maps(height, width, channels=WIDTH, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, ceil(height, s), ceil(width, s), generator=generator)
        for s in (4, 8, 16, 32)
    ]


def randomised(module, seed=0):
    """Values in everything that starts at zero, so that nothing hides behind a fresh initialisation."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "offset" in name or parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module")
def cst():
    return randomised(CrossSemanticTransmission(WIDTH, feedforward=24, window=4, num_heads=2))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 3))
def test_windows_hold_the_map_and_give_it_back(height, width, batch):
    cst = CrossSemanticTransmission(8, window=4)
    x = torch.randn(batch, 8, height, width)
    windows = cst._to_windows(x)
    rows, columns = ceil(height, 4), ceil(width, 4)
    assert windows.shape == (batch * rows * columns, 16, 8)
    assert torch.equal(cst._to_map(windows, x), x)
    for b, i, j in itertools.product(range(batch), range(rows), range(columns)):
        window = windows[(b * rows + i) * columns + j].T.view(8, 4, 4)
        inside = x[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        assert torch.equal(window[:, : inside.shape[1], : inside.shape[2]], inside)
        assert window.sum() == pytest.approx(float(inside.sum()), abs=1e-4)  # the rest is zero


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13))
def test_exactly_the_keys_of_the_map_are_valid(height, width):
    cst = CrossSemanticTransmission(8, window=4)
    valid = cst._valid_keys(torch.zeros(2, 8, height, width))
    if height % 4 == 0 and width % 4 == 0:
        assert valid is None
    else:
        ones = torch.ones(2, 1, height, width)
        assert torch.equal(valid[:, 0, 0], cst._to_windows(ones)[..., 0].bool())


def plain_cst(cst, g4, s4, s3):
    """Window by window over the true positions only, with no padding anywhere."""
    d4, up = cst.coarse(s4 + g4)
    height, width = s3.shape[-2:]
    queries = up[0, :, :height, :width]
    out = torch.empty_like(queries)
    code = sine_position(4, 4, WIDTH)
    for y, x in itertools.product(range(0, height, 4), range(0, width, 4)):
        ys, xs = slice(y, min(y + 4, height)), slice(x, min(x + 4, width))
        query, key = queries[:, ys, xs].flatten(1).T[None], s3[0, :, ys, xs].flatten(1).T[None]
        position = code[: ys.stop - y, : xs.stop - x].flatten(0, 1)
        tokens = cst.cross_block(query, key, position, None)
        tokens = cst.self_block(tokens, tokens, position, None)
        out[:, ys, xs] = tokens[0].T.unflatten(1, (ys.stop - y, xs.stop - x))
    return d4, *cst.fine(out[None])


@pytest.mark.parametrize("size", [(4, 8), (8, 8), (5, 8), (4, 7), (3, 2), (9, 13), (13, 6)])
@torch.no_grad()
def test_padded_windows_equal_windows_without_padding(cst, size):
    height, width = size
    _, _, s3, s4 = feature_maps(16 * height, 16 * width)
    g4 = torch.randn(1, WIDTH, 1, 1)
    for ours, plain in zip(cst(g4, s4, s3), plain_cst(cst, g4, s4, s3), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_content_of_the_padding_reaches_nothing(cst, monkeypatch):
    _, _, s3, s4 = feature_maps(16 * 6, 16 * 5)
    g4 = torch.randn(1, WIDTH, 1, 1)
    expected = cst(g4, s4, s3)
    zeros = cst._pad

    def loud(x):
        padded = zeros(x)
        if x.dtype == torch.float32:
            padded[..., x.shape[-2] :, :] = 50
            padded[..., x.shape[-1] :] = -70
        return padded

    monkeypatch.setattr(cst, "_pad", loud)
    for a, b in zip(cst(g4, s4, s3), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_masking_code_changes_nothing_where_nothing_is_padded(cst, monkeypatch):
    _, _, s3, s4 = feature_maps(16 * 8, 16 * 12, batch=2)
    g4 = torch.randn(2, WIDTH, 1, 1)
    expected = cst(g4, s4, s3)
    everything = torch.ones(2 * 2 * 3, 1, 1, 16, dtype=torch.bool)
    monkeypatch.setattr(cst, "_valid_keys", lambda like: everything)
    for a, b in zip(cst(g4, s4, s3), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_half_precision_windows(cst):
    _, _, s3, s4 = feature_maps(16 * 6, 16 * 5)
    g4 = torch.randn(1, WIDTH, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = cst(g4, s4, s3)
    for half, full in zip(out, cst(g4, s4, s3), strict=True):
        assert half.isfinite().all()
        assert (half.float() - full).abs().mean() < 0.05 * full.abs().mean() + 0.02


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (250, 333)])
@pytest.mark.parametrize("context", [CrossSemanticTransmission, PlainContext])
@torch.no_grad()
def test_context_modules_share_one_signature(context, size):
    _, s2, s3, s4 = feature_maps(*size)
    module = context(WIDTH).eval()
    d4, d3, d3_up = module(torch.randn(1, WIDTH, 1, 1), s4, s3)
    assert d4.shape == s4.shape
    assert d3.shape == s3.shape
    assert d3_up.shape[-2] == 2 * d3.shape[-2] >= s2.shape[-2]
    assert d3_up.shape[-1] == 2 * d3.shape[-1] >= s2.shape[-1]


@pytest.mark.parametrize("scale", [ReceptiveFieldBoosting, PlainScale])
@torch.no_grad()
def test_scale_modules_share_one_signature(scale):
    _, s2, _, _ = feature_maps(72, 104)
    d2, d2_up = scale(WIDTH).eval()(torch.randn_like(s2), s2)
    assert d2.shape == s2.shape
    assert d2_up.shape == (1, WIDTH, 2 * s2.shape[2], 2 * s2.shape[3])


@torch.no_grad()
def test_receptive_field_grows_with_the_four_kernels():
    """Fresh offsets are zero: a single bright position spreads as far as the largest kernel, 7."""
    rfb = ReceptiveFieldBoosting(WIDTH).eval()
    assert [branch.conv.weight.shape[-1] for branch in rfb.branches] == [1, 3, 5, 7]
    still = torch.zeros(1, WIDTH, 15, 15)
    bright = still.clone()
    bright[:, :, 7, 7] = 1
    spread = []
    for branch in rfb.branches:
        changed = (branch(bright) - branch(still)).abs().sum((0, 1)) > 0
        spread.append(int(changed.any(0).sum()))
    assert spread == [1, 3, 5, 7]


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (98, 67)])
@torch.no_grad()
def test_detail_is_at_half_resolution_and_sees_the_image(size):
    s1, *_ = feature_maps(*size)
    module = randomised(LowLevelStructure(WIDTH))
    images = torch.randn(1, 3, *size)
    detail = module(s1, images)
    assert detail.shape == (1, WIDTH, ceil(size[0], 2), ceil(size[1], 2))
    assert not torch.allclose(detail, module(s1, images.flip(-1)))
    assert PlainDetail()(s1, images) is s1


@torch.no_grad()
def test_spatial_attention_formula():
    module = randomised(SpatialAttention())
    x = torch.randn(2, 5, 9, 8)
    statistics = torch.stack((x.mean(1), x.max(1).values), 1).sigmoid()
    gate = F.conv2d(F.pad(statistics, (3, 3, 3, 3)), module.conv.weight, module.conv.bias)
    torch.testing.assert_close(module(x), x * (1 + gate))


@torch.no_grad()
def test_the_predicted_edge_gates_nothing():
    module = randomised(EdgeGuidedFusion(WIDTH))
    detail, context = torch.randn(1, WIDTH, 33, 49), torch.randn(1, WIDTH, 17, 25)
    d1, edges = module(detail, context)
    assert d1.shape == detail.shape
    assert edges.shape == (1, 1, 33, 49)
    module.edge_head.bias.add_(100)
    same, shifted = module(detail, context)
    assert torch.equal(same, d1)
    torch.testing.assert_close(shifted, edges + 100)


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_plain_context_is_one_step_down_a_pyramid():
    module = randomised(PlainContext(WIDTH))
    _, _, s3, s4 = feature_maps(65, 97)
    g4 = torch.randn(1, WIDTH, 1, 1)
    d4, d3, d3_up = module(g4, s4, s3)
    torch.testing.assert_close(d4, module.coarse(s4 + g4))
    height, width = s3.shape[-2:]
    torch.testing.assert_close(d3, module.fine(doubled(d4)[..., :height, :width] + s3))
    torch.testing.assert_close(d3_up, doubled(d3))


@torch.no_grad()
def test_plain_scale_adds_and_convolves():
    module = randomised(PlainScale(WIDTH))
    _, s2, _, _ = feature_maps(72, 104)
    d3_up = torch.randn_like(s2)
    d2, d2_up = module(d3_up, s2)
    torch.testing.assert_close(d2, module.conv(d3_up + s2))
    torch.testing.assert_close(d2_up, doubled(d2))


@torch.no_grad()
def test_plain_fusion_adds():
    detail, context = torch.randn(1, 4, 33, 49), torch.randn(1, 4, 17, 25)
    s1 = torch.randn_like(context)
    added, edges = PlainFusion()(s1, context)
    assert torch.equal(added, s1 + context)
    assert edges is None
    added, edges = PlainFusion()(detail, context)
    torch.testing.assert_close(
        added, detail + F.interpolate(context, (33, 49), mode="bilinear", align_corners=False)
    )
    assert edges is None


SLOTS = list(
    itertools.product(
        (CrossSemanticTransmission, PlainContext),
        (ReceptiveFieldBoosting, PlainScale),
        ((LowLevelStructure, EdgeGuidedFusion), (LowLevelStructure, PlainFusion), (PlainDetail, PlainFusion)),
    )
)


@pytest.mark.parametrize(("context", "scale", "ends"), SLOTS)
@torch.no_grad()
def test_every_combination_of_slots_decodes_odd_sizes(context, scale, ends):
    detail, fusion = ends
    decoder = DualBranchPixelDecoder(
        (3, 4, 5, 6),
        WIDTH,
        2 * WIDTH,
        context(WIDTH),
        scale(WIDTH),
        detail() if detail is PlainDetail else detail(WIDTH),
        fusion() if fusion is PlainFusion else fusion(WIDTH),
    ).eval()
    height, width = 65, 97
    features = [
        torch.randn(2, c, ceil(height, s), ceil(width, s))
        for c, s in zip((3, 4, 5, 6), (4, 8, 16, 32), strict=True)
    ]
    out = decoder(torch.randn(2, 3, height, width), features)
    stride = 4 if detail is PlainDetail else 2
    assert out.mask_features.shape == (2, 2 * WIDTH, ceil(height, stride), ceil(width, stride))
    assert [tuple(m.shape) for m in out.memories] == [
        (2, 2 * WIDTH, ceil(height, s), ceil(width, s)) for s in (32, 16, 8)
    ]
    assert (out.edge_logits is not None) == (fusion is EdgeGuidedFusion)


def test_another_number_of_maps_is_refused():
    parts = (PlainContext(8), PlainScale(8), PlainDetail(), PlainFusion())
    with pytest.raises(ValueError, match="strides 4, 8, 16 and 32; got 3"):
        DualBranchPixelDecoder((1, 2, 3), 8, 16, *parts)


@pytest.mark.parametrize(
    ("module", "width"), [(ReceptiveFieldBoosting, 6), (LowLevelStructure, 7), (EdgeGuidedFusion, 7)]
)
def test_widths_that_cannot_be_divided_are_refused(module, width):
    with pytest.raises(UserError, match=f"{module.__name__}: width {width} has to be"):
        module(width)

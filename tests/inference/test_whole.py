"""Whole-image inference in bands equals the plain forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.inference import predict_labels, semantic_scores
from src.inference.bands.deformable import DeformableBand
from src.inference.bands.high_resolution import FusedMap, HighResolutionBranch
from src.inference.folding import inference_copy
from src.inference.semantic import best_class
from src.inference.whole import half_size, predict_whole
from src.models.convolution import ResidualBlock
from src.models.deformable import deformable_backend
from src.models.segmenter import Segmenter
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder


def plain_scores(network: Segmenter, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Scores and edge probabilities as the equations say, with everything whole in memory."""
    with torch.inference_mode():
        prediction = network(network.normalise(image)[None])
        edges = prediction.edge_logits
        if edges is not None:
            edges = (
                F.interpolate(edges, size=size, mode="bilinear", align_corners=False)[0, 0].sigmoid().float()
            )
        return semantic_scores(prediction, size)[0], edges


def assert_labels_agree(found: Tensor, scores: Tensor) -> None:
    """Equal to the argmax, except where the two best classes tie."""
    best = scores.topk(2, dim=0).values
    assert ((found == scores.argmax(0)) | (best[0] - best[1] < 2e-4)).all()


@pytest.mark.parametrize("band_bytes", [20_000, 300_000])
def test_bands_sampled_by_torchvision(
    band_bytes: int, exact_network: Segmenter, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on devices other than a CPU, where the operator takes no negative padding and bands fit its columns."""
    monkeypatch.setattr("src.inference.bands.rows.BAND_BYTES", band_bytes)
    scores, _ = plain_scores(exact_network, image, (201, 240))
    with deformable_backend("torchvision"):
        prediction = predict_whole(inference_copy(exact_network), image)
        found = torch.cat([band.scores for band in prediction.bands((201, 240))], dim=1)
    assert (found - scores).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["exact_network", "exact_plain_network"])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("band_bytes", [1, 20_000, 2**30])
def test_bands_equal_the_plain_forward(
    kind: str,
    folded: bool,
    band_bytes: int,
    image: Tensor,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = request.getfixturevalue(kind)
    monkeypatch.setattr("src.inference.bands.rows.BAND_BYTES", band_bytes)
    size = (201, 240)
    scores, edges = plain_scores(network, image, size)
    assert len(scores.argmax(0).unique()) > 1
    assert float(scores.std()) > 1e-3

    prediction = predict_whole(inference_copy(network) if folded else network, image)
    found = list(prediction.bands(size))
    torch.testing.assert_close(torch.cat([b.scores for b in found], dim=1), scores, rtol=0, atol=1e-4)
    assert [b.top for b in found] == [0, *torch.tensor([b.scores.shape[1] for b in found]).cumsum(0)[:-1]]
    if edges is None:
        assert all(b.edges is None for b in found)
    else:
        torch.testing.assert_close(torch.cat([b.edges for b in found]), edges, rtol=0, atol=1e-4)
    assert_labels_agree(best_class(torch.cat([b.scores for b in found], dim=1)), scores)


def test_offsets_that_reach_across_the_image(
    exact_network: Segmenter, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deformable offsets are unbounded: bands must fetch whatever rows they reach, also none."""
    network = inference_copy(exact_network)
    for module in (network.pixel_decoder.detail.deformable, network.pixel_decoder.fusion.deformable):
        module.offset.weight.data.mul_(20)
    scores, _ = plain_scores(network, image, (85, 117))
    monkeypatch.setattr("src.inference.bands.rows.BAND_BYTES", 20_000)
    found = torch.cat([b.scores for b in predict_whole(network, image).bands((85, 117))], dim=1)
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)


def test_offsets_that_suddenly_reach_rows_that_are_gone(
    exact_network: Segmenter, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = inference_copy(exact_network)
    scores, _ = plain_scores(network, image, (85, 117))
    near, once, kept = DeformableBand._reach, HighResolutionBranch._fuse, []

    def far_in_the_middle(self: DeformableBand, offset: Tensor, farthest: int) -> int:
        return 85 if farthest < 50 else near(self, offset, farthest)

    def noted(*given: Any) -> FusedMap:
        kept.append(given[-1])
        return once(*given)

    monkeypatch.setattr(DeformableBand, "_reach", far_in_the_middle)
    monkeypatch.setattr(HighResolutionBranch, "_fuse", noted)
    monkeypatch.setattr("src.inference.bands.high_resolution._ROWS_KEPT", 0)
    monkeypatch.setattr("src.inference.bands.rows.BAND_BYTES", 10_000)
    found = torch.cat([b.scores for b in predict_whole(network, image).bands((85, 117))], dim=1)
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-4)
    assert kept == [0, 85]  # and again, with all rows


@pytest.mark.parametrize("folded", [False, True])
def test_single_precision_loses_nothing(
    network: Segmenter, exact_network: Segmenter, image: Tensor, folded: bool
) -> None:
    """In float32 the branch in bands is as far from the truth as the plain modules are, about."""
    with torch.inference_mode():
        truth = exact_network.pixel_features(exact_network.normalise(image)[None]).mask_features
        plain = network.pixel_features(network.normalise(image)[None]).mask_features
        work = inference_copy(network) if folded else network
        branch = HighResolutionBranch.of(work.pixel_decoder)
        s1, context, _ = work.pixel_decoder.global_branch(
            *work.pixel_decoder.laterals_and_context(work.backbone(work.normalise(image)[None]))
        )
        found = branch.mask_features(branch.fuse(*half_size(work, image), s1, context), 0, truth.shape[2])
    assert found.dtype == torch.float32
    assert float((found - truth).norm()) < 4 * float((plain - truth).norm())


@pytest.mark.parametrize("size", [(90, 70), (170, 233), (340, 466), (300, 401)])
def test_labels_are_of_scores_brought_to_their_size(
    exact_network: Segmenter, image: Tensor, size: tuple[int, int]
) -> None:
    scores, _ = plain_scores(exact_network, image, (170, 233))
    brought = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
    assert_labels_agree(predict_labels(exact_network, image, size), brought)


def test_predict_labels_leaves_the_network_as_it_was(network: Segmenter, image: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    labels = predict_labels(network, image, (90, 70))
    assert labels.shape == (90, 70)
    assert labels.dtype == torch.uint8
    assert network.transformer_decoder.masks_at_memory_size is False
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_mixed_precision_stays_close(
    network: Segmenter, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the same pixels are attended to: rounding of logits near 0 depends on the processor."""
    made, masks = MaskedAttentionDecoder._attention_mask, []

    def remember(self, *arguments):  # type: ignore[no-untyped-def]
        masks.append(made(self, *arguments))
        return masks[-1]

    monkeypatch.setattr(MaskedAttentionDecoder, "_attention_mask", remember)
    scores, _ = plain_scores(network, image, (85, 117))
    again = iter(masks * 2)
    monkeypatch.setattr(MaskedAttentionDecoder, "_attention_mask", lambda *_: next(again))
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = plain_scores(network, image, (85, 117))
        found = torch.cat([b.scores for b in predict_whole(network, image).bands((85, 117))], dim=1)
    assert next(again, None) is None
    assert found.dtype == torch.float32
    assert float((found - scores).abs().mean()) < 2 * float((plain - scores).abs().mean())


def test_folding_removes_the_norms(network: Segmenter) -> None:
    def norms(model: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())

    assert norms(network) > 20
    assert norms(inference_copy(network)) == 0


class _UsesConvolutionTwice(torch.nn.Module):
    """relu(y) and y, of one convolution's output y."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.relu = inner, torch.nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.relu(y) - 0.5 * y


def test_an_output_used_twice_is_noticed(network: Segmenter) -> None:
    other = copy.deepcopy(network)
    other.pixel_decoder.fusion.reduce = _UsesConvolutionTwice(other.pixel_decoder.fusion.reduce)
    probe = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        expected = other.pixel_features(probe).mask_features
        found = inference_copy(other).pixel_features(probe).mask_features
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet50d", "seresnet18", "tf_efficientnet_lite0", "resnetv2_50"])
def test_simplified_encoders_answer_alike(
    build_network: Callable[..., Segmenter], image: Tensor, name: str
) -> None:
    """Residual sums in place, squeeze-excitation, other activations, norms before convolutions."""
    network = build_network(high_resolution=False, encoder=name)
    simplified = inference_copy(network)
    with torch.no_grad():
        x = network.normalise(image)[None]
        for found, expected in zip(simplified.backbone(x), network.backbone(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_residual_blocks_sum_while_convolving(network: Segmenter) -> None:
    blocks = [m for m in inference_copy(network).modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 8  # all of a ResNet-18

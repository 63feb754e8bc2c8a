"""From a photo to label maps and scores at the photo's own size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.inference import Predictor, predict_labels, semantic_scores
from src.inference.folding import inference_copy
from src.inference.semantic import telling_queries
from src.models.segmenter import Segmenter
from src.photos import PhotoError


def test_arrays_and_files_give_what_the_network_says(
    exact_network: Segmenter, image: Tensor, tmp_path: Path
) -> None:
    network = exact_network
    pixels = image.permute(1, 2, 0).numpy().copy()
    cv2.imwrite(str(tmp_path / "photo.png"), pixels[..., ::-1])
    with torch.inference_mode():
        prediction = network(network.normalise(image)[None])
        expected = semantic_scores(prediction, (170, 233))[0].numpy()
    predictor = Predictor(network)
    for photo in (pixels, tmp_path / "photo.png", str(tmp_path / "photo.png")):
        result = predictor(photo)
        assert np.abs(result.scores - expected).max() < 1e-4
        assert result.label.dtype == np.uint8
        best = np.sort(expected, axis=0)
        assert ((result.label == expected.argmax(0)) | (best[-1] - best[-2] < 2e-4)).all()
        assert result.edges.shape == (170, 233)
    assert predictor(pixels, scores=False).scores is None


@pytest.mark.filterwarnings("error")
def test_arrays_that_pytorch_does_not_take(network: Segmenter, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy().copy()
    fixed = np.asarray(Image.fromarray(pixels))
    assert not fixed.flags.writeable
    predictor = Predictor(network)
    expected = predictor(pixels).label
    for photo in (fixed, pixels[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(predictor(photo).label, expected)


def brought_back(network: Segmenter, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and edges at 170 x 233 of a resized photo, by way of its own size."""

    def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.nn.functional.interpolate(x, size=size, mode="bilinear")

    with torch.inference_mode():
        prediction = network(network.normalise(torch.from_numpy(pixels).permute(2, 0, 1))[None])
        size = (pixels.shape[0], pixels.shape[1])
        edges = resized(prediction.edge_logits, size).sigmoid()
        scores = resized(semantic_scores(prediction, size), (170, 233))
        return scores[0].numpy(), resized(edges, (170, 233))[0, 0].numpy()


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_larger_photos_are_reduced_and_brought_back(
    exact_network: Segmenter, image: Tensor, mode: str
) -> None:
    network = exact_network
    pixels = image.permute(1, 2, 0).numpy().copy()
    result = Predictor(network, limit=(128, 96), mode=mode)(pixels)
    small = cv2.resize(pixels, (128, 93), interpolation=cv2.INTER_LINEAR)  # 170 x 233 within 96 x 128
    scores, edges = brought_back(network, small)
    assert np.abs(result.scores - scores).max() < 1e-4
    assert np.abs(result.edges - edges).max() < 1e-4


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_smaller_photos_are_enlarged_and_brought_back(
    exact_network: Segmenter, image: Tensor, mode: str
) -> None:
    network = exact_network
    pixels = image.permute(1, 2, 0).numpy().copy()  # 170 x 233
    result = Predictor(network, enlarge_to=(466, 400), mode=mode)(pixels)
    large = cv2.resize(pixels, (466, 340), interpolation=cv2.INTER_LINEAR)
    scores, edges = brought_back(network, large)
    assert np.abs(result.scores - scores).max() < 1e-4
    assert np.abs(result.edges - edges).max() < 1e-4
    assert result.label.shape == (170, 233)
    unchanged = Predictor(network, mode=mode)(pixels).scores
    assert np.abs(result.scores - unchanged).max() > 1e-3
    same = Predictor(network, enlarge_to=(200, 150), mode=mode)(pixels).scores
    assert np.array_equal(same, unchanged)  # a larger photo stays as it is


def test_small_photos_are_evaluated_as_they_are_predicted(
    exact_network: Segmenter, exact_plain_network: Segmenter, image: Tensor
) -> None:
    small = image[:, :40, :90].contiguous()
    pixels = small.permute(1, 2, 0).numpy().copy()
    for network in (exact_network, exact_plain_network):
        label = predict_labels(inference_copy(network), small, (40, 90))
        assert np.array_equal(label.numpy(), Predictor(network)(pixels).label)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_left_out_queries_change_no_score_by_more_than_epsilon(
    exact_network: Segmenter, image: Tensor, mode: str
) -> None:
    pixels = image.permute(1, 2, 0).numpy().copy()
    expected = Predictor(exact_network, mode=mode)(pixels).scores
    for epsilon in (0.05, 0.5):
        found = Predictor(exact_network, mode=mode, epsilon=epsilon)(pixels).scores
        assert (expected - found).min() >= -1e-5
        assert (expected - found).max() <= epsilon + 1e-5
    assert (expected - found).max() > 1e-3  # something was left out


def test_queries_that_say_most_are_kept() -> None:
    classes = torch.tensor([[0.5, 0.4], [0.01, 0.01], [0.0, 0.03], [0.2, 0.0]])
    assert telling_queries(classes, 0.0).tolist() == [0, 1, 2, 3]
    assert telling_queries(classes, 0.04).tolist() == [0, 2, 3]
    assert telling_queries(classes, 0.06).tolist() == [0, 3]
    assert telling_queries(classes, 0.9).tolist() == [0]
    assert telling_queries(classes * 0, 0.9).tolist() == [3]


@pytest.mark.parametrize("size", [(1, 1), (10, 300), (63, 64)])
def test_tiny_photos(network: Segmenter, size: tuple[int, int]) -> None:
    result = Predictor(network)(np.full((*size, 3), 90, np.uint8))
    assert result.label.shape == size
    assert np.isfinite(result.scores).all()


RUNGS = ("ablation_baseline", "ablation_cst", "ablation_rfb", "ablation_lse", "ablation_egf", "mask2former")


@pytest.mark.parametrize("experiment", RUNGS)
def test_every_network_predicts(experiment: str, image: Tensor) -> None:
    overrides = [f"experiment={experiment}", "model/size=nano", "model.backbone.weights=none", "run_dir=."]
    torch.manual_seed(0)
    network = build_network(to_plain(compose_config("train", overrides))).eval().double()
    image = image[:, :90, :123]
    pixels = image.permute(1, 2, 0).numpy()
    with torch.inference_mode():
        expected = semantic_scores(network(network.normalise(image)[None]), (90, 123))[0].numpy()
    assert np.abs(Predictor(network)(pixels).scores - expected).max() < 1e-4
    if experiment != "mask2former":
        narrow = Predictor(network, mode="tiled")(np.ascontiguousarray(pixels[:40]))
        assert np.isfinite(narrow.scores).all()


def test_a_long_narrow_photo_in_windows(network: Segmenter) -> None:
    """Reduced for the overview it is lower than what a network takes."""
    predictor = Predictor(network, mode="tiled")
    predictor._tiled._overview_pixels = 100 * 1000
    result = predictor(np.random.default_rng(0).integers(0, 255, (100, 4000, 3), dtype=np.uint8))
    assert result.label.shape == (100, 4000)
    assert np.isfinite(result.scores).all()


def test_a_network_without_windows_refuses_what_does_not_fit(image: Tensor) -> None:
    overrides = ["experiment=mask2former", "model/size=nano", "model.backbone.weights=none", "run_dir=."]
    network = build_network(to_plain(compose_config("train", overrides))).eval()
    predictor = Predictor(network, memory_gb=2)
    assert predictor(image.permute(1, 2, 0).numpy()).label.shape == (170, 233)
    side = int(predictor.cost.pixels(2 * 2**30) ** 0.5)
    with pytest.raises(PhotoError, match=r"inference\.limit"):
        predictor(np.zeros((side, side + 100, 3), np.uint8))


def test_wrong_arguments(network: Segmenter) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        Predictor(network)(np.zeros((70, 70), np.uint8))
    with pytest.raises(ValueError, match="empty"):
        Predictor(network)(np.zeros((0, 70, 3), np.uint8))
    for other in (Image.new("RGB", (70, 70)), b"photo", torch.zeros(70, 70, 3, dtype=torch.uint8)):
        with pytest.raises(TypeError, match=type(other).__name__):
            Predictor(network)(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        Predictor(network, mode="fast")
    with pytest.raises(ValueError, match="epsilon"):
        Predictor(network, epsilon=-0.1)
    with pytest.raises(ValueError, match="memory"):
        Predictor(network, memory_gb=0.1)
    network.train()
    try:
        with pytest.raises(ValueError, match="eval"):
            Predictor(network)
    finally:
        network.eval()

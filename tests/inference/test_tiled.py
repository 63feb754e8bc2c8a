"""Windows: equal to the whole image where they should be, close elsewhere, bounded by what they read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from src.inference.bands.encoder import shallow_stages
from src.inference.folding import inference_copy
from src.inference.large_photos import PhotoInMemory, PhotoOnDisk, reduced
from src.inference.tiled import TiledPredictor, Tiling
from src.inference.whole import predict_whole
from src.models.segmenter import Segmenter


def scores_of(predictor: TiledPredictor, pixels: np.ndarray) -> Tensor:
    found = list(predictor.bands(PhotoInMemory(pixels)))
    tops = [band.top for band in found]
    assert tops == [0, *np.cumsum([band.scores.shape[1] for band in found])[:-1]]
    return torch.cat([band.scores for band in found], dim=1)


@pytest.mark.parametrize("kind", ["exact_network", "exact_plain_network"])
def test_one_window_is_the_whole_image(kind: str, image: Tensor, request: pytest.FixtureRequest) -> None:
    network = inference_copy(request.getfixturevalue(kind))
    expected = torch.cat([b.scores for b in predict_whole(network, image).bands((170, 233))], dim=1)
    pixels = image.permute(1, 2, 0).numpy()
    found = scores_of(TiledPredictor(network, Tiling(), 10**9), pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(104, 1440), (1440, 104)])
def test_windows_agree_with_the_whole_image(
    exact_network: Segmenter, photo_of: Callable[[tuple[int, int]], Tensor], size: tuple[int, int]
) -> None:
    """With the same overview, windows differ only by what they cannot see beyond their borders."""
    network = inference_copy(exact_network)
    image = photo_of(size)
    expected = torch.cat([b.scores for b in predict_whole(network, image).bands(size)], dim=1)
    assert len(expected.argmax(0).unique()) > 1

    def difference(margin: int) -> Tensor:
        predictor = TiledPredictor(network, Tiling((992, 992), 320, margin), 10**9)
        return (scores_of(predictor, image.permute(1, 2, 0).numpy()) - expected).abs()

    assert float(difference(144).max()) < 1e-4
    seen_less = difference(0)
    assert float(seen_less.max()) > 1e-3  # the border does matter
    assert float(seen_less.mean()) < 1e-2


def test_scores_on_disk_are_those_in_memory(
    exact_network: Segmenter, photo_of: Callable[[tuple[int, int]], Tensor]
) -> None:
    """Many classes or columns: windows in files, and bands of few rows."""
    network = inference_copy(exact_network)
    pixels = photo_of((300, 420)).permute(1, 2, 0).numpy()
    in_memory, on_disk = (
        list(
            TiledPredictor(network, Tiling((192, 256), 64, 16), 10**9, None, 0.0, room).bands(
                PhotoInMemory(pixels)
            )
        )
        for room in (2**30, 2**20)
    )
    assert len(on_disk) > 3 * len(in_memory)
    assert torch.equal(*(torch.cat([band.scores for band in found], dim=1) for found in (in_memory, on_disk)))
    edges = [
        torch.cat([band.edges for band in found if band.edges is not None]) for found in (in_memory, on_disk)
    ]
    assert edges[0].shape == (300, 420)
    assert torch.equal(*edges)


def test_shallow_stages_leave_the_deep_ones_out(network: Segmenter) -> None:
    shallow = shallow_stages(network.backbone)
    assert shallow is not network.backbone
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        for found, expected in zip(shallow(x)[:2], network.backbone(x)[:2], strict=True):
            assert torch.equal(found, expected)
    assert sum(p.numel() for p in shallow.parameters()) < sum(
        p.numel() for p in network.backbone.parameters()
    )


def test_other_pixel_decoders_are_refused(network: Segmenter) -> None:
    network = inference_copy(network)
    network.pixel_decoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="inference=whole"):
        TiledPredictor(network, Tiling(), 10**9)


def test_windows_that_cannot_overlap_are_refused(network: Segmenter) -> None:
    with pytest.raises(ValueError, match="overlap"):
        TiledPredictor(network, Tiling((256, 256), 200), 10**9)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_reduced_photos_are_block_means(factor: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 31, 3), dtype=np.uint8)
    small = reduced(PhotoOnDisk(pixels), factor)
    assert small.shape == (-(-200 // factor), -(-31 // factor), 3)
    block = pixels[factor : 2 * factor, factor : 2 * factor].astype(float).mean((0, 1))
    assert np.abs(small[1, 1] - block).max() <= 0.51
    right = pixels[:factor, (small.shape[1] - 1) * factor :].astype(float)
    right = np.pad(right, ((0, 0), (0, factor - right.shape[1]), (0, 0)), mode="edge").mean((0, 1))
    assert np.abs(small[0, -1] - right).max() <= 0.51


def test_photos_on_disk_give_their_rows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 7, 3), dtype=np.uint8)
    photo = PhotoOnDisk(pixels)
    assert photo.size == (20, 7)
    assert np.array_equal(photo.rows(3, 11), pixels[3:11])
    assert np.array_equal(photo.rows(0, 20), pixels)

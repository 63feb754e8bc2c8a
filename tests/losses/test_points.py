"""Point sampling: boundary weights pixel by pixel, which points are chosen, and what they weigh."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from src.errors import UserError
from src.losses.points import BoundaryPoints, UncertaintyPoints, boundary_weight, sample_points


def plain_bilinear(image, x, y):
    """Bilinear value of an (H, W) map at (x, y) in 0..1 over the whole map; zero outside."""
    height, width = image.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = 0.0
    for row in (int(y // 1), int(y // 1) + 1):
        for column in (int(x // 1), int(x // 1) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += float(image[row, column]) * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_sampling_equals_bilinear_interpolation_by_hand(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, height, width, generator=generator)
    coordinates = torch.rand(2, 5, 2, generator=generator)
    values = sample_points(maps, coordinates)
    assert values.shape == (2, 3, 5)
    for t in range(2):
        for c in range(3):
            for n, (x, y) in enumerate(coordinates[t].tolist()):
                assert float(values[t, c, n]) == pytest.approx(plain_bilinear(maps[t, c], x, y), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays("uint8", st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)),
    st.sampled_from([1, 3, 5]),
)
def test_boundary_weight_pixel_by_pixel(mask, kernel):
    mask = torch.from_numpy(mask).float()
    weight = boundary_weight(mask[None], kernel)[0]
    height, width = mask.shape
    reach = kernel // 2
    for i in range(height):
        for j in range(width):
            window = [
                float(mask[y, x]) if 0 <= y < height and 0 <= x < width else 0.0
                for y in range(i - reach, i + reach + 1)
                for x in range(j - reach, j + reach + 1)
            ]
            assert float(weight[i, j]) == pytest.approx(
                abs(sum(window) / kernel**2 - float(mask[i, j])), abs=1e-6
            )
    assert 0 <= float(weight.min()) <= float(weight.max()) < 1


def test_boundary_weight_is_zero_away_from_boundaries_and_largest_beside_them():
    mask = torch.zeros(1, 20, 20)
    mask[:, :, 10:] = 1
    weight = boundary_weight(mask)[0, 10]
    assert weight[:8].abs().max() == pytest.approx(0, abs=1e-6)
    assert weight[12:18].abs().max() == pytest.approx(0, abs=1e-6)
    assert weight[9:11].tolist() == pytest.approx([0.4, 0.4])
    assert float(weight.max()) == pytest.approx(0.4)


@pytest.mark.parametrize("sampler", [UncertaintyPoints(40), BoundaryPoints(40)])
def test_the_least_certain_candidates_are_kept_and_the_rest_is_uniform(sampler):
    """The same random numbers, ranked one candidate at a time."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 6, 8, generator=generator)
    masks = (torch.rand(2, 12, 16, generator=generator) > 0.5).float()
    weight_map = sampler.weight_map(masks)
    torch.manual_seed(9)
    points = sampler(logits, weight_map)
    torch.manual_seed(9)
    candidates, anywhere = torch.rand(2, 120, 2), torch.rand(2, 10, 2)
    assert points.coordinates.shape == (2, 40, 2)
    assert points.weights.shape == (2, 40)
    for t in range(2):
        importance = torch.zeros(12, 16) if weight_map is None else weight_map[t]

        def uncertainty(point, t=t, importance=importance):
            x, y = point
            return -abs(plain_bilinear(logits[t], x, y)) * (1 - plain_bilinear(importance, x, y))

        ranked = sorted(candidates[t].tolist(), key=uncertainty, reverse=True)[:30]
        expected = {(round(x, 5), round(y, 5)) for x, y in ranked + anywhere[t].tolist()}
        assert {(round(x, 5), round(y, 5)) for x, y in points.coordinates[t].tolist()} == expected
        for (x, y), weight in zip(points.coordinates[t].tolist(), points.weights[t].tolist(), strict=True):
            factor = 1 + 5 * plain_bilinear(importance, x, y) if weight_map is not None else 1.0
            assert weight == pytest.approx(factor, abs=1e-4)


def test_boundary_points_gather_at_the_boundary():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    logits = 3 * torch.ones(1, 16, 16)  # equally certain everywhere
    sampler = BoundaryPoints(500)
    near = (sampler(logits, sampler.weight_map(mask)).coordinates[0, :, 0] - 0.5).abs() < 2.5 / 64
    plain = UncertaintyPoints(500)(logits, None).coordinates[0, :, 0]
    assert near.float().mean() > 2 * ((plain - 0.5).abs() < 2.5 / 64).float().mean()


def test_the_largest_logits_there_are_leave_the_points_to_the_uncertain_pixels():
    logits = torch.full((1, 8, 8), torch.finfo(torch.bfloat16).max)
    logits[..., 4:] = torch.randn(4)
    points = UncertaintyPoints(50, importance=1.0)(logits, None)
    assert (points.coordinates[..., 0] > 0.5).all()


@pytest.mark.parametrize(
    "arguments", [{"num_points": 0}, {"oversample": 0.5}, {"importance": 1.5}, {"importance": -0.1}]
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="point sampling needs"):
        UncertaintyPoints(**arguments)


@pytest.mark.parametrize("importance", [0.0, 1.0])
def test_all_or_none_of_the_points_by_uncertainty(importance):
    points = UncertaintyPoints(17, importance=importance)(torch.randn(2, 5, 5), None)
    assert points.coordinates.shape == (2, 17, 2)


@pytest.mark.parametrize("wrong", [{"strength": -1.0}, {"kernel": 4}, {"kernel": -1}])
def test_boundary_weights_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="odd kernel"):
        BoundaryPoints(**wrong)

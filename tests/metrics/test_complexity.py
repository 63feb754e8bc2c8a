"""Mask complexity on shapes whose contours can be counted by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from src.metrics import complexity
from src.metrics.complexity import (
    ComplexityAccumulator,
    MaskShape,
    isoperimetric_quotient,
    mask_complexity,
    measure_mask,
)
from src.structures import IGNORE

SQRT2 = 2**0.5


def disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.pad(x**2 + y**2 <= radius**2, 2)


def comb(teeth: int, tooth: int, gap: int, height: int, spine: int) -> np.ndarray:
    """Upright teeth on a horizontal spine."""
    row = np.tile(np.repeat([True, False], [tooth, gap]), teeth)[:-gap]
    return np.pad(np.concatenate([np.tile(row, (height, 1)), np.ones((spine, len(row)), bool)]), 3)


def test_a_disc_is_one_up_to_the_steps_of_the_contour() -> None:
    # In steps of 1 and sqrt 2, a circle of radius r has length 8 r (sin 45° + (sqrt 2 - 1)(1 - cos 45°)).
    stepped = 8 * (SQRT2 / 2 + (SQRT2 - 1) * (1 - SQRT2 / 2)) / (2 * np.pi)
    assert isoperimetric_quotient(disc(600)) == pytest.approx(stepped**2, rel=0.005)
    assert 1 < stepped**2 < 1.12


def test_a_square_approaches_four_over_pi() -> None:
    shape = measure_mask(np.pad(np.ones((500, 500), bool), 1))
    assert shape == (500 * 500, 4 * 499, 1, 4)
    assert shape.quotient == pytest.approx(4 / np.pi, rel=0.005)


@pytest.mark.parametrize(("teeth", "tooth", "gap"), [(2, 3, 2), (7, 1, 1), (25, 4, 3)])
def test_a_comb_counts_every_tooth(teeth: int, tooth: int, gap: int) -> None:
    height, spine = 40, 5
    width = teeth * tooth + (teeth - 1) * gap
    # Through pixel centres: around the outside, over each tooth, down and up in each gap, whose corners are cut.
    outside = (width - 1) + 2 * (height + spine - 1) + teeth * (tooth - 1)
    length = outside + (teeth - 1) * (2 * (height - 1) + 2 * SQRT2 + gap - 1)
    area = teeth * tooth * height + width * spine
    shape = measure_mask(comb(teeth, tooth, gap, height, spine))
    assert shape.area == area
    assert shape.contours == 1
    assert shape.length == pytest.approx(length, rel=1e-6)
    assert shape.quotient == pytest.approx(length**2 / (4 * np.pi * area), rel=1e-6)


def test_a_hole_adds_its_contour_and_takes_its_area() -> None:
    ring = np.pad(np.ones((60, 60), bool), 1)
    ring[21:41, 21:41] = False
    shape = measure_mask(ring)
    assert shape.area == 60 * 60 - 20 * 20
    assert shape.contours == 2
    assert shape.length == pytest.approx(4 * 59 + 4 * 19 + 4 * SQRT2, rel=1e-6)


@pytest.mark.parametrize(("outer", "inner"), [(600, 300), (600, 500), (400, 40)])
def test_a_ring_is_the_sum_of_its_radii_over_their_difference(outer: int, inner: int) -> None:
    ring = disc(outer)
    hole = disc(inner)
    start = (len(ring) - len(hole)) // 2
    ring[start : start + len(hole), start : start + len(hole)] &= ~hole
    # L = 2 pi (R + r), A = pi (R^2 - r^2), so IPQ = (R + r) / (R - r), again up to the steps of the contour
    stepped = 8 * (SQRT2 / 2 + (SQRT2 - 1) * (1 - SQRT2 / 2)) / (2 * np.pi)
    assert measure_mask(ring).contours == 2
    expected = (outer + inner) / (outer - inner) * stepped**2
    assert isoperimetric_quotient(ring) == pytest.approx(expected, rel=0.02)


def test_a_line_counts_there_and_back_and_a_pixel_has_no_length() -> None:
    mask = np.zeros((5, 300), bool)
    mask[2, 10:210] = True
    assert measure_mask(mask).length == 2 * 199
    assert isoperimetric_quotient(mask) == pytest.approx((2 * 199) ** 2 / (4 * np.pi * 200))
    mask[2, 11:210] = False
    assert isoperimetric_quotient(mask) == 0


def test_the_border_of_the_image_closes_contours() -> None:
    assert measure_mask(np.ones((20, 30), bool)).length == 2 * (19 + 29)


def test_scaling_keeps_the_quotient() -> None:
    small = comb(5, 20, 15, 200, 40)
    large = small.repeat(4, 0).repeat(4, 1)
    assert isoperimetric_quotient(large) == pytest.approx(isoperimetric_quotient(small), rel=0.03)


@settings(deadline=None)
@given(arrays(np.bool_, (9, 11)))
def test_neither_mirroring_nor_turning_nor_the_type_matters(mask: np.ndarray) -> None:
    mask = np.pad(mask, 1)
    expected = measure_mask(mask)
    for other in (mask[::-1], mask[:, ::-1], mask.T, mask * np.uint8(255)):
        shape = measure_mask(other)
        assert (shape.area, shape.contours) == (expected.area, expected.contours)
        assert shape.length == pytest.approx(expected.length, abs=1e-3)


@settings(deadline=None)
@given(arrays(np.bool_, (9, 11)))
def test_contours_are_parts_and_holes(mask: np.ndarray) -> None:
    padded = np.pad(mask, 1)
    parts = ndimage.label(padded, np.ones((3, 3)))[1]
    holes = ndimage.label(~padded)[1] - 1
    assert measure_mask(padded).contours == parts + holes


def test_classes_are_measured_apart_and_ignored_pixels_belong_to_none() -> None:
    label = np.full((40, 40), IGNORE, np.uint8)
    label[:20] = 0
    label[25:35, 5:15] = 2
    complexity = mask_complexity(label, 4)
    assert np.isnan(complexity[[1, 3]]).all()
    assert complexity[0] == isoperimetric_quotient(label == 0)
    assert complexity[2] == pytest.approx((4 * 9) ** 2 / (4 * np.pi * 100))
    assert np.isnan(isoperimetric_quotient(label == 1))


def random_labels(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (12, 16)).astype(np.uint8) for _ in range(count)]
    labels[0][labels[0] == 1] = IGNORE
    return labels


def test_classes_that_are_not_there_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(mask: np.ndarray) -> MaskShape:
        measured.append(int(mask.sum()))
        return MaskShape(1, 4, 1, 4)

    monkeypatch.setattr(complexity, "measure_mask", measure)
    label = np.full((8, 8), 200, np.uint8)
    label[:2] = 3
    quotients = complexity.mask_complexity(label, 254)
    assert measured == [16, 48]
    assert np.flatnonzero(~np.isnan(quotients)).tolist() == [3, 200]


def test_the_mean_is_over_masks_not_over_images() -> None:
    labels = random_labels(4)
    accumulator = ComplexityAccumulator(num_classes=4)
    for label in labels:
        accumulator.update(label)
    statistics = accumulator.compute()
    masks = [label == index for label in labels for index in range(3) if (label == index).any()]
    quotients = [isoperimetric_quotient(mask) for mask in masks]
    assert statistics.masks == len(masks) == 11
    assert statistics.mean == pytest.approx(np.mean(quotients))
    assert statistics.std == pytest.approx(np.std(quotients))
    assert statistics.class_means[1] == pytest.approx(
        np.mean([isoperimetric_quotient(label == 1) for label in labels[1:]])
    )
    assert np.isnan(statistics.class_means[3])
    assert statistics.contours == pytest.approx(np.mean([measure_mask(mask).contours for mask in masks]))
    assert statistics.points == pytest.approx(np.mean([measure_mask(mask).points for mask in masks]))


def test_merging_gives_what_one_accumulator_gives() -> None:
    labels = random_labels(5)
    parts, whole = [ComplexityAccumulator(3) for _ in range(2)], ComplexityAccumulator(3)
    for index, label in enumerate(labels):
        parts[index % 2].update(label)
        whole.update(label)
    parts[0].merge(parts[1])
    np.testing.assert_allclose(np.hstack(parts[0].compute()), np.hstack(whole.compute()))


def test_nothing_gives_nan_without_a_warning() -> None:
    accumulator = ComplexityAccumulator(2)
    accumulator.update(np.full((4, 4), IGNORE, np.uint8))
    statistics = accumulator.compute()
    assert statistics.masks == 0
    assert np.isnan(statistics.mean)
    assert np.isnan(statistics.class_means).all()


def test_an_id_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[5\].*3 classes"):
        ComplexityAccumulator(3).update(np.array([[0, 5]], np.uint8))

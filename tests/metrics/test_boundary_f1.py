"""Boundary F1 against distance transforms of SciPy and OpenCV, class by class."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.segmentation import find_boundaries

from src.metrics.boundary_f1 import boundary_f1, boundary_pixels, nearest_squared_distance
from src.metrics.tolerance import CURVE, Tolerance, parse_tolerance

IGNORE = 255
CLASSES = 3


@st.composite
def map_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    maps = [
        draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1), fill=st.just(1)))
        for _ in range(2)
    ]
    maps[1][draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))] = IGNORE
    return maps


def boundary_of(labels, index, valid):
    """Pixels of the class with another class, or the outside of the image, in their 3x3 neighbourhood."""
    mask = (labels == index) | ~valid
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=0) & valid


def reference_scores(prediction, label, num_classes, distances):
    valid = label != IGNORE
    scores = np.full((len(distances), num_classes), np.nan)
    for index in range(num_classes):
        predicted, labelled = (boundary_of(m, index, valid) for m in (prediction, label))
        if not predicted.any() and not labelled.any():
            continue
        scores[:, index] = 0
        if not predicted.any() or not labelled.any():
            continue
        to_label, to_prediction = (ndimage.distance_transform_edt(~m) for m in (labelled, predicted))
        for row, distance in enumerate(distances):
            precision = (to_label[predicted] <= distance + 1e-6).mean()
            recall = (to_prediction[labelled] <= distance + 1e-6).mean()
            if precision + recall:
                scores[row, index] = 2 * precision * recall / (precision + recall)
    return scores


@given(
    map_pairs(), st.lists(st.sampled_from([0, 1, math.sqrt(2), 2, 2.5, 3, 5, 40]), min_size=1, unique=True)
)
@settings(deadline=None, max_examples=150)
def test_equals_scipys_distance_transform(maps, distances):
    scores = boundary_f1(*map(torch.from_numpy, maps), CLASSES, [Tolerance(d) for d in distances])
    expected = reference_scores(*maps, CLASSES, distances)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("cell", [17, 2], ids=["outlines", "more pixels than one chunk"])
def test_distances_equal_opencvs_precise_transform(cell):
    generator = np.random.default_rng(0)
    label, other = (
        generator.integers(0, CLASSES, (300 // size + 1, 200 // size + 1))
        .astype(np.uint8)
        .repeat(size, 0)
        .repeat(size, 1)
        for size in (60, cell)
    )
    label, other = label[:300, :200], other[:300, :200]
    margin = 23
    limit = margin**2
    query, reference = (boundary_pixels(torch.from_numpy(m), CLASSES, margin) for m in (other, label))
    assert (len(query.keys) > 2**15) == (cell == 2)
    found = nearest_squared_distance(query.keys, reference.keys, 200 + margin, limit)
    expected = []
    valid = np.ones_like(label, bool)
    for index in range(CLASSES):
        outside = (~boundary_of(label, index, valid)).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        expected.append(distance[boundary_of(other, index, valid)] ** 2)
    expected = np.rint(np.concatenate(expected)).astype(int)
    assert (expected > limit).any()
    assert (expected > 100).sum() > 100
    np.testing.assert_array_equal(found.clamp(max=limit + 1), expected.clip(max=limit + 1))


def test_boundaries_are_scikit_images_inner_boundaries_plus_the_border():
    label = np.random.default_rng(0).integers(0, CLASSES, (9, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    pixels = boundary_pixels(torch.from_numpy(label), CLASSES, margin=0)
    for index in range(CLASSES):
        mask = np.pad(label == index, 1)
        assert pixels.counts[index] == find_boundaries(mask, connectivity=2, mode="inner").sum()


def test_a_shifted_square_by_hand():
    label = torch.zeros(40, 40, dtype=torch.uint8)
    label[10:30, 10:30] = 1
    prediction = label.roll(2, dims=1)
    scores = boundary_f1(prediction, label, 2, [Tolerance(0), Tolerance(1), Tolerance(2)])[:, 1]
    # 76 boundary pixels each. The upper and lower sides of 20 share 18 pixels each, the others are apart.
    assert scores[0].item() == pytest.approx(36 / 76)
    assert scores[1].item() == pytest.approx(40 / 76)  # one more at each end of both sides, off by one
    assert scores[2].item() == 1


def test_empty_rule():
    empty, half = torch.zeros(2, 8, 9, dtype=torch.uint8)
    half[:, :4] = 1
    one, other = boundary_f1(empty, half, 3, [Tolerance(1)])[0, 1:]
    assert one == 0  # in one map only
    assert other.isnan()  # in neither


def test_the_image_border_bounds_a_class_that_fills_the_image():
    full = torch.ones(7, 7, dtype=torch.uint8)
    assert boundary_f1(full, full, 2, [Tolerance(0)])[0, 1] == 1


def test_predictions_under_ignore_change_nothing():
    generator = torch.Generator().manual_seed(0)
    prediction, other, label = torch.randint(0, CLASSES, (3, 20, 30), generator=generator).byte()
    label[5:12, 3:20] = IGNORE
    other = torch.where(label == IGNORE, other, prediction)
    assert boundary_f1(prediction, label, CLASSES, CURVE).equal(boundary_f1(other, label, CLASSES, CURVE))


def test_tolerances():
    assert parse_tolerance(2) == Tolerance(2, "px")
    assert parse_tolerance("0.75%") == parse_tolerance(" 0.75 %") == Tolerance(0.75, "%")
    assert (
        Tolerance(1.4142).squared_limit(10, 10) == 2
    )  # a rounded root still includes the diagonal neighbour
    assert Tolerance(1.41).squared_limit(10, 10) == 1
    assert Tolerance(0.75, "%").squared_limit(3072, 4096) == int(38.4**2)
    assert str(Tolerance(math.sqrt(2))) == "1.414 px"
    assert str(Tolerance(0.75, "%")) == "0.75 %"
    for wrong in (-1, "two", "x%", math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            parse_tolerance(wrong)

"""IoU and boundary IoU counts against reference values and against the definition class by class."""

import json
import math
import zlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from torchmetrics.functional.classification import multiclass_confusion_matrix

from src.metrics import overlap
from src.metrics.boundary import boundary_map, boundary_radius
from src.metrics.overlap import count_overlap
from src.metrics.region import mean_of_present, region_areas

IGNORE = 255
CLASSES = 4


@st.composite
def map_pairs(draw):
    """A prediction and a label map with ignored pixels, of regions as well as of noise, any size."""
    shape = draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    prediction = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1), fill=st.just(1)))
    changes = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 2, IGNORE]), fill=st.just(1)))
    return prediction, np.where(changes == 1, prediction, changes).astype(np.uint8)


def eroded_boundary(mask, steps):
    """The definition: the mask minus its repeated 3x3 erosion, outside of the image counting as not the mask."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)


def released_areas(prediction, label, steps):
    """Boundary areas class by class, in the released convention: no pixel is masked."""
    areas = []
    for index in range(CLASSES):
        predicted, labelled = (eroded_boundary(m == index, steps) for m in (prediction, label))
        areas.append([(predicted & labelled).sum(), (predicted | labelled).sum()])
    return np.array(areas).T


def reference_confusion(prediction, label, num_classes):
    maps = (torch.from_numpy(m).long() for m in (prediction, label))
    return multiclass_confusion_matrix(*maps, num_classes, ignore_index=IGNORE, validate_args=False)


def golden_pairs(reference):
    golden = json.loads((reference / "golden_metrics.json").read_text())
    for pair in golden["pairs"]:
        height, width, seed = pair["h"], pair["w"], pair["seed"]
        cell = height // 12
        shape = (7, math.ceil(height / cell), math.ceil(width / cell))
        noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        other = np.random.RandomState(seed + 1000).standard_normal(shape).astype(np.float32)

        def blob(scores, size=(height, width)):
            scores = torch.from_numpy(scores)[None]
            scores = torch.nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)
            return scores[0].argmax(0).byte()

        label, prediction = blob(noise), blob(noise + np.float32(0.35) * other)
        if pair.get("absent"):
            label[label == 6] = 0
            prediction[prediction == 6] = 0
        if pair.get("ignore"):
            label[height // 3 : height // 2, width // 4 : width // 2] = IGNORE
        assert zlib.crc32(label.numpy().tobytes()) == pair["gt_crc32"]
        assert zlib.crc32(prediction.numpy().tobytes()) == pair["pred_crc32"]
        yield pair, prediction, label


def test_equals_the_released_evaluation(reference):
    for pair, prediction, label in golden_pairs(reference):
        radius = boundary_radius(*label.shape)
        assert radius == pair["dilation"]
        counts = count_overlap(prediction, label, 7, radius)
        region = region_areas(counts.confusion)
        assert region.intersection.tolist() == pair["area_intersect"]
        assert region.union.tolist() == pair["area_union"]
        assert region.prediction.tolist() == pair["area_pred"]
        assert region.label.tolist() == pair["area_label"]
        assert counts.boundary.intersection.tolist() == pair["b_intersect"]
        assert counts.boundary.union.tolist() == pair["b_union"]
        for iou, key in ((region.iou, "IoU"), (counts.boundary.iou, "BIoU")):
            np.testing.assert_allclose(iou, pair[key], rtol=1e-6)  # nan equals nan here
            assert mean_of_present(iou).item() == pytest.approx(pair[f"m{key}"], rel=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "radius"),
    [(3072, 4096, 5), (300, 400, 1), (1, 1, 1), (1000, 1118, 1), (1500, 2000, 2)],
)
def test_boundary_radius_is_a_thousandth_of_the_diagonal(height, width, radius):
    assert boundary_radius(height, width) == radius


@given(map_pairs(), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_counts_equal_the_definition_class_by_class(maps, radius):
    prediction, label = maps
    counts = count_overlap(*map(torch.from_numpy, maps), CLASSES, radius)
    assert counts.confusion.equal(reference_confusion(prediction, label, CLASSES))
    intersection, union = released_areas(prediction, label, radius)
    np.testing.assert_array_equal(counts.boundary.intersection, intersection)
    np.testing.assert_array_equal(counts.boundary.union, union)


@given(map_pairs(), st.integers(1, 5), st.booleans())
@settings(deadline=None, max_examples=100)
def test_tensor_operations_and_opencv_agree(maps, radius, ignore_boundaries):
    prediction, label = maps
    on_cpu = overlap._joint_states_cpu(prediction, label, radius, 128, ignore_boundaries)
    anywhere = overlap._joint_states(*map(torch.from_numpy, maps), radius, 128, ignore_boundaries)
    inside = torch.arange(255)  # the state of ignored pixels is free
    assert on_cpu[:, inside].sum(0).equal(anywhere[:, inside].sum(0))
    assert on_cpu[inside][:, inside].equal(anywhere[inside][:, inside])


@given(map_pairs(), st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_without_ignore_boundaries_ignored_pixels_continue_the_class_beside_them(maps, radius):
    prediction, label = maps
    counts = count_overlap(*map(torch.from_numpy, maps), CLASSES, radius, ignore_boundaries=False)
    valid = label != IGNORE
    for index in range(CLASSES):
        predicted, labelled = (
            eroded_boundary((labels == index) | ~valid, radius) & valid for labels in (prediction, label)
        )
        assert counts.boundary.intersection[index] == (predicted & labelled).sum()
        assert counts.boundary.prediction[index] == predicted.sum()
        assert counts.boundary.label[index] == labelled.sum()


@given(map_pairs(), st.integers(0, CLASSES - 1))
@settings(deadline=None, max_examples=50)
def test_without_ignore_boundaries_predictions_under_ignore_change_nothing(maps, filler):
    prediction, label = maps
    other = np.where(label == IGNORE, np.uint8(filler), prediction)
    before, after = (
        count_overlap(torch.from_numpy(p), torch.from_numpy(label), CLASSES, 2, ignore_boundaries=False)
        for p in (prediction, other)
    )
    for left, right in zip(
        (before.confusion, *before.boundary), (after.confusion, *after.boundary), strict=True
    ):
        assert left.equal(right)


@pytest.mark.parametrize("num_classes", [7, 8, 127, 128, 254])
def test_many_classes(num_classes):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, num_classes, (2, 5, 7)).astype(np.uint8).repeat(9, 1).repeat(8, 2)
    prediction, label = maps[0], np.roll(maps[0], 3, axis=1)
    label[:4] = IGNORE
    counts = count_overlap(torch.from_numpy(prediction), torch.from_numpy(label), num_classes, 2)
    assert counts.confusion.equal(reference_confusion(prediction, label, num_classes))
    for index in np.unique(prediction):
        predicted, labelled = (eroded_boundary(m == index, 2) for m in (prediction, label))
        assert counts.boundary.intersection[index] == (predicted & labelled).sum()
        assert counts.boundary.union[index] == (predicted | labelled).sum()


def test_strips_of_a_large_map_meet_without_a_seam():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, CLASSES, (2, 60, 70)).astype(np.uint8)
    prediction, label = (cv2.resize(m, (1400, 1200), interpolation=cv2.INTER_NEAREST) for m in coarse)
    counts = count_overlap(torch.from_numpy(prediction), torch.from_numpy(label), CLASSES, 5)
    intersection, union = released_areas(prediction, label, 5)
    np.testing.assert_array_equal(counts.boundary.intersection, intersection)
    np.testing.assert_array_equal(counts.boundary.union, union)


@given(map_pairs(), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_boundary_map_marks_every_class_and_no_ignored_pixel(maps, radius):
    label = maps[1]
    expected = sum(eroded_boundary(label == index, radius).astype(int) for index in range(CLASSES)) > 0
    marked = boundary_map(torch.from_numpy(label), radius, ignore_boundaries=True)
    np.testing.assert_array_equal(marked, expected)


@pytest.mark.parametrize("value", [4, 127, 128, 131, 254])
def test_values_that_are_no_class_are_named(value):
    good, bad = torch.zeros(3, 5, dtype=torch.uint8), torch.full((3, 5), value, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"label map contains {value}"):
        count_overlap(good, bad, CLASSES, 1)
    with pytest.raises(ValueError, match=f"prediction contains {value}"):
        count_overlap(bad, good, CLASSES, 1)


def test_an_ignored_prediction_and_an_empty_map_are_errors():
    good = torch.zeros(3, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="prediction contains 255"):
        count_overlap(good + 255, good, CLASSES, 1)
    with pytest.raises(ValueError, match="empty"):
        count_overlap(good[:0], good[:0], CLASSES, 1)
    with pytest.raises(ValueError, match="number of classes"):
        count_overlap(good, good, 255, 1)

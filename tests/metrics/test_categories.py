"""Known and new classes scored apart."""

import math

import pytest
import torch

from src.metrics.categories import CategoryMetrics, comparison_rows, forgetting
from src.metrics.suite import SegmentationMetrics
from src.structures import IGNORE

NAMES = ("others", "person", "sky", "car")


def maps(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, classes, (6, 8), generator=generator, dtype=torch.uint8)
    return found.repeat_interleave(6, 0).repeat_interleave(6, 1)


def scored(*pairs, others="others"):
    metrics = CategoryMetrics(NAMES, ["car"], others)
    for prediction, label in pairs:
        metrics.update(prediction, label)
    return metrics.compute()


def test_known_classes_are_scored_with_new_ones_as_others():
    prediction, label = maps(0, 4), maps(1, 4)
    found = scored((prediction, label))
    folded = SegmentationMetrics(3, boundary_f1=False)
    folded.update(prediction.where(prediction < 3, 0), label.where(label < 3, 0))
    expected = folded.compute()
    assert list(found.known["IoU"]) == ["others", "person", "sky"]
    assert list(found.known["IoU"].values()) == pytest.approx(expected["IoU"].tolist())
    assert list(found.known["BIoU"].values()) == pytest.approx(expected["BIoU"].tolist())
    assert found.mean("known", "IoU") == pytest.approx(float(expected["mIoU"]))


def test_new_classes_are_scored_on_the_maps_as_they_are():
    prediction, label = maps(0, 4), maps(1, 4)
    whole = SegmentationMetrics(4, boundary_f1=False)
    whole.update(prediction, label)
    found = scored((prediction, label))
    assert found.new["IoU"]["car"] == pytest.approx(float(whole.compute()["IoU"][3]))
    assert found.new["BIoU"]["car"] == pytest.approx(float(whole.compute()["BIoU"][3]))


def test_finding_the_new_class_is_no_forgetting():
    label = maps(1, 4)
    before = scored((label.where(label < 3, 0), label))  # perfect, but for the class it does not know
    after = scored((label, label))
    assert forgetting(before, after) == {"IoU": 0, "BIoU": 0}
    assert before.new["IoU"]["car"] == 0
    assert after.new["IoU"]["car"] == 1


def test_forgetting_is_the_loss_of_the_mean_of_known_classes():
    label = maps(1, 3)
    before, after = scored((label, label)), scored((label.where(label != 2, 1), label))
    lost = forgetting(before, after)
    assert lost["IoU"] == pytest.approx(1 - after.mean("known", "IoU"))
    assert lost["IoU"] > 0.3
    rows = dict(comparison_rows(before, after))
    assert rows["sky"][:3] == (1, 0, -1)
    assert rows["mean of known"][2] == pytest.approx(-lost["IoU"])


def test_labels_without_new_classes_score_the_known_ones_alone():
    label = maps(1, 3)
    for answer in (label, label.where(label > 0, 3)):  # also when they are found
        found = scored((answer, label))
        assert math.isnan(found.new["IoU"]["car"])
        assert math.isnan(found.mean("new", "IoU"))
        assert found.mean("known", "IoU") == 1


def test_objects_that_used_to_be_ignored_stay_out_of_the_known_scores():
    label = maps(1, 4)
    known = scored((label.where(label < 3, 1), label), others="ignore").known["IoU"]
    assert set(known.values()) == {1.0}
    ignored = label.clone()
    ignored[label == 3] = IGNORE
    found = scored((label.where(label != 0, 3), ignored), others="ignore").known["IoU"]
    assert found["person"] == found["sky"] == 1


def test_outlines_of_objects_that_used_to_be_ignored_are_nobodys_boundaries():
    label = torch.ones(360, 480, dtype=torch.uint8)
    label[200:] = 2
    for left in range(20, 460, 60):
        label[100:140, left : left + 30] = 3
    known = scored((label, label), others="ignore").known["BIoU"]
    assert math.isnan(known["others"])
    assert known["person"] == known["sky"] == 1


def test_a_second_evaluation_starts_from_nothing():
    metrics = CategoryMetrics(NAMES, ["car"], "others")
    label = maps(1, 4)
    metrics.update(maps(0, 4), label)
    metrics.reset()
    metrics.update(label, label)
    assert metrics.compute().mean("known", "IoU") == 1

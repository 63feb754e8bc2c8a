"""Bootstrap intervals against closed forms, and against resampling through the metrics themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from src.metrics.suite import SegmentationMetrics
from src.report.bootstrap import difference_intervals, resamples, score_intervals, set_scores
from src.report.record import ImageRecords, image_records


def records(intersection, union, f1=None) -> ImageRecords:
    """The same areas for regions and boundaries; (N, K) each."""
    intersection, union = np.asarray(intersection), np.asarray(union)
    names = tuple(f"photo{index}" for index in range(len(union)))
    return ImageRecords(names, intersection, union, intersection, union, f1, np.ones(len(names)))


def test_the_interval_of_a_share_is_binomial() -> None:
    # 200 photos of one pixel, 60 of them right: the IoU of a resample is a binomial share
    hits = np.repeat([1, 0], [60, 140])[:, None]
    interval = score_intervals(records(hits, np.ones_like(hits)), samples=20_000, level=0.9, seed=0)["IoU"]
    assert interval.value.tolist() == [0.3, 0.3]
    expected = stats.binom.ppf([0.05, 0.95], 200, 0.3) / 200
    assert interval.low[0] == pytest.approx(expected[0], abs=1.01 / 200)
    assert interval.high[0] == pytest.approx(expected[1], abs=1.01 / 200)


def test_the_interval_of_a_mean_is_normal_for_many_photos() -> None:
    # photos of equal size: the IoU of a set is the mean of its photos
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1001, (400, 1))
    interval = score_intervals(records(values, np.full_like(values, 1000)), 20_000, 0.95, 0)["IoU"]
    mean, error = values.mean() / 1000, values.std() / 1000 / np.sqrt(400)
    assert interval.value[0] == pytest.approx(mean)
    assert interval.low[0] == pytest.approx(mean - 1.96 * error, abs=0.05 * error)
    assert interval.high[0] == pytest.approx(mean + 1.96 * error, abs=0.05 * error)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = []
    for seed in range(300):
        areas = generator.integers(100, 1000, (40, 1))
        hits = generator.binomial(areas, 0.7)
        interval = score_intervals(records(hits, areas), 400, 0.9, seed)["IoU"]
        covered.append(interval.low[0] <= 0.7 <= interval.high[0])
    # three standard errors about 0.9, and a little less for forty photos
    assert 0.83 < np.mean(covered) < 0.96


def test_a_resample_scores_what_the_metrics_score() -> None:
    generator = np.random.default_rng(0)
    maps = [
        tuple(torch.from_numpy(generator.integers(0, high, (12, 15)).astype(np.uint8)) for high in (3, 2))
        for _ in range(4)
    ]
    scored = {}
    for index, (prediction, label) in enumerate(maps):
        metrics = SegmentationMetrics(4)
        metrics.update(prediction, label)
        scored[f"photo{index}"] = metrics.latest
    images = image_records(scored, dict.fromkeys(scored, 1.0))

    for weights in ([1, 1, 1, 1], [4, 0, 0, 0], [0, 2, 1, 1]):
        metrics = SegmentationMetrics(4)
        for (prediction, label), times in zip(maps, weights, strict=True):
            for _ in range(times):
                metrics.update(prediction, label)
        expected = metrics.compute()
        drawn = set_scores(images, np.array([weights], dtype=float))
        for metric in ("IoU", "BIoU", "BF1"):
            np.testing.assert_allclose(drawn[metric][0, :-1], expected[metric], rtol=1e-5)
            assert drawn[metric][0, -1] == pytest.approx(expected[f"m{metric}"].item(), rel=1e-5)


def test_resamples_draw_with_replacement() -> None:
    drawn = resamples(30, 500, seed=3)
    assert drawn.shape == (500, 30)
    assert (drawn.sum(1) == 30).all()
    assert drawn.max() > 2
    # a photo is left out of a resample with probability (1 - 1/n)^n
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.01)
    assert (resamples(30, 500, seed=3) == drawn).all()
    assert (resamples(30, 500, seed=4) != drawn).any()


def test_equal_photos_have_no_uncertainty() -> None:
    interval = score_intervals(records([[3, 1]] * 5, [[4, 4]] * 5), 50, 0.95, 0)["BIoU"]
    assert interval.value.tolist() == interval.low.tolist() == interval.high.tolist() == [0.75, 0.25, 0.5]


def test_classes_that_never_occur_are_left_out_without_a_warning() -> None:
    f1 = np.array([[0.5, np.nan], [1.0, np.nan]])
    intervals = score_intervals(records([[1, 0], [2, 0]], [[2, 0], [2, 0]], f1), 100, 0.95, 0)
    for interval in intervals.values():
        assert np.isnan(interval.value[1])
        assert np.isnan([interval.low[1], interval.high[1]]).all()
        assert interval.value[2] == interval.value[0] == 0.75
        assert 0.5 <= interval.low[2] <= 0.75 <= interval.high[2] <= 1


def test_a_rare_class_counts_in_the_resamples_that_hold_it() -> None:
    # the second class is in two photos of ten, with IoU 1; where it is missing the mean is that of the first alone
    union = np.ones((10, 2), int) * [[10, 0]]
    union[:2, 1] = 10
    intersection = np.ones((10, 2), int) * [[5, 0]]
    intersection[:2, 1] = 10
    interval = score_intervals(records(intersection, union), 500, 0.95, 0)["IoU"]
    assert interval.low.tolist() == [0.5, 1, 0.5]
    assert interval.high.tolist() == [0.5, 1, 0.75]


def test_paired_differences_are_narrower_than_either_score() -> None:
    generator = np.random.default_rng(0)
    union = np.full((60, 1), 1000)
    theirs = generator.integers(200, 800, (60, 1))  # photos differ far more than the two programs
    ours = theirs + 10 + generator.integers(-5, 6, (60, 1))
    difference = difference_intervals(records(ours, union), records(theirs, union), 500, 0.95, 0)["IoU"]
    score = score_intervals(records(ours, union), 500, 0.95, 0)["IoU"]
    assert difference.value[0] == pytest.approx((ours - theirs).mean() / 1000)
    assert 0 < difference.low[0] < difference.value[0] < difference.high[0]
    assert difference.high[0] - difference.low[0] < 0.05 * (score.high[0] - score.low[0])


def test_an_evaluation_does_not_differ_from_itself() -> None:
    images = records([[3], [7]], [[9], [9]])
    interval = difference_intervals(images, images, 50, 0.95, 0)["IoU"]
    assert [part.tolist() for part in interval] == [[0, 0]] * 3


def test_pairs_must_be_the_same_photos() -> None:
    images = records([[3], [7]], [[9], [9]])
    with pytest.raises(ValueError, match="same order"):
        difference_intervals(images, images.take(["photo1", "photo0"]), 50, 0.95, 0)


def test_metrics_that_one_lacks_are_left_out() -> None:
    union = np.array([[9], [9]])
    with_f1 = records(union // 3, union, np.array([[0.5], [0.7]]))
    without = records(union // 3, union)
    assert set(difference_intervals(with_f1, without, 50, 0.95, 0)) == {"IoU", "BIoU"}
    assert set(difference_intervals(with_f1, with_f1, 50, 0.95, 0)) == {"IoU", "BIoU", "BF1"}


def test_a_class_of_one_photo_has_no_interval() -> None:
    ours = records([[50, 50], [60, 0], [55, 0]], [[100, 100], [100, 0], [100, 0]])
    theirs = records([[50, 40], [60, 0], [55, 0]], [[100, 100], [100, 0], [100, 0]])
    for interval in (score_intervals(ours, 200, 0.95, 0), difference_intervals(ours, theirs, 200, 0.95, 0)):
        for metric in ("IoU", "BIoU"):
            assert not np.isnan(interval[metric].value).any()
            assert np.isnan([interval[metric].low[1], interval[metric].high[1]]).all()
            assert not np.isnan([interval[metric].low[[0, 2]], interval[metric].high[[0, 2]]]).any()
    alone = score_intervals(records([[5, 5]], [[10, 10]]), 200, 0.95, 0)["IoU"]
    assert np.isnan(alone.low).all()
    assert alone.value.tolist() == [0.5, 0.5, 0.5]

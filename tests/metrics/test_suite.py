"""The metrics over sets of images: sums, means, processes, checkpoints and errors."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from src.metrics.boundary_f1 import boundary_f1
from src.metrics.suite import SegmentationMetrics, score_image
from src.metrics.tolerance import CURVE, Tolerance

IGNORE = 255
CLASSES = 4
KEYS = {
    "IoU",
    "mIoU",
    "BIoU",
    "mBIoU",
    "BF1",
    "mBF1",
    "BF1_curve",
    "BF1_curve_per_class",
    "confusion",
    "images",
}


def make_maps(count=3, size=(40, 50), seed=0):
    """Predictions and labels of blocks; the class of highest id never occurs, some pixels are ignored."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, CLASSES - 1, (count, 6, 7)).astype(np.uint8)
    label = coarse.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]
    prediction = np.roll(label, (1, 2), axis=(1, 2))
    label[:, 3:6, 10:30] = IGNORE
    return prediction.copy(), label


def filled(maps, **settings):
    metrics = SegmentationMetrics(CLASSES, **settings)
    for prediction, label in zip(*maps, strict=True):
        metrics.update(torch.from_numpy(prediction), torch.from_numpy(label))
    return metrics


def assert_same(left, right, **tolerances):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_allclose(left[key], right[key], **tolerances, err_msg=key)


def test_areas_are_summed_over_the_set_and_bf1_is_averaged():
    maps = make_maps()
    result = filled(maps).compute()
    assert result.keys() == KEYS
    tensors = [torch.from_numpy(m) for m in maps]

    expected = multiclass_jaccard_index(
        *(m.long() for m in tensors), CLASSES, average=None, ignore_index=IGNORE
    )
    np.testing.assert_allclose(result["IoU"][:-1], expected[:-1], rtol=1e-6)
    assert result["mIoU"].item() == pytest.approx(expected[:-1].mean().item())

    per_image = [score_image(p, t, CLASSES) for p, t in zip(*tensors, strict=True)]
    areas = [s.overlap.boundary for s in per_image]
    biou = sum(a.intersection for a in areas) / sum(a.union for a in areas)
    np.testing.assert_allclose(result["BIoU"], biou, rtol=1e-6)
    assert result["mBIoU"].item() == pytest.approx(biou[:-1].mean().item())

    f1 = torch.stack([boundary_f1(p, t, CLASSES, CURVE) for p, t in zip(*tensors, strict=True)])
    np.testing.assert_allclose(result["BF1_curve_per_class"], f1.nanmean(0), rtol=1e-6)
    np.testing.assert_allclose(result["BF1_curve"], f1.nanmean(2).mean(0), rtol=1e-6)
    assert result["mBF1"] == result["BF1_curve"][1]  # the default is the root of 2
    assert (result["BF1_curve"][:5].diff() >= 0).all()  # in order of distance, 1 to 5 px

    for key in ("IoU", "BIoU", "BF1"):
        assert result[key][-1].isnan()
        assert 0 < result[f"m{key}"] < 1
    assert result["images"] == 3


def test_bf1_averages_over_classes_of_an_image_first():
    both = torch.zeros(9, 9, dtype=torch.uint8)
    both[:, 5:] = 1
    one = torch.zeros(9, 9, dtype=torch.uint8)
    metrics = SegmentationMetrics(3, tolerance=0)
    metrics.update(both, both)  # two classes, both right
    metrics.update(one + 2, one)  # classes 0 and 2 occur, both 0
    metrics.update(one, one)  # one class, right
    result = metrics.compute()
    assert result["mBF1"].item() == pytest.approx((1 + 0 + 1) / 3)
    assert result["BF1"].tolist() == pytest.approx([2 / 3, 1, 0])


def test_the_chosen_tolerance_counts():
    maps = make_maps()
    exact, loose, relative = (filled(maps, tolerance=t).compute() for t in (0, 5, "0.75%"))
    assert exact["mBF1"] < loose["mBF1"]
    assert loose["mBF1"] == loose["BF1_curve"][CURVE.index(Tolerance(5))]
    assert relative["mBF1"] == loose["BF1_curve"][CURVE.index(Tolerance(0.75, "%"))]


def test_perfect_predictions_score_one():
    _, label = make_maps()
    prediction = np.where(label == IGNORE, np.uint8(0), label)
    result = filled((prediction, label), ignore_boundaries=False).compute()
    for key in ("mIoU", "mBIoU", "mBF1"):
        assert result[key] == 1


def test_ignore_convention_reaches_biou():
    maps = make_maps()
    released, strict = filled(maps).compute(), filled(maps, ignore_boundaries=False).compute()
    assert released["mBIoU"] != strict["mBIoU"]
    assert released["mIoU"] == strict["mIoU"]
    assert released["mBF1"] == strict["mBF1"]


def test_an_image_of_ignored_pixels_has_no_scores():
    label = torch.full((6, 8), IGNORE, dtype=torch.uint8)
    metrics = SegmentationMetrics(CLASSES, ignore_boundaries=False)
    metrics.update(torch.zeros_like(label), label)
    result = metrics.compute()
    assert all(result[key].isnan() for key in ("mIoU", "mBIoU", "mBF1"))

    maps = make_maps(1)
    for prediction, truth in zip(*maps, strict=True):
        metrics.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    with_ignored, without = metrics.compute(), filled(maps, ignore_boundaries=False).compute()
    assert (with_ignored.pop("images"), without.pop("images")) == (2, 1)
    assert_same(with_ignored, without)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (2, 2)])
def test_tiny_images(size):
    label = torch.zeros(size, dtype=torch.uint8)
    label.view(-1)[-1] = 1
    metrics = SegmentationMetrics(2)
    metrics.update(label, label)
    result = metrics.compute()
    assert (result["mIoU"], result["mBIoU"], result["mBF1"]) == (1, 1, 1)


def test_bf1_can_be_switched_off():
    maps = make_maps()
    fast, full = filled(maps, boundary_f1=False), filled(maps)
    assert fast.latest.f1 is None
    result = fast.compute()
    assert result.keys() == {key for key in KEYS if "BF1" not in key}
    assert_same(result, {key: value for key, value in full.compute().items() if key in result})


def test_any_integer_type_is_read():
    maps = make_maps()
    expected = filled(maps).compute()
    assert_same(filled([m.astype(np.int64) for m in maps]).compute(), expected)


def test_latest_holds_the_scores_of_the_last_image():
    maps = make_maps()
    metrics = filled(maps)
    expected = filled([m[-1:] for m in maps]).compute()
    for scores, key in (
        (metrics.latest.iou, "IoU"),
        (metrics.latest.biou, "BIoU"),
        (metrics.latest.f1, "BF1"),
    ):
        np.testing.assert_allclose(scores, expected[key])


def test_survives_checkpoints_copies_and_resets():
    maps = make_maps()
    metrics = filled(maps)
    expected = metrics.compute()
    restored = SegmentationMetrics(CLASSES)
    restored.load_state_dict(copy.deepcopy(metrics.state_dict()))
    half = filled([m[:1] for m in maps])
    resumed = SegmentationMetrics(CLASSES)
    resumed.load_state_dict(half.state_dict())
    for prediction, label in zip(*(m[1:] for m in maps), strict=True):
        resumed.update(torch.from_numpy(prediction), torch.from_numpy(label))
    assert_same(resumed.compute(), expected)
    restored.update(*(torch.from_numpy(m[0]) for m in maps))
    assert restored.compute()["images"] == 4
    assert_same(copy.deepcopy(metrics).compute(), expected)

    metrics.reset()
    assert metrics.confusion.sum() == 0
    for prediction, label in zip(*maps, strict=True):
        metrics.update(torch.from_numpy(prediction), torch.from_numpy(label))
    assert_same(metrics.compute(), expected)


def test_forward_adds_to_the_sums_like_update():
    maps = make_maps()
    metrics = SegmentationMetrics(CLASSES)
    for prediction, label in zip(*maps, strict=True):
        single = metrics(torch.from_numpy(prediction), torch.from_numpy(label))
        assert single["images"] == 1
    assert_same(metrics.compute(), filled(maps).compute())


@pytest.mark.slow
def test_two_processes_with_unequal_shares_agree_with_one(tmp_path):
    maps = make_maps(4)
    expected = filled(maps).compute()
    np.savez(tmp_path / "maps.npz", prediction=maps[0], label=maps[1])
    script = Path(__file__).with_name("process.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", tmp_path / "store", tmp_path / "maps.npz"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for output in outputs:
        assert_same(json.loads(output.splitlines()[-1]), expected, rtol=1e-6)


def test_errors_name_the_image_and_the_fix():
    label = torch.zeros(4, 6, dtype=torch.uint8)
    metrics = SegmentationMetrics(CLASSES)
    with pytest.raises(ValueError, match=r"beach: prediction \(6, 4\) and label \(4, 6\).*label's size"):
        metrics.update(label.T, label, "beach")
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        metrics.update(label[None], label[None])
    with pytest.raises(ValueError, match="beach: the label map contains 9"):
        metrics.update(label, label + 9, "beach")
    with pytest.raises(ValueError, match="beach: the label has values from -1 to 0"):
        metrics.update(label, label.long().index_fill(0, torch.tensor([0]), -1), "beach")
    with pytest.raises(ValueError, match="float32"):
        metrics.update(label.float(), label)
    assert metrics.images == 0
    with pytest.raises(ValueError, match="tolerance"):
        SegmentationMetrics(CLASSES, tolerance="far")

"""The published numbers: which row belongs to which experiment, and the comparison."""

from pathlib import Path

import pytest

from src.config import CONFIG_DIR, compose_config
from src.published import LADDER, RESULTS, Scores, compare, published_result


def test_every_experiment_of_a_row_exists_and_builds_with_its_backbone():
    names = [row.experiment for row in RESULTS + LADDER if row.experiment]
    assert len(names) == len(set(names)) == 9
    for name in names:
        assert Path(CONFIG_DIR, "experiment", f"{name}.yaml").is_file()
        backbone = compose_config("train", [f"experiment={name}"]).model.backbone.name
        assert published_result(name, backbone).experiment == name


def test_a_row_holds_for_its_own_backbone_only():
    assert published_result("massformer", "resnet50.tv_in1k").method == "MaSSFormer"
    assert published_result("massformer", "resnet101.tv_in1k") is None
    assert published_result("massformer", "swin_base_patch4_window12_384.ms_in22k") is None
    assert published_result("my_experiment", "resnet50.tv_in1k") is None


def test_the_last_rung_is_the_full_model():
    full, rung = published_result("massformer", "resnet50"), LADDER[-1]
    assert (full.val.miou, full.val.biou, full.gmacs) == (rung.val.miou, rung.val.biou, rung.gmacs)


def test_scores_are_in_their_units():
    for row in RESULTS + LADDER:
        for scores in (row.val, row.test):
            if scores is not None:
                assert 80 < scores.miou < 100
                assert 35 < scores.biou < scores.miou
                assert scores.bf1 is None or 0.4 < scores.bf1 < 0.6


def test_comparison_leaves_out_what_is_missing():
    massformer, rung = published_result("massformer", "resnet50"), LADDER[0]
    lines = compare(Scores(90.0, 48.0, 0.56), massformer, "val")
    assert [line.metric for line in lines] == ["mIoU", "BIoU", "BF1"]
    assert [line.difference for line in lines] == pytest.approx([1.03, -0.97, -0.0039])
    assert [line.paper for line in compare(Scores(1, 1, 1), massformer, "test")] == [88.21, 48.39, 0.5593]
    assert [line.metric for line in compare(Scores(90.0, 48.0), massformer, "val")] == ["mIoU", "BIoU"]
    assert [line.metric for line in compare(Scores(90.0, 48.0, 0.5), rung, "val")] == ["mIoU", "BIoU"]
    assert compare(Scores(90.0, 48.0), rung, "test") == []

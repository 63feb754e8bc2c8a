"""Published scores beside one's own: only where they mean something, with what speaks against the comparison."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from src.config import data_config
from src.report.benchmark import deviations, is_mass13k, published_scores
from src.report.bootstrap import Interval
from src.report.console import published_table


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=mass13k"], True),
        (["data=camvid"], False),
        (["data=synthetic"], False),
        (["data=own"], False),
        (["data=mass13k", "+data.class_map={0: sky}"], False),
        (["data=mass13k", "+data.classes.car=[1,2,3]"], False),
    ],
)
def test_only_the_benchmark_has_published_scores(overrides: list[str], expected: bool) -> None:
    assert is_mass13k(data_config(overrides)) == expected


def intervals(iou: float, biou: float, bf1: float | None = None) -> dict[str, Interval]:
    values = {"IoU": iou, "BIoU": biou} | ({} if bf1 is None else {"BF1": bf1})
    return {metric: Interval(*np.full((3, 8), value)) for metric, value in values.items()}


def test_the_same_method_stands_beside_its_own_row() -> None:
    found = published_scores(intervals(0.9, 0.5, 0.56), "val", 500, "massformer_lite", "resnet18.tv_in1k")
    assert found.method == "MaSSFormer-Lite (R18), val"
    assert [line.metric for line in found.lines] == ["mIoU", "BIoU", "BF1"]
    assert [line.paper for line in found.lines] == [87.11, 45.35, 0.5137]
    assert [line.difference for line in found.lines] == pytest.approx([2.89, 4.65, 0.0463])
    assert found.note == "The paper's BF1 tolerance is unpublished."


def test_other_methods_stand_beside_the_main_result_and_say_so() -> None:
    found = published_scores(intervals(0.9, 0.5), "test", 20, "", "")
    assert found.method == "MaSSFormer (R50), test"
    assert [line.paper for line in found.lines] == [88.21, 48.39]
    assert "Another method or backbone" in found.note
    assert "1500 photos, this is an evaluation of 20" in found.note
    assert "tolerance" not in found.note


def test_nothing_stands_where_nothing_was_published() -> None:
    assert published_scores(intervals(0.9, 0.5), "test", 1500, "ablation_cst", "resnet50") is None


def test_the_terminal_prints_signed_differences() -> None:
    found = published_scores(intervals(0.9, 0.4, 0.57), "val", 500, "massformer", "resnet50.tv_in1k")
    console = Console(file=io.StringIO(), width=120)
    console.print(published_table(found))
    text = console.file.getvalue()
    assert "+1.03" in text
    assert "-8.97" in text
    assert "+0.0061" in text


def test_what_speaks_against_a_comparison_is_told() -> None:
    data = {"evaluation_limit": [4096, 3072], "enlarge": True}
    assert deviations(data, {"boundary_ratio": 0.001}, by_network=True) == []
    (own_size,) = deviations(data | {"enlarge": False}, {}, by_network=True)
    assert "data.enlarge=true" in own_size
    smaller, wider = deviations(
        data | {"evaluation_limit": [1024, 768]}, {"boundary_ratio": 0.02}, by_network=True
    )
    assert "1024x768" in smaller
    assert "0.02" in wider
    assert deviations(data | {"enlarge": False}, {}, by_network=False) == []
    found = published_scores(intervals(0.9, 0.5), "val", 500, "massformer", "resnet50.tv_in1k", [own_size])
    assert found is not None
    assert own_size in found.note

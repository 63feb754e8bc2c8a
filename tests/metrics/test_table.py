"""Tables of scores in the terminal, as CSV and as JSON."""

import csv
import io
import json

import pytest
import torch
from rich.console import Console

from src.metrics.suite import SegmentationMetrics
from src.metrics.table import class_table, image_table, render, write_csv, write_json

NAMES = ("sky", "tree", "water")


@pytest.fixture(params=[True, False], ids=["with BF1", "without"])
def metrics(request):
    label = torch.zeros(20, 20, dtype=torch.uint8)
    label[5:15, 5:15] = 1
    metrics = SegmentationMetrics(3, boundary_f1=request.param)
    metrics.update(label.roll(1, 0), label, "a")
    return metrics


def test_files_hold_the_scores(metrics, tmp_path):
    result = metrics.compute()
    table = class_table(result, NAMES)
    write_csv(tmp_path / "new" / "scores.csv", table)
    write_json(tmp_path / "scores.json", table, images=1)

    rows = list(csv.DictReader((tmp_path / "new" / "scores.csv").open()))
    document = json.loads((tmp_path / "scores.json").read_text())
    assert [row["class"] for row in rows] == [*NAMES, "mean"] == list(document["class"])
    assert document["images"] == 1
    for column in ("IoU", "BIoU", "BF1") if metrics.tolerances else ("IoU", "BIoU"):
        for index, row in enumerate(rows[:2]):
            assert float(row[column]) == pytest.approx(result[column][index].item(), abs=1e-6)
        assert rows[2][column] == ""  # water never occurs
        assert document["class"]["water"][column] is None
        assert float(rows[3][column]) == pytest.approx(result[f"m{column}"].item(), abs=1e-6)
        assert document["class"]["mean"][column] == pytest.approx(result[f"m{column}"].item(), abs=1e-6)
    assert ("BF1@0.75 %" in rows[0]) == bool(metrics.tolerances)
    assert not list(tmp_path.rglob(".*"))


def test_terminal_shows_percent_and_a_mean_row(metrics):
    result = metrics.compute()
    console = Console(file=io.StringIO(), width=200)
    console.print(render(class_table(result, NAMES), "val, 1 image"))
    text = console.file.getvalue()
    assert "val, 1 image" in text
    assert f"{100 * result['mIoU'].item():.2f}" in text
    assert ("BF1" in text) == bool(metrics.tolerances)
    if metrics.tolerances:
        assert f"{result['mBF1'].item():.4f}" in text


def test_image_table_starts_with_the_means(metrics):
    table = image_table({"a": metrics.latest}, NAMES)
    result = metrics.compute()
    (name, scores) = table.rows[0]
    row = dict(zip(table.columns, scores, strict=True))
    assert name == "a"
    assert row["mIoU"] == pytest.approx(result["mIoU"].item())
    assert row["BIoU tree"] == pytest.approx(result["BIoU"][1].item())
    assert ("mBF1" in row) == bool(metrics.tolerances)


def test_names_must_fit(metrics):
    with pytest.raises(ValueError, match="zip"):
        class_table(metrics.compute(), NAMES[:2])

"""Two evaluations of the same photos: differences, the photos that changed, and what does not compare."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from src.errors import UserError
from src.report.comparison import compare, interval_rows
from src.report.console import comparison_tables
from src.report.record import Evaluation, ImageRecords, read_record, write_record

CLASSES = ("sky", "tree")
SETTINGS = {"boundary_ratio": 0.001, "ignore_boundaries": True, "tolerance": "1.414 px"}
DRAWING = {"samples": 50, "level": 0.95, "seed": 0}


def images(*hits: int, complexity=(2.0, 3.0, 4.0), names=("a", "b", "c")) -> ImageRecords:
    areas = np.stack([np.array(hits), np.array(hits) // 2], 1)
    union = np.full_like(areas, 100)
    f1 = areas / 100
    f1[0, 1] = np.nan
    return ImageRecords(names, areas, union, areas, union, f1, np.array(complexity))


def evaluation(records: ImageRecords, **changes) -> Evaluation:
    facts = {"classes": CLASSES, "settings": SETTINGS, **changes}
    return Evaluation(Path("other.json"), facts["classes"], facts["settings"], records)


def test_differences_and_the_photos_behind_them() -> None:
    found = compare(images(50, 60, 70), CLASSES, SETTINGS, evaluation(images(52, 40, 66)), **DRAWING)
    assert (found.images, found.unmatched) == (3, 0)
    assert found.differences["IoU"].value[0] == pytest.approx((180 - 158) / 300)
    assert [change.name for change in found.changes] == ["b", "c", "a"]
    assert found.changes[0].difference == pytest.approx(0.15)
    assert found.changes[2].difference < 0
    plain = json.loads(json.dumps(found.to_plain(CLASSES, 0.95, most=2), allow_nan=False))
    assert list(plain["changed_most"]) == ["b", "c"]
    assert plain["difference"]["sky"]["IoU"][0] == pytest.approx(22 / 300, abs=1e-6)
    assert set(plain["difference"]) == {"sky", "tree", "mean"}


def test_only_shared_photos_are_compared() -> None:
    other = evaluation(images(52, 40, 66, names=("b", "c", "d"), complexity=(3.0, 4.0, 9.0)))
    found = compare(images(50, 60, 70), CLASSES, SETTINGS, other, **DRAWING)
    assert (found.images, found.unmatched) == (2, 2)
    assert found.differences["IoU"].value[0] == pytest.approx((130 - 92) / 200)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evaluation(images(1, 2, 3), classes=("sky", "water")), "classes sky, water.*sky, tree"),
        (
            evaluation(images(1, 2, 3), settings={**SETTINGS, "boundary_ratio": 0.02}),
            "boundary_ratio=0.02.*0.001",
        ),
        (evaluation(images(1, 2, 3), settings={**SETTINGS, "tolerance": "2 px"}), "tolerance=2 px"),
        (evaluation(images(1, 2, 3, names=("x", "y", "z"))), "no photo in common"),
        (
            evaluation(images(1, 2, 3, complexity=(2.0, 3.5, 4.0))),
            "1 of 3 photos have other label maps.*b for one",
        ),
    ],
)
def test_what_does_not_compare_is_refused(other: Evaluation, message: str) -> None:
    with pytest.raises(UserError, match=rf"other\.json.*{message}"):
        compare(images(50, 60, 70), CLASSES, SETTINGS, other, **DRAWING)


def test_an_evaluation_without_bf1_compares_by_the_rest() -> None:
    without = images(52, 40, 66)._replace(f1=None)
    other = evaluation(without, settings={**SETTINGS, "tolerance": None})
    found = compare(images(50, 60, 70), CLASSES, SETTINGS, other, **DRAWING)
    assert set(found.differences) == {"IoU", "BIoU"}


def test_tables_show_signs_and_the_largest_changes() -> None:
    found = compare(images(50, 60, 70), CLASSES, SETTINGS, evaluation(images(52, 40, 66)), **DRAWING)
    console = Console(file=io.StringIO(), width=200)
    console.print(*comparison_tables(found, CLASSES, most=1), sep="\n")
    text = console.file.getvalue()
    assert "+7.33" in text
    assert "ours minus other.json, 3 photos" in text
    changed = text.split("photos that changed most")[1]
    assert "b" in changed
    assert "+15.00" in changed
    assert "-1.50" not in changed


def test_records_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    records = images(50, 60, 70, complexity=(2.5, np.nan, 4.0))
    write_record(path, {"classes": list(CLASSES), "settings": SETTINGS}, records)
    again = read_record(path)
    assert (again.classes, again.settings, again.images.names) == (CLASSES, SETTINGS, records.names)
    for ours, theirs in zip(records[1:], again.images[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, which other programs cannot read

    write_record(path, {"classes": list(CLASSES), "settings": SETTINGS}, records._replace(f1=None))
    assert read_record(path).images.f1 is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1, 2]",
        '{"class": {}, "images": 3}',
        '{"classes": ["a"], "settings": {}, "per_image": {"x": {}}}',
    ],
)
def test_other_files_are_no_records(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"scores\.json: not the scores\.json of an evaluation"):
        read_record(path)
    with pytest.raises(UserError, match="no such file"):
        read_record(tmp_path / "missing.json")


def test_rows_leave_out_classes_that_never_occur() -> None:
    records = images(50, 60, 70)
    records.union[:, 1] = 0
    records.boundary_union[:, 1] = 0
    found = compare(records, CLASSES, SETTINGS, evaluation(records), **DRAWING)
    rows = interval_rows({"IoU": found.differences["IoU"]}, CLASSES)
    assert set(rows) == {"sky", "mean"}


def test_rows_keep_scores_without_an_interval() -> None:
    records = images(50, 60, 70)
    records.union[1:, 1] = 0
    found = compare(records, CLASSES, SETTINGS, evaluation(records), **DRAWING)
    value, low, high = interval_rows({"IoU": found.differences["IoU"]}, CLASSES)[CLASSES[1]]["IoU"]
    assert value == 0
    assert low is None
    assert high is None

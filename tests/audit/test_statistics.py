"""What a dataset is made of, against counts by hand, and the report that shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.dataset_report import describe, main
from src.audit.parallel import map_files
from src.audit.statistics import PUBLISHED_MIPQ, measure_label, summarise, to_plain
from src.config import data_config
from src.data.classes import ClassMap, Taxonomy
from src.errors import UserError
from src.metrics.complexity import mask_complexity

REPOSITORY = Path(__file__).resolve().parents[2]
TAXONOMY = Taxonomy.from_mapping({"sky": [0, 0, 255], "tree": [0, 255, 0], "water": [0, 255, 255]})


def label_file(folder: Path, name: str, label: np.ndarray) -> Path:
    path = folder / f"{name}.png"
    Image.fromarray(label).save(path)
    return path


@pytest.fixture
def labels(tmp_path: Path) -> list[Path]:
    """A sky with a square tree, and a smaller map of sky and ignored pixels, with raw ids of their own."""
    square = np.full((40, 60), 7, np.uint8)
    square[10:20, 10:20] = 9
    half = np.full((20, 60), 7, np.uint8)
    half[:10] = 255
    return [label_file(tmp_path, "square", square), label_file(tmp_path, "half", half)]


def test_counts_are_those_of_the_label_maps(labels: list[Path]) -> None:
    class_map = ClassMap(TAXONOMY, {7: "sky", 9: "tree"})
    measured = [measure_label(path, class_map, 3) for path in labels]
    assert measured[0].size == (40, 60)
    assert measured[0].pixels.tolist() == [2300, 100, 0]
    assert measured[1].ignored == 600

    whole = summarise(measured, 3)
    assert whole.photos == 2
    assert whole.sizes == {"60 x 40": 1, "60 x 20": 1}
    assert whole.share.tolist() == pytest.approx([2900 / 3000, 100 / 3000, 0])
    assert whole.ignored == pytest.approx(600 / 3600)
    assert whole.present.tolist() == [2, 1, 0]

    # one IPQ for each of the three masks, by contour lengths through pixel centres
    tree = 36**2 / (4 * np.pi * 100)
    half = (2 * (59 + 9)) ** 2 / (4 * np.pi * 600)
    # around the hole the contour cuts the corners
    sky = (2 * (59 + 39) + 4 * 9 + 4 * 2**0.5) ** 2 / (4 * np.pi * 2300)
    complexity = whole.complexity
    assert complexity.masks == 3
    assert complexity.mean == pytest.approx(np.mean([sky, tree, half]), rel=1e-6)
    assert complexity.std == pytest.approx(np.std([sky, tree, half]), rel=1e-6)
    assert complexity.class_means[:2].tolist() == pytest.approx([(sky + half) / 2, tree], rel=1e-6)
    assert np.isnan(complexity.class_means[2])
    assert complexity.contours == pytest.approx((2 + 1 + 1) / 3)
    assert measured[0].complexity == pytest.approx((sky + tree) / 2, rel=1e-6)


def test_json_has_null_where_nothing_was_measured(labels: list[Path]) -> None:
    class_map = ClassMap(TAXONOMY, {7: "sky", 9: "tree"})
    splits = {"val": summarise([measure_label(labels[0], class_map, 3)], 3)}
    plain = json.loads(json.dumps(to_plain(splits, TAXONOMY.names), allow_nan=False))
    assert plain["splits"]["val"]["classes"]["water"] == {"pixel_share": 0.0, "photos": 0, "mIPQ": None}
    assert plain["splits"]["val"]["mIPQ"]["mean"] > 1
    assert plain["published_mIPQ"]["MaSS13K"] == {"mean": 383, "std": 818}
    assert set(plain["published_mIPQ"]) == set(PUBLISHED_MIPQ)


def test_unknown_ids_are_refused_with_the_file(labels: list[Path]) -> None:
    with pytest.raises(UserError, match=r"square\.png.*9 \(100 pixels\)"):
        measure_label(labels[0], ClassMap(TAXONOMY, {7: "sky"}), 3)


def half_of(number: int) -> float:
    return number / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_from_any_number_of_processes(workers: int) -> None:
    assert map_files(half_of, range(20), workers, "halving") == [number / 2 for number in range(20)]


def test_the_report_describes_every_split(dataset, tmp_path: Path, fingerprint) -> None:
    before = fingerprint(dataset.root)
    data = data_config(dataset.overrides)
    splits = describe(data, tmp_path / "report", workers=1, examples=2)
    assert fingerprint(dataset.root) == before
    assert list(splits) == ["train", "val", "all"]
    assert [split.photos for split in splits.values()] == [4, 3, 7]
    assert splits["all"].complexity.masks == sum(splits[name].complexity.masks for name in ("train", "val"))

    # mIPQ again, from the files
    class_map = ClassMap(Taxonomy.from_mapping(data["classes"]), data.get("class_map"))
    quotients = np.concatenate(
        [
            mask_complexity(class_map(np.array(Image.open(dataset.label("val", index))), ""), 7)
            for index in range(3)
        ]
    )
    assert splits["val"].complexity.mean == pytest.approx(np.nanmean(quotients))
    assert splits["val"].complexity.std == pytest.approx(np.nanstd(quotients))

    content = json.loads((tmp_path / "report" / "dataset.json").read_text())
    assert content["splits"]["all"]["masks"] == splits["all"].complexity.masks
    assert content["splits"]["val"]["mIPQ"]["mean"] == pytest.approx(splits["val"].complexity.mean, abs=1e-3)
    page = (tmp_path / "report" / "dataset.html").read_text()
    assert page.count('<div class="example">') == 2
    assert f"{splits['all'].complexity.mean:.1f}" in page
    assert "383 ± 818" in page


def test_the_report_never_goes_into_the_dataset(dataset) -> None:
    with pytest.raises(UserError, match="give --output another folder"):
        describe(data_config(dataset.overrides), dataset.root / "report", workers=1, examples=0)


def test_the_table_is_printed(dataset, tmp_path: Path, capsys) -> None:
    main([*dataset.overrides, "--output", str(tmp_path / "report"), "--workers", "1", "--examples", "0"])
    printed = capsys.readouterr().out
    assert "mIPQ" in printed
    assert "dataset.html" in printed


def test_faults_of_input_end_with_a_message(dataset, tmp_path: Path, capsys) -> None:
    dataset.label("train", 0).write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        main([*dataset.overrides, "--output", str(tmp_path / "report"), "--workers", "1"])
    assert ended.value.code == 1
    assert f"{dataset.names['train'][0]}.png" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", [["scripts/dataset_report.py"], ["-m", "scripts.dataset_report"]])
def test_both_ways_of_starting(scenes: Path, tmp_path: Path, program: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, *program, "data=mass13k", f"data.root={scenes}", "--output", str(tmp_path)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "dataset.html").is_file()

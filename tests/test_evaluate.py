"""Evaluation as its users meet it: checkpoints and label maps of other programs, their files, and faults of input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.checkpoints.files import write
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.errors import UserError
from src.evaluate import _tell_other_sizes, evaluate
from src.metrics.suite import SegmentationMetrics
from src.train import train

REPOSITORY = Path(__file__).resolve().parent.parent
QUIET = [
    "num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "+trainer.enable_progress_bar=false",
    "bootstrap.samples=100",
]


@pytest.fixture
def predictions(scenes: Path, tmp_path: Path) -> Path:
    """Predictions for the scenes' validation photos: the labels, two pixels to the right."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for path in sorted((scenes / "annotations" / "val").glob("*.png")):
        label = np.array(Image.open(path))
        label[label == 255] = 0
        Image.fromarray(np.roll(label, 2, 1)).save(folder / path.name)
    return folder


@pytest.fixture
def run(scenes: Path, predictions: Path, tmp_path: Path) -> Callable[..., float]:
    """Evaluates the predictions; later overrides win."""

    def call(*overrides: str) -> float:
        fixed = [
            f"predictions={predictions}",
            "data=mass13k",
            f"data.root={scenes}",
            f"run_dir={tmp_path / 'run'}",
        ]
        return evaluate(compose_config("evaluate", [*QUIET, *fixed, *overrides]))

    return call


def test_label_maps_of_any_program_are_scored(
    run, scenes: Path, predictions: Path, tmp_path: Path, capsys
) -> None:
    result = run()
    metrics = SegmentationMetrics(7)
    for path in sorted(predictions.iterdir()):
        pair = (path, scenes / "annotations" / "val" / path.name)
        metrics.update(*(torch.from_numpy(np.array(Image.open(file))) for file in pair))
    expected = metrics.compute()
    assert result == pytest.approx(100 * expected["mBIoU"].item())

    folder = tmp_path / "run"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["images"] == 3
    assert scores["split"] == "val"
    assert scores["predictions"] == str(predictions)
    for metric in ("IoU", "BIoU", "BF1"):
        assert scores["class"]["mean"][metric] == pytest.approx(expected[f"m{metric}"].item(), abs=1e-5)
        value, low, high = scores["intervals"]["class"]["mean"][metric]
        assert low <= value <= high
        assert value == pytest.approx(expected[f"m{metric}"].item(), abs=1e-5)
    assert np.array(scores["confusion"]).tolist() == expected["confusion"].tolist()
    assert list(scores["per_image"]) == [path.stem for path in sorted(predictions.iterdir())]
    with (folder / "images.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == list(scores["per_image"])
    assert (folder / "report.html").is_file()
    printed = capsys.readouterr().out
    assert "95 % intervals over images: mIoU" in printed
    assert "beside the paper's MaSSFormer (R50), val" in printed
    assert "this is an evaluation of 3" in printed
    assert str(folder / "report.html") in printed


def test_the_report_can_be_left_out(run, tmp_path: Path) -> None:
    run("report=null", "metrics.boundary_f1=false")
    assert not (tmp_path / "run" / "report.html").exists()
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert "BF1" not in scores["class"]["mean"]
    assert scores["settings"]["tolerance"] is None


def test_the_report_without_bf1_has_no_curve(run, tmp_path: Path) -> None:
    run("metrics.boundary_f1=false", "report.worst=1", "report.best=0", "report.details=1")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Boundary F1 by tolerance" not in page
    assert "Highest boundary IoU" not in page


def test_settings_of_the_metrics_reach_the_scores(run, tmp_path: Path) -> None:
    narrow = run("report=null")
    wide = run("report=null", "metrics.boundary_ratio=0.02", "metrics.tolerance='0.75%'")
    assert wide > narrow
    settings = json.loads((tmp_path / "run" / "scores.json").read_text())["settings"]
    assert settings == {"boundary_ratio": 0.02, "ignore_boundaries": True, "tolerance": "0.75 %"}


def test_two_evaluations_are_compared_image_by_image(run, scenes: Path, tmp_path: Path, capsys) -> None:
    run(f"run_dir={tmp_path / 'other'}", "report=null")
    perfect = tmp_path / "perfect"
    perfect.mkdir()
    for path in (scenes / "annotations" / "val").glob("*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 255, 0, label).astype(np.uint8)).save(perfect / path.name)
    capsys.readouterr()
    run(f"predictions={perfect}", f"compare={tmp_path / 'other' / 'scores.json'}")
    comparison = json.loads((tmp_path / "run" / "scores.json").read_text())["comparison"]
    assert comparison["images"] == 3
    value, low, high = comparison["difference"]["mean"]["BIoU"]
    assert 0 < low <= value <= high
    assert len(comparison["changed_most"]) == 3
    assert all(change["BIoU"] > change["other"] for change in comparison["changed_most"].values())
    assert "photos that changed most" in capsys.readouterr().out
    assert "Beside another evaluation" in (tmp_path / "run" / "report.html").read_text()


def test_what_does_not_compare_is_told_before_any_work(run, tmp_path: Path, monkeypatch) -> None:
    run(f"run_dir={tmp_path / 'other'}", "report=null")
    monkeypatch.setattr(SegmentationMetrics, "update", lambda *_, **__: pytest.fail("an image was measured"))
    compare = f"compare={tmp_path / 'other' / 'scores.json'}"
    with pytest.raises(
        UserError, match=r"measured with tolerance=1\.414 px, this evaluation with tolerance=3 px"
    ):
        run(compare, "metrics.tolerance=3")
    record = json.loads((tmp_path / "other" / "scores.json").read_text())
    record["per_image"] = {f"other_{name}": entry for name, entry in record["per_image"].items()}
    (tmp_path / "other" / "scores.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="no photo in common"):
        run(compare)


def test_other_labels_do_not_cost_the_scores(run, tmp_path: Path) -> None:
    run(f"run_dir={tmp_path / 'other'}", "report=null")
    record = json.loads((tmp_path / "other" / "scores.json").read_text())
    for entry in record["per_image"].values():
        entry["mask_complexity"] = 1e6
    (tmp_path / "other" / "scores.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="other label maps"):
        run(f"compare={tmp_path / 'other' / 'scores.json'}")
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["class"]["mean"]


def test_one_photo_without_a_label_scores_nothing_and_says_so(
    predictions: Path, tmp_path: Path, capsys
) -> None:
    name = sorted(predictions.iterdir())[0].name
    height, width = np.array(Image.open(predictions / name)).shape
    for kind, pixels in (
        ("images", np.zeros((height, width, 3))),
        ("annotations", np.full((height, width), 255)),
    ):
        (tmp_path / "data" / kind / "val").mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / kind / "val" / name)
    data = ["data=mass13k", f"data.root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    evaluate(compose_config("evaluate", [*QUIET, f"predictions={predictions}", *data]))
    printed = capsys.readouterr().out
    assert "mIoU - [-, -]" in printed
    assert "nan" not in printed
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert all(row["IoU"] is None for row in scores["class"].values())
    assert scores["per_image"][Path(name).stem]["union"] == [0] * 7
    assert "mIoU\n<b>-</b>" in (tmp_path / "run" / "report.html").read_text()


def test_missing_predictions_are_counted_and_named(run, predictions: Path, tmp_path: Path) -> None:
    files = sorted(predictions.iterdir())
    files[0].unlink()
    with pytest.raises(UserError, match=rf"1 of 3 photos have no prediction: {files[0].name}"):
        run()
    with pytest.raises(UserError, match="nowhere: no such folder"):
        run(f"predictions={tmp_path / 'nowhere'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:-2], r"the prediction is 128x94 pixels, but its label map is 128x96"),
        (lambda ids: np.where(ids == ids[0, 0], 9, ids).astype(np.uint8), r"contains 9.*classes are 0\.\.6"),
        (lambda ids: np.full_like(ids, 255), r"contains 255"),
        (lambda ids: np.stack([ids] * 3, 2), "colour|channel|grayscale"),
    ],
    ids=["size", "unknown id", "ignore", "RGB"],
)
def test_predictions_that_do_not_fit_are_named(run, predictions: Path, change, message: str) -> None:
    path = next(
        path for path in sorted(predictions.iterdir()) if np.array(Image.open(path)).shape == (96, 128)
    )
    Image.fromarray(change(np.array(Image.open(path)))).save(path)
    with pytest.raises(UserError, match=rf"(?s){path.name}.*{message}"):
        run()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=train"], "choose val or test"),
        (["predictions=null"], "either checkpoint=<file> or predictions="),
        (["checkpoint=some.ckpt"], "either checkpoint=<file> or predictions="),
        (["compare=missing.json"], "missing.json: no such file"),
        (["data.root=/no/such/folder"], "no such folder"),
        (["bootstrap.level=95"], "give a share between 0 and 1"),
        (["bootstrap.samples=0"], "at least 1"),
        (["report.worst=all"], "report.worst=all: give a whole number"),
        (["+report.show=3"], "nothing reads report.show"),
        (["report=false"], "give null for none"),
        (["bootstrap.samples=20.5"], "whole number of resamples"),
        (["seed=-1"], "seed=-1: give a whole number"),
        (["metrics.tolerance=wide"], "'wide' is no tolerance; give pixels"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_before_any_work(
    run, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_names_and_paths_are_printed_and_written_as_they_are(
    run, scenes: Path, predictions: Path, tmp_path: Path, capsys
) -> None:
    moved = tmp_path / "data [val] [/x]"
    shutil.copytree(scenes, moved)
    first = min(predictions.iterdir()).stem
    odd = os.fsdecode(b"K\xfcste")  # as in an old archive: no UTF-8
    for place in (*moved.glob("*/val"), predictions):
        for path in place.glob(first + ".*"):
            path.rename(path.with_stem(odd))
    run(f"data.root='{moved}'")
    assert str(moved) in capsys.readouterr().out
    with (tmp_path / "run/images.csv").open() as file:
        assert r"K\udcfcste" in [row["image"] for row in csv.DictReader(file)]
    assert r"K\udcfcste" in (tmp_path / "run/report.html").read_text()
    assert odd in json.loads((tmp_path / "run/scores.json").read_text())["per_image"]


def test_predictions_need_labels(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give data=<choice> too"):
        evaluate(compose_config("evaluate", [f"predictions={predictions}", f"run_dir={tmp_path}"]))


def test_a_checkpoint_and_its_predictions_score_the_same(scenes: Path, run, tmp_path: Path) -> None:
    train(
        compose_config(
            "train",
            [
                "model/size=nano",
                "model.backbone.weights=none",
                "data=mass13k",
                f"data.root={scenes}",
                "recipe.crop_size=64",
                "recipe.num_points=128",
                "recipe.samples_per_epoch=4",
                "recipe.validate_first=false",
                "recipe.steps=2",
                "recipe.val_every=2",
                "recipe.save_every=2",
                "num_workers=0",
                "trainer.accelerator=cpu",
                "trainer.devices=1",
                "callbacks.progress=null",
                "callbacks.early_look.every=1",
                "+trainer.enable_progress_bar=false",
                "logger.wandb=null",
                f"run_dir={tmp_path / 'trained'}",
            ],
        )
    )
    looks = sorted(path.name for path in (tmp_path / "trained" / "early").iterdir())
    assert looks == ["step_000001.png", "step_000002.png"]
    checkpoint = tmp_path / "trained" / "checkpoints" / "last.ckpt"
    network = evaluate(
        compose_config("evaluate", [*QUIET, f"checkpoint={checkpoint}", f"run_dir={tmp_path / 'network'}"])
    )
    folder = tmp_path / "network"
    assert (folder / "report.html").is_file()
    files = run(f"predictions={folder / 'predictions'}")
    assert files == pytest.approx(network)
    by_network, by_files = (
        json.loads((place / "scores.json").read_text()) for place in (folder, tmp_path / "run")
    )
    for part in ("class", "confusion", "per_image", "intervals"):
        assert by_network[part] == by_files[part]

    (tmp_path / "moved").symlink_to(scenes)
    moved = [f"checkpoint={checkpoint}", f"+data.root={tmp_path / 'moved'}", f"run_dir={tmp_path / 'again'}"]
    assert evaluate(compose_config("evaluate", [*QUIET, "report=null", *moved])) == pytest.approx(network)


@pytest.mark.parametrize(
    ("store", "cure"),
    [("null", r"\+data\.root=<folder> says where to"), ("/gone/store", r"\+data\.store=null")],
)
def test_data_that_has_moved_is_told(tmp_path: Path, store: str, cure: str) -> None:
    small = ["model/size=nano", "model.backbone.weights=none", "run_dir=."]
    config = to_plain(
        compose_config("train", [*small, "data=mass13k", "data.root=/gone", f"data.store={store}"])
    )
    write(tmp_path / "a.ckpt", config, build_network(config).state_dict())
    with pytest.raises(UserError, match=f"(?s)/gone.* has moved: .*{cure}"):
        evaluate(
            compose_config("evaluate", [f"checkpoint={tmp_path / 'a.ckpt'}", f"run_dir={tmp_path / 'run'}"])
        )


def test_another_size_than_the_networks_validation_is_told(caplog: pytest.LogCaptureFixture) -> None:
    enlarged = {"evaluation_limit": [960, 720], "enlarge": True}
    _tell_other_sizes(enlarged, enlarged)
    _tell_other_sizes(enlarged, {"evaluation_limit": [4096, 3072], "enlarge": False})
    assert caplog.text == ""
    _tell_other_sizes({"evaluation_limit": [4096, 3072], "enlarge": False}, enlarged)
    assert "enlarged to [960, 720]" in caplog.text


@pytest.mark.slow
def test_the_command_explains_itself(scenes: Path, predictions: Path, tmp_path: Path) -> None:
    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "src.evaluate", *arguments, f"hydra.run.dir={tmp_path / 'command'}"],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    ended = start(f"predictions={predictions}", "data=mass13k", f"data.root={scenes}")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "command" / "report.html").is_file()
    sorted(predictions.iterdir())[0].unlink()
    ended = start(f"predictions={predictions}", "data=mass13k", f"data.root={scenes}")
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("error: ")
    assert "Traceback" not in ended.stderr

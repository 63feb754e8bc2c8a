"""Synthetic scenes: what is on them, how they are written, and that writing survives interruption and company."""

import json
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.folder import DatasetError
from src.data.synthetic import dataset, draw_scene, write_synthetic_dataset
from src.errors import UserError
from src.metrics.complexity import ComplexityAccumulator
from src.photos import read_label, read_photo

NAMES = ("background", "person", "building", "tree", "ground", "sky", "water")
IDS = {name: index for index, name in enumerate(NAMES)}
SPLITS = {"train": 5, "val": 2}
SIZE = {"height": 72, "width": 96}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_scene(seed, 240, 320, IDS) for seed in range(24)]


def write(root: Path, splits: dict[str, int] = SPLITS, seed: int = 0, workers: int = 1, **size: int) -> None:
    write_synthetic_dataset(root, splits, **(size or SIZE), class_ids=IDS, seed=seed, workers=workers)


def contents(root: Path) -> dict[str, bytes]:
    """Every visible file of a folder, by its relative path."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_seed_decides_everything() -> None:
    first, again, other = (draw_scene(seed, 96, 128, IDS) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.1


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (75, 101), (64, 200)])
def test_any_size_gives_an_image_and_valid_ids(height: int, width: int) -> None:
    image, label = draw_scene(1, height, width, IDS)
    assert image.shape == (height, width, 3)
    assert label.shape == (height, width)
    assert image.dtype == label.dtype == np.uint8
    assert label.max() < len(IDS)


def test_another_size_shows_the_same_composition() -> None:
    for seed in range(3):
        (small, small_label), (large, large_label) = (
            draw_scene(seed, h, h * 4 // 3, IDS) for h in (192, 768)
        )
        reduced = cv2.resize(large, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        middle = large_label[2::4, 2::4]
        smooth = [cv2.GaussianBlur(image, (0, 0), 4).astype(float) for image in (small, reduced)]
        assert (small_label == middle).mean() > 0.9
        assert np.abs(smooth[0] - smooth[1]).mean() < 5


def test_ids_come_from_the_mapping() -> None:
    image, label = draw_scene(2, 96, 128, IDS)
    reversed_ids = {name: 6 - index for name, index in IDS.items()}
    other_image, other_label = draw_scene(2, 96, 128, reversed_ids)
    np.testing.assert_array_equal(image, other_image)
    np.testing.assert_array_equal(6 - label, other_label)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UserError, match="water"):
        draw_scene(0, 96, 128, {name: index for name, index in IDS.items() if name != "water"})
    with pytest.raises(UserError, match="40x100"):
        draw_scene(0, 100, 40, IDS)


def test_all_classes_are_frequent(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    shares = np.array([np.bincount(label.ravel(), minlength=7) / label.size for _, label in scenes])
    assert ((shares > 0.001).mean(0) >= 0.6).all()
    assert (shares.mean(0) > 0.02).all()


def test_boundaries_of_the_label_lie_on_edges_of_the_image(
    scenes: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """How sharp the edges are depends on light and things; that they lie on the label's boundaries does not."""
    contrast = []
    for image, label in scenes:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
        step = np.abs(np.diff(grey, axis=1))
        boundary = label[:, 1:] != label[:, :-1]
        contrast.append(step[boundary].mean() / step[~boundary].mean())
        for shift in (-3, -2, -1, 1, 2, 3):
            assert step[boundary].mean() > 1.4 * step[np.roll(boundary, shift, axis=1)].mean()
    assert np.mean(contrast) > 2.5


def test_colour_alone_does_not_tell_the_class(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """A table from colour to the most frequent class, fitted on half of the scenes, fails on the others."""
    votes = np.zeros((16**3, 7))
    for image, label in scenes[::2]:
        np.add.at(votes, (colour_bins(image), label.ravel()), 1)
    confusion = np.zeros((7, 7))
    for image, label in scenes[1::2]:
        np.add.at(confusion, (label.ravel(), votes.argmax(1)[colour_bins(image)]), 1)
    hits = np.diag(confusion)
    assert (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean() < 0.4


def colour_bins(image: np.ndarray) -> np.ndarray:
    red, green, blue = (image // 16).reshape(-1, 3).astype(int).T
    return (red * 16 + green) * 16 + blue


def test_masks_are_complex(scenes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    accumulator = ComplexityAccumulator(7)
    for _, label in scenes:
        accumulator.update(label)
    assert accumulator.compute().mean > 60


@pytest.mark.slow
def test_masks_are_as_complex_as_those_of_the_benchmark_at_its_size() -> None:
    accumulator = ComplexityAccumulator(7)
    for seed in range(4):
        image, label = draw_scene(seed, 3072, 4096, IDS)
        assert image.shape == (3072, 4096, 3)
        accumulator.update(label)
    assert accumulator.compute().mean >= 100


def test_files_are_in_the_layout_of_the_benchmark(tmp_path: Path) -> None:
    write(tmp_path)
    expected = {
        f"{folder}/{split}/scene_{index:05d}{suffix}"
        for folder, suffix in (("images_pad", ".jpg"), ("annotations", ".png"))
        for split, count in SPLITS.items()
        for index in range(count)
    }
    assert set(contents(tmp_path)) == expected | {"synthetic.json"}
    for path in (tmp_path / "annotations" / "train").iterdir():
        label = read_label(path)
        photo = read_photo(tmp_path / "images_pad" / "train" / f"{path.stem}.jpg")
        assert photo.shape[:2] == label.shape == ((96, 72) if path.stem == "scene_00003" else (72, 96))
        assert label.max() < 7
        with Image.open(path) as image:
            assert image.mode == "P"
            assert path.read_bytes()[24] == 8  # bits per pixel, in the header
            palette = np.array(image.getpalette()).reshape(-1, 3)
            assert palette[IDS["water"]].tolist() == [0, 255, 255]


def test_scenes_survive_the_compression(tmp_path: Path) -> None:
    write(tmp_path, {"train": 1}, height=240, width=320)
    seed = dataset._scene_seed(0, "train", 0)
    image, label = draw_scene(seed, 240, 320, IDS)
    np.testing.assert_array_equal(read_label(tmp_path / "annotations/train/scene_00000.png"), label)
    assert cv2.PSNR(image, read_photo(tmp_path / "images_pad/train/scene_00000.jpg")) > 28


def test_splits_differ_and_do_not_depend_on_each_other(tmp_path: Path) -> None:
    write(tmp_path / "a", {"train": 2, "val": 2})
    write(tmp_path / "b", {"train": 1, "val": 2})
    write(tmp_path / "c", {"train": 1, "val": 2}, seed=1)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    photos = [name for name in a if name.endswith(".jpg")]
    assert len({a[name] for name in photos}) == 4
    assert all(a[name] == b[name] for name in photos if "/val/" in name)
    assert not {c[name] for name in c if name.endswith(".jpg")} & {a[name] for name in photos}


def test_a_complete_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(dataset, "draw_scene", lambda *_: pytest.fail("drew a scene again"))
    write(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "whole")
    drawn = []

    def draw(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw_scene(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "parts")
    assert not json.loads((tmp_path / "parts" / "synthetic.json").read_bytes())["complete"]
    write(tmp_path / "parts")
    assert len(drawn) == 4 + sum(SPLITS.values()) - 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_scenes_of_other_parameters_or_versions_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "old")
    before = contents(tmp_path / "old")
    with pytest.raises(UserError, match=r"height 72, not 80.*data\.root=<new folder>"):
        write(tmp_path / "old", {"train": 2}, height=80, width=96)
    monkeypatch.setattr(dataset, "GENERATOR_VERSION", dataset.GENERATOR_VERSION + 1)
    with pytest.raises(UserError, match="generator"):
        write(tmp_path / "old")
    assert contents(tmp_path / "old") == before


@pytest.mark.parametrize(
    "name", ["images_pad/train/holiday.jpg", "README.md", "images/train/scene_00000.jpg"]
)
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    with pytest.raises(DatasetError, match=path.name):
        write(tmp_path)
    assert contents(tmp_path) == {name: b"precious"}


def test_a_damaged_manifest_is_reported(tmp_path: Path) -> None:
    (tmp_path / "synthetic.json").write_text("{")
    with pytest.raises(DatasetError, match=r"synthetic\.json"):
        write(tmp_path)


@pytest.mark.parametrize("splits", [{}, {"train": 0}])
def test_an_empty_dataset_is_refused(tmp_path: Path, splits: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"data\.synthetic\.splits"):
        write(tmp_path, splits)


def test_processes_that_start_together_write_one_dataset(tmp_path: Path) -> None:
    write(tmp_path / "alone", workers=2)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write, args=(tmp_path / "together",)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert not list((tmp_path / "together").rglob("*.tmp"))

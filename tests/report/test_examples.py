"""Which photos and which windows a report shows, and what its pictures hold."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from src.data.classes import ClassMap, Taxonomy
from src.data.folder import Pair
from src.pictures import WRONG, Window
from src.report.embed import jpeg_uri, label_uri
from src.report.examples import boundary_errors, busiest_windows, example, extremes, photo_and_label
from src.report.record import ImageRecords

COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 50]], np.uint8)


def decoded(uri: str) -> Image.Image:
    kind, content = uri.split(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{picture.format.lower()}"
    return picture


def with_biou(*values: float) -> ImageRecords:
    biou = np.array(values)
    union = np.where(np.isnan(biou), 0, 1000)[:, None]
    hits = np.rint(np.nan_to_num(biou) * 1000).astype(int)[:, None]
    names = tuple(f"photo{index}" for index in range(len(values)))
    return ImageRecords(names, hits, union, hits, union, None, np.ones(len(values)))


def test_the_worst_and_the_best_are_different_photos() -> None:
    images = with_biou(0.5, 0.1, np.nan, 0.9, 0.3)
    assert extremes(images, 2, 2) == ([1, 4], [3, 0])
    assert extremes(images, 3, 3) == ([1, 4, 0], [3])  # none is shown twice
    assert extremes(images, 9, 9) == ([1, 4, 0, 3], [])
    assert extremes(images, 0, 1) == ([], [3])


def test_boundary_errors_are_what_boundary_iou_misses() -> None:
    generator = np.random.default_rng(0)
    prediction, label = generator.integers(0, 3, (2, 5, 6)).repeat(7, 1).repeat(7, 2).astype(np.uint8)
    label[:7, :7] = 255
    expected = np.zeros(label.shape, bool)
    ignored = label == 255
    for index in range(3):
        edges = []
        for labels in (prediction, label):
            mask = (labels == index) | ignored
            edges.append(mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=0))
        expected |= edges[0] ^ edges[1]
    expected &= ~ignored
    assert (boundary_errors(prediction, label, 0.001) == expected).all()
    assert expected.any()
    assert not boundary_errors(label, label, 0.001).any()


def test_windows_hold_the_most_marks_and_do_not_overlap() -> None:
    marks = np.zeros((60, 80), np.uint8)
    marks[10:14, 60:64] = 1  # 16
    marks[40:43, 10:13] = 1  # 9
    marks[55, 75] = 1
    windows = busiest_windows(marks, (16, 16), 5)
    assert [int(window.cut(marks).sum()) for window in windows] == [16, 9, 1]
    taken = np.zeros_like(marks)
    for window in windows:
        window.cut(taken)[:] += 1
    assert taken.max() == 1
    assert busiest_windows(np.zeros((20, 20), np.uint8), (8, 8), 2) == []
    assert busiest_windows(np.ones((8, 8), np.uint8), (8, 8), 3) == [Window(0, 0, 8, 8)]


def test_windows_have_their_marks_in_the_middle() -> None:
    marks = np.zeros((60, 80), np.uint8)
    marks[30:34, 40:42] = 1
    assert busiest_windows(marks, (16, 20), 1) == [Window(24, 31, 16, 20)]
    corner = np.zeros((60, 80), np.uint8)
    corner[-1, -1] = corner[0, 0] = 1
    assert busiest_windows(corner, (16, 20), 2) == [Window(0, 0, 16, 20), Window(44, 60, 16, 20)]


def test_a_label_map_becomes_a_picture_of_its_colours() -> None:
    label = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    picture = decoded(label_uri(label, COLOURS))
    assert (np.array(picture) == label).all()
    shown = np.array(picture.convert("RGBA"))
    assert (shown[0, :, :3] == COLOURS).all()
    assert shown[1, 1, 3] == 0  # ignored is transparent
    assert (shown[..., 3] == 255).sum() == 5


def test_a_photo_stays_close_to_itself() -> None:
    photo = ndimage.gaussian_filter(np.random.default_rng(0).normal(128, 400, (40, 60, 3)), (5, 5, 0))
    photo = photo.clip(0, 255).astype(np.uint8)
    for quality in (82, 92):
        assert np.abs(np.array(decoded(jpeg_uri(photo, quality))).astype(int) - photo).mean() < 4


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photo, label and prediction of 900 x 600 pixels, wrong in one place and ignored in another."""
    label = np.zeros((600, 900), np.uint8)
    label[:, 450:] = 1
    label[:50, :50] = 255
    prediction = label.copy()
    prediction[prediction == 255] = 0
    prediction[300:340, 430:450] = 1
    photo = np.full((600, 900, 3), 90, np.uint8)
    return photo, label, prediction


def test_an_example_shows_the_photo_whole_and_where_it_fails(scene) -> None:
    photo, label, prediction = scene
    shown = example("a", "facts", photo, label, prediction, COLOURS, ratio=0.001, details=2)
    assert (shown.name, shown.facts) == ("a", "facts")
    whole, detail = shown.rows  # one window holds every error
    assert [cell.heading for cell in whole.cells] == ["Photo", "Label", "Prediction", "Errors"]
    assert "900 x 600" in whole.note
    assert whole.frame is None
    # the photo shows where the detail is, in the colour that the detail names
    framed = np.array(decoded(whole.cells[0].uri).convert("RGB")).astype(int)
    close = (np.abs(framed - detail.frame).sum(2) < 120).nonzero()
    assert len(close[0]) > 200
    scale = 640 / 900
    assert [close[0].min(), close[0].max()] == pytest.approx([220 * scale, 420 * scale], abs=5)
    assert [close[1].min(), close[1].max()] == pytest.approx([340 * scale, 540 * scale], abs=5)
    pictures = [decoded(cell.uri) for cell in detail.cells]
    assert {picture.size for picture in pictures} == {(200, 200)}
    errors = np.array(pictures[3].convert("RGB")).astype(int)
    wrong = np.abs(errors - WRONG).sum(2) < 60
    assert wrong.sum() == pytest.approx(40 * 20, rel=0.05)
    assert {decoded(cell.uri).size for cell in whole.cells} == {(640, 427)}


def test_a_perfect_prediction_has_no_details(scene) -> None:
    photo, label, _ = scene
    prediction = np.where(label == 255, 0, label).astype(np.uint8)
    label = prediction.copy()
    shown = example("a", "", photo, label, prediction, COLOURS, ratio=0.001, details=2)
    assert len(shown.rows) == 1


def test_photos_of_another_size_than_their_label_are_brought_to_it(scene) -> None:
    photo, label, prediction = scene
    shown = example("a", "", photo[::2, ::2], label, prediction, COLOURS, ratio=0.001, details=1)
    assert {decoded(cell.uri).size for cell in shown.rows[1].cells} == {(200, 200)}


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3)])
def test_tiny_photos_do_no_harm(size: tuple[int, int]) -> None:
    label = np.zeros(size, np.uint8)
    label.flat[-1] = 1
    shown = example(
        "a", "", np.zeros((*size, 3), np.uint8), label, 1 - label, COLOURS, ratio=0.001, details=2
    )
    assert 1 <= len(shown.rows) <= 3


def test_a_dataset_shows_photos_and_labels(tmp_path, scene) -> None:
    photo, label, _ = scene
    pair = Pair("a", tmp_path / "a.jpg", tmp_path / "a.png")
    Image.fromarray(photo).save(pair.image)
    Image.fromarray(label).save(pair.label)
    classes = {"sky": [0, 0, 255], "tree": [0, 255, 0]}
    taxonomy = Taxonomy.from_mapping(classes)
    shown = photo_and_label(pair, ClassMap(taxonomy), taxonomy.colours, "facts")
    whole, detail = shown.rows
    assert [cell.heading for cell in whole.cells] == ["Photo", "Label"]
    assert decoded(detail.cells[1].uri).size == (200, 200)
    assert "column" in detail.note
    assert set(np.array(decoded(detail.cells[1].uri)).ravel()) == {0, 1}  # the window lies on the boundary

"""Overlays, error maps, windows, panels and the files they become."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from src.pictures import (
    IGNORED,
    WRONG,
    Window,
    boundary_rich_window,
    error_map,
    index_png,
    overlay,
    panel,
    write_image,
)
from src.sheet import compose_sheet

IGNORE = 255
COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 50]], np.uint8)
NAMES = ["background", "person", "tree"]


@pytest.fixture
def scene():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    label = np.zeros((60, 90), np.uint8)
    label[20:50, 30:60] = 1
    label[:5] = IGNORE
    prediction = np.roll(np.where(label == IGNORE, 0, label), 2, axis=1).astype(np.uint8)
    return image, label, prediction


def test_overlay_blends_classes_and_spares_ignored_pixels(scene):
    image, label, _ = scene
    tinted = overlay(image, label, COLOURS, alpha=0.25)
    expected = 0.75 * image + 0.25 * COLOURS[np.where(label == IGNORE, 0, label)]
    valid = label != IGNORE
    np.testing.assert_allclose(tinted[valid], expected[valid], atol=1)
    np.testing.assert_array_equal(tinted[~valid], image[~valid])
    np.testing.assert_array_equal(overlay(image, label, COLOURS, alpha=0), image)


def test_error_map_marks_exactly_the_wrong_pixels(scene):
    image, label, prediction = scene
    before = image.copy()
    marked = error_map(image, prediction, label)
    ignored = label == IGNORE
    wrong = (prediction != label) & ~ignored
    np.testing.assert_array_equal((marked == WRONG).all(-1), wrong)
    assert (marked[ignored] == IGNORED).all()
    right = marked[~wrong & ~ignored].astype(int)
    assert (right == right[:, :1]).all()  # grey
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[~wrong & ~ignored]
    assert np.corrcoef(right[:, 0], grey)[0, 1] > 0.99
    np.testing.assert_array_equal(image, before)


def test_sizes_that_differ_are_an_error(scene):
    image, label, _ = scene
    with pytest.raises(ValueError, match="one size"):
        overlay(image, label[1:], COLOURS)
    with pytest.raises(ValueError, match="one size"):
        error_map(image, label.T, label)


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 255])
    ),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
@settings(deadline=None, max_examples=60)
def test_window_holds_the_most_boundary_pixels(label, size):
    height, width = label.shape
    boundary = np.zeros(label.shape, bool)
    for y in range(height):
        for x in range(width):
            beside = [label[v, u] for v, u in ((y, x + 1), (y + 1, x)) if v < height and u < width]
            boundary[y, x] = label[y, x] != IGNORE and any(o not in (label[y, x], IGNORE) for o in beside)
    window = boundary_rich_window(label, size)
    assert (window.height, window.width) == (min(size[0], height), min(size[1], width))
    assert window.cut(label).shape == (window.height, window.width)
    windows = np.lib.stride_tricks.sliding_window_view(boundary, (window.height, window.width))
    assert window.cut(boundary).sum() == windows.sum((2, 3)).max()


def test_panel_shows_both_rows_and_the_legend(scene):
    image, label, prediction = scene
    zoom = Window(18, 28, 10, 15)
    composed = panel(image, label, prediction, COLOURS, NAMES, title="scene", cell_width=120, zoom=zoom)
    assert composed.dtype == np.uint8
    assert composed.shape[1] > 4 * 120
    assert composed.shape[0] > 2 * 80

    def has(colour):
        return (composed == colour).all(-1)

    # The label's square has 30x30 pixels, which a cell shows 4/3 wide; in the detail, all but two edges are it.
    assert has(COLOURS[1]).sum() > 2 * 40 * 40
    assert has(WRONG).sum() > 100
    assert has(IGNORED).sum() > 100
    assert not has(COLOURS[2]).any()  # a class that does not occur is not in the legend either


def test_panel_takes_a_photo_of_another_size_and_tiny_maps(scene):
    image, label, prediction = scene
    small = cv2.resize(image, (45, 30))
    expected = panel(image, label, prediction, COLOURS, NAMES, cell_width=90)
    assert panel(small, label, prediction, COLOURS, NAMES, cell_width=90).shape == expected.shape
    one = np.zeros((1, 1), np.uint8)
    panel(np.zeros((1, 1, 3), np.uint8), one, one, COLOURS, NAMES, cell_width=60)


def test_legend_wraps_to_the_page():
    picture = np.zeros((20, 100, 3), np.uint8)
    legend = [(f"class number {index}", (index, 0, 0)) for index in range(40)]
    short, long = (compose_sheet([[picture]], ["one"], entries) for entries in (legend[:1], legend))
    assert short.shape[1] == long.shape[1]
    assert long.shape[0] > short.shape[0] + 100
    for _, colour in legend:
        assert (long == colour).all(-1).any()


def test_index_png_keeps_the_ids(tmp_path, scene):
    label = scene[1]
    path = tmp_path / "deep" / "label.png"
    index_png(path, label, COLOURS)
    with Image.open(path) as file:
        assert file.mode == "P"
        np.testing.assert_array_equal(np.asarray(file), label)
        shown = np.asarray(file.convert("RGB"))
    assert path.read_bytes()[24:26] == b"\x08\x03"  # 8 bits, palette
    np.testing.assert_array_equal(shown[label == 1], np.broadcast_to(COLOURS[1], ((label == 1).sum(), 3)))
    assert (shown[label == IGNORE] == 255).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_pictures_survive_their_files(tmp_path, name):
    image = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8), (0, 0), 4
    )
    write_image(tmp_path / name, image)
    with Image.open(tmp_path / name) as file:
        np.testing.assert_allclose(np.asarray(file).astype(int), image, atol=0 if name == "a.png" else 6)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_unknown_suffixes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.bmp.*\.png or \.jpg"):
        write_image(tmp_path / "a.bmp", np.zeros((2, 2, 3), np.uint8))

"""Photos decoded down to a window's lowest row, against whole ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data import partial_jpeg
from src.data.partial_jpeg import read_window
from src.data.source import Window
from src.photos import PhotoError, photo_header, read_photo


def picture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def write(
    path: Path, pixels: np.ndarray, mode: str, subsampling: int, orientation: int, **options: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).convert(mode).save(
        path, quality=90, exif=exif, subsampling=-1 if mode == "L" else subsampling, **options
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_windows_equal_those_of_whole_photos(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / data.draw(st.sampled_from(["a.jpg", "a.jpg", "a.jpg", "a.png"]))
    pixels = picture(data.draw(st.integers(1, 150)), data.draw(st.integers(1, 120)))
    mode, subsampling = data.draw(st.sampled_from(["RGB", "RGB", "L"])), data.draw(st.integers(0, 2))
    progressive = {"progressive": data.draw(st.booleans())} if path.suffix == ".jpg" else {}
    write(path, pixels, mode, subsampling, data.draw(st.integers(1, 8)), **progressive)
    whole = read_photo(path)
    height, width = whole.shape[:2]
    for _ in range(6):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        window = Window(
            top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
        )
        np.testing.assert_array_equal(read_window(path, window, *photo_header(path)), whole[window.slices])


def test_rows_below_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jpg", picture(320, 100), "RGB", 2, 1)
    monkeypatch.setattr(partial_jpeg, "read_photo", lambda _: pytest.fail("decoded whole"))
    assert read_window(tmp_path / "a.jpg", Window(20, 30, 40, 50), (320, 100), 1).shape == (40, 50, 3)


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_photos_are_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.jpg"
    write(path, picture(320, 100), "RGB", 2, 1)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(PhotoError, match=r"a\.jpg: the file is truncated"):
        read_window(path, Window(0, 0, 30, 100), (320, 100), 1)


def test_damage_above_the_lowest_row_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    content = bytearray(simplejpeg.encode_jpeg(picture(320, 100), 90, "RGB", "420"))
    middle = content.index(b"\xff\xda") + 400
    content[middle : middle + 2] = b"\xff\xd9"
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=r"a\.jpg: the file is truncated or damaged"):
        read_window(path, Window(0, 0, 200, 100), (320, 100), 1)

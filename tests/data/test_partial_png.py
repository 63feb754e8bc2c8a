"""Label maps decoded down to a window's lowest row, against whole ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data.partial_png import PartialLabel
from src.data.source import Window
from src.photos import PhotoError, read_label


def regions(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    return np.asarray(cv2.blur(noise, (9, 9)) // 32, np.uint8)


def write(path: Path, label: np.ndarray, kind: str) -> None:
    if kind == "opencv":  # gray, lines coded as differences
        cv2.imwrite(str(path), label)
    elif kind == "gray":
        Image.fromarray(label).save(path)
    else:
        image = Image.fromarray(label, "P") if kind == "palette" else Image.fromarray(label % 4, "P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
        image.save(path, bits=8 if kind == "palette" else 2)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_windows_equal_those_of_whole_label_maps(tmp_path: Path, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 600)), data.draw(st.integers(1, 60))
    kind = data.draw(st.sampled_from(["opencv", "gray", "palette", "two bits"]))
    path = tmp_path / "a.png"
    write(path, regions(height, width), kind)
    whole = read_label(path)
    label = PartialLabel(path)
    assert label.size == whole.shape
    for _ in range(3):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        window = Window(
            top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
        )
        np.testing.assert_array_equal(label.read(window), whole[window.slices])


@pytest.mark.parametrize("kind", ["palette", "opencv"])
def test_damage_is_noticed_also_below_the_window(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    write(path, regions(400, 300), kind)
    content = path.read_bytes()
    for position in (len(content) * 3 // 4, len(content) - 14, 18):
        damaged = bytearray(content)
        damaged[position] ^= 16
        path.write_bytes(damaged)
        with pytest.raises(
            PhotoError, match=r"a\.png: the file is truncated or damaged \(the checksum of chunk"
        ):
            PartialLabel(path).read(Window(0, 0, 5, 5))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_label_maps_are_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.png"
    write(path, regions(400, 300), "palette")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(PhotoError, match=r"a\.png: the file is truncated or damaged"):
        PartialLabel(path).read(Window(0, 0, 5, 5))

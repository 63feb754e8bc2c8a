"""PNGs written row by row read back as they were."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from src.inference.results.png import PngWriter

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("kind", "channels"), [("gray", 0), ("palette", 0), ("rgb", 3), ("rgba", 4)])
@pytest.mark.parametrize("step", [1, 7, 50])
def test_round_trip(kind: str, channels: int, step: int, tmp_path: Path) -> None:
    shape = (50, 33, channels) if channels else (50, 33)
    pixels = RNG.integers(0, 7, shape, dtype=np.uint8)
    palette = [[10 * i, i, 255 - i] for i in range(7)]
    with PngWriter(tmp_path / "new" / "x.png", 33, 50, kind, palette=palette) as writer:
        for start in range(0, 50, step):
            writer.write(pixels[start : start + step])
    with Image.open(tmp_path / "new" / "x.png") as image:
        image.verify()
    with Image.open(tmp_path / "new" / "x.png") as image:
        assert np.array_equal(np.asarray(image), pixels)
        if kind == "palette":
            assert image.getpalette()[:6] == [0, 0, 255, 10, 1, 254]


def test_sixteen_bits(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 2**16, (20, 9), dtype=np.uint16)
    with PngWriter(tmp_path / "x.png", 9, 20, bits=16) as writer:
        writer.write(pixels[:3])
        writer.write(pixels[3:])
    assert np.array_equal(cv2.imread(str(tmp_path / "x.png"), cv2.IMREAD_UNCHANGED), pixels)


def test_nothing_remains_of_an_unfinished_file(tmp_path: Path) -> None:
    def interrupted() -> None:
        with PngWriter(tmp_path / "x.png", 4, 4) as writer:
            writer.write(np.zeros((2, 4), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ValueError, match="2 of 4 rows"), PngWriter(tmp_path / "x.png", 4, 4) as writer:
        writer.write(np.zeros((2, 4), np.uint8))
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_nothing_remains_when_the_disk_is_full(tmp_path: Path) -> None:
    writer = PngWriter(tmp_path / "x.png", 64, 64)
    writer._file.close()
    writer._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(OSError, match="No space"), writer:
        writer.write(np.zeros((64, 64), np.uint8))
    assert not any(tmp_path.iterdir())


def test_colour_profiles_are_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with PngWriter(tmp_path / "x.png", 4, 4, "rgba", profile=profile) as writer:
        writer.write(np.zeros((4, 4, 4), np.uint8))
    with Image.open(tmp_path / "x.png") as image:
        assert image.info["icc_profile"] == profile


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"), PngWriter(tmp_path / "x.png", 4, 4) as writer:
        writer.write(np.zeros((5, 4), np.uint8))

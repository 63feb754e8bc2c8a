"""Photos that stay in memory and photos that are read from disk."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from src.inference.large_photos import PhotoInMemory, PhotoOnDisk, open_photo
from src.photos import PhotoError


@pytest.mark.parametrize(("room", "kind"), [(0, PhotoInMemory), (-1, PhotoOnDisk)])
def test_the_size_decides_where_a_photo_lies(tmp_path: Path, room: int, kind: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), pixels[..., ::-1])
    photo = open_photo(tmp_path / "photo.png", pixels.nbytes + room)
    assert type(photo) is kind
    assert photo.size == (30, 20)
    for start, stop in ((0, 30), (7, 19), (2, 3)):
        np.testing.assert_array_equal(photo.rows(start, stop), pixels[start:stop])


def test_a_photo_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"nowhere\.png: no such file"):
        open_photo(tmp_path / "nowhere.png", 2**30)

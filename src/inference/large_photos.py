"""Photos read in rows, from memory or from a scratch file on disk.

H W photo height and width
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from src.photos import PhotoError, read_photo

_REDUCED_ROWS = 64  # made at a time


class PhotoRows(Protocol):
    """A photo of which some rows are in memory.

    Attributes:
        size: H and W, pixels.
    """

    size: tuple[int, int]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """(stop - start, W, 3) uint8 RGB."""


class PhotoInMemory:
    """A photo that is an array (H, W, 3)."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.size = (pixels.shape[0], pixels.shape[1])

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """(stop - start, W, 3) uint8 RGB."""
        return self._pixels[start:stop]


class PhotoOnDisk:
    """A photo in an unnamed scratch file in the system's temporary folder, gone with the object or the process.

    Raises:
        OSError: the folder has no room for 3 H W bytes; the environment variable TMPDIR names another.
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.size = (pixels.shape[0], pixels.shape[1])
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the object)
        self._file.write(np.ascontiguousarray(pixels).data)

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """(stop - start, W, 3) uint8 RGB."""
        width = self.size[1]
        self._file.seek(start * width * 3)
        rows = np.empty((stop - start, width, 3), np.uint8)
        self._file.readinto(rows.data)
        return rows


def open_photo(path: Path, memory: int) -> PhotoRows:
    """Decode a photo; it stays in memory if it takes no more than ``memory`` bytes.

    Decoding itself needs the whole photo in memory, before anything else does.

    Raises:
        PhotoError: the file is not there or cannot be read.
    """
    if not path.is_file():
        raise PhotoError(f"{path}: no such file")
    pixels = read_photo(path)
    return PhotoInMemory(pixels) if pixels.nbytes <= memory else PhotoOnDisk(pixels)


def reduced(photo: PhotoRows, factor: int) -> NDArray[np.uint8]:
    """The photo, smaller by a whole factor: means of factor x factor pixels; (ceil(H / f), ceil(W / f), 3)."""
    height, width = photo.size
    if factor == 1:
        return photo.rows(0, height)
    columns = -(-width // factor)
    bands = []
    for start in range(0, height, _REDUCED_ROWS * factor):
        rows = photo.rows(start, min(start + _REDUCED_ROWS * factor, height))
        # blocks at the lower and right side are completed with their last pixels
        padding = ((0, -len(rows) % factor), (0, columns * factor - width), (0, 0))
        rows = np.pad(rows, padding, mode="edge")
        bands.append(cv2.resize(rows, (columns, len(rows) // factor), interpolation=cv2.INTER_AREA))
    return np.concatenate(bands).astype(np.uint8, copy=False)

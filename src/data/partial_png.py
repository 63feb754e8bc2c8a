"""Decoding a label map's PNG down to the lowest row that was asked for.

A PNG is coded row by row, so a header with a smaller height makes the decoder stop early; see
``src.data.partial_jpeg`` for photos.

    H, W  height and width of the label map
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng
from zlib_ng.zlib_ng import crc32

from src.data.source import Window
from src.photos import DAMAGED, damaged, label_bytes, open_image

_HEADER = slice(
    12, 29
)  # of the file: "IHDR", width, height, and five bytes more; its checksum comes behind it
_STRIP = 256  # rows copied at once; what Pillow copies on the way then stays in the processor's cache


class PartialLabel:
    """Windows of a label map.

    Args:
        path: of the file, see ``read_label`` for what is accepted.

    Raises:
        PhotoError: the file is no label map, cut off, or its checksums are wrong.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = label_bytes(path)
        try:
            self.size: tuple[int, int] = struct.unpack_from(">II", self._data, 16)[::-1]
            self._coded = _coded_parts(self._data)
        except (ValueError, struct.error) as error:
            raise damaged(path, error) from error
        self._decoded: NDArray[np.uint8] | None = None

    def read(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 ids under a window, as cut out of ``read_label``.

        Raises:
            PhotoError: the label map is damaged, as far as it was decoded.
        """
        return self._down_to(window.top + window.height)[window.slices].copy()

    def _down_to(self, bottom: int) -> NDArray[np.uint8]:
        if self._decoded is None or len(self._decoded) < bottom:
            interlaced = self._data[28] != 0  # then rows come in another order
            whole = interlaced or self._decoded is not None  # a second time is the last
            rows = self.size[0] if whole else bottom
            plain = None if interlaced else self._unfiltered(rows)
            self._decoded = self._by_pillow(rows) if plain is None else plain
        return self._decoded

    def _unfiltered(self, rows: int) -> NDArray[np.uint8] | None:
        """The upper rows, if they are bytes that are only compressed, as in most PNGs with a palette."""
        width = self.size[1]
        if self._data[24] != 8:
            return None
        try:
            coded = zlib_ng.decompressobj().decompress(b"".join(self._coded), rows * (width + 1))
        except zlib_ng.error as error:  # type: ignore[misc]
            raise damaged(self._path, error) from error
        if len(coded) < rows * (width + 1):
            raise damaged(self._path, ValueError("its pixels are cut off"))
        lines = np.frombuffer(coded, np.uint8).reshape(rows, width + 1)
        return None if lines[:, 0].any() else lines[:, 1:]

    def _by_pillow(self, rows: int) -> NDArray[np.uint8]:
        data = bytearray(self._data)
        struct.pack_into(">I", data, 20, rows)
        struct.pack_into(">I", data, _HEADER.stop, crc32(data[_HEADER]))
        ids = np.empty((rows, self.size[1]), dtype=np.uint8)
        try:
            image = open_image(self._path, bytes(data))
            for top in range(0, rows, _STRIP):
                bottom = min(top + _STRIP, rows)
                ids[top:bottom] = np.asarray(image.crop((0, top, self.size[1], bottom)))
        except DAMAGED as error:
            raise damaged(self._path, error) from error
        return ids


def _coded_parts(data: bytes) -> list[memoryview]:
    """The compressed pixels.

    Every checksum is compared, so damage is noticed below the rows that are decoded too; raises ValueError.
    """
    position, kind, parts = 8, b"", []
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        body = memoryview(data)[position + 8 : position + 8 + length]
        (expected,) = struct.unpack_from(">I", data, position + 8 + length)
        if crc32(body, crc32(kind)) != expected:
            raise ValueError(f"the checksum of chunk {kind.decode('latin-1')} is wrong")
        if kind == b"IDAT":
            parts.append(body)
        position += 12 + length
    return parts

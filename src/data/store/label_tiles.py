"""Label maps in compressed tiles, of which a window decodes only those it touches.

H, W  height and width of the upright label map
"""

from __future__ import annotations

import numpy as np
import zstandard
from numpy.typing import NDArray

from src.data.source import Window
from src.data.store.restart_jpeg import Read

TILE = 256
_LEVEL = 9


class LabelError(ValueError):
    """A damaged tile."""


def encode_tiles(label: NDArray[np.uint8]) -> list[bytes]:
    """Compress a (H, W) uint8 label map, tile by tile in reading order; each tile carries a checksum."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return [
        compressor.compress(label[top : top + TILE, left : left + TILE].tobytes())
        for top in range(0, label.shape[0], TILE)
        for left in range(0, label.shape[1], TILE)
    ]


class LabelTiles:
    """Decodes windows of a label map; tiles stay decoded as long as this object lives.

    Args:
        read: gives bytes of the file.
        offset: position of the first tile.
        lengths: bytes of each tile, in reading order.
        size: (H, W).
    """

    def __init__(self, read: Read, offset: int, lengths: list[int], size: tuple[int, int]) -> None:
        self._read = read
        self._size = size
        self._columns = -(-size[1] // TILE)
        self._starts = np.cumsum([offset, *lengths]).tolist()
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self._decompressor = zstandard.ZstdDecompressor()

    def decode(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 ids under a window.

        Raises:
            LabelError: a tile is damaged.
        """
        bottom, right = window.top + window.height, window.left + window.width
        ids = np.empty((window.height, window.width), dtype=np.uint8)
        for row in range(window.top // TILE, -(-bottom // TILE)):
            top = row * TILE
            self._load(row, window.left // TILE, -(-right // TILE))
            for column in range(window.left // TILE, -(-right // TILE)):
                left = column * TILE
                tile = self._decoded[row * self._columns + column]
                rows = slice(max(window.top, top), min(bottom, top + TILE))
                columns = slice(max(window.left, left), min(right, left + TILE))
                ids[
                    rows.start - window.top : rows.stop - window.top,
                    columns.start - window.left : columns.stop - window.left,
                ] = tile[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return ids

    def _load(self, row: int, first: int, last: int) -> None:
        """Decode the missing tiles of a row, with one read."""
        missing = [
            index
            for index in range(row * self._columns + first, row * self._columns + last)
            if index not in self._decoded
        ]
        if not missing:
            return
        begin = self._starts[missing[0]]
        data = self._read(begin, self._starts[missing[-1] + 1] - begin)
        height = min(TILE, self._size[0] - row * TILE)
        for index in missing:
            width = min(TILE, self._size[1] - index % self._columns * TILE)
            compressed = data[self._starts[index] - begin : self._starts[index + 1] - begin]
            try:
                tile = np.frombuffer(
                    self._decompressor.decompress(compressed, max_output_size=height * width), np.uint8
                )
                self._decoded[index] = tile.reshape(height, width)
            except (zstandard.ZstdError, ValueError) as error:
                raise LabelError(f"label tile {index} is damaged ({error})") from error

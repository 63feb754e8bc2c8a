"""Label maps in compressed tiles, of which a window decodes only those it touches.

H, W  height and width of the upright label map
"""

from __future__ import annotations

from itertools import pairwise

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


def tile_count(size: tuple[int, int]) -> int:
    """Tiles of a (H, W) label map."""
    return -(-size[0] // TILE) * -(-size[1] // TILE)


class LabelTiles:
    """Decodes windows of a label map; their tiles stay decoded as long as this object lives, as crops look twice.

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
        if (window.height, window.width) == self._size:
            return self._whole()
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

    def _whole(self) -> NDArray[np.uint8]:
        """All ids. Nobody looks at them twice, and keeping the tiles takes more time than decoding them."""
        ids = np.empty(self._size, dtype=np.uint8)
        begin = self._starts[0]
        data = memoryview(self._read(begin, self._starts[-1] - begin))
        for number, (start, stop) in enumerate(pairwise(self._starts)):
            row, column = divmod(number, self._columns)
            place = ids[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            place[:] = self._decompress(number, data[start - begin : stop - begin], place.shape)
        return ids

    def _load(self, row: int, first: int, last: int) -> None:
        """Decode the missing tiles of a row, with one read."""
        numbers = range(row * self._columns + first, row * self._columns + last)
        missing = [number for number in numbers if number not in self._decoded]
        if not missing:
            return
        begin = self._starts[missing[0]]
        data = self._read(begin, self._starts[missing[-1] + 1] - begin)
        height = min(TILE, self._size[0] - row * TILE)
        for number in missing:
            width = min(TILE, self._size[1] - number % self._columns * TILE)
            compressed = data[self._starts[number] - begin : self._starts[number + 1] - begin]
            self._decoded[number] = self._decompress(number, compressed, (height, width))

    def _decompress(
        self, number: int, compressed: bytes | memoryview, shape: tuple[int, int]
    ) -> NDArray[np.uint8]:
        try:
            if zstandard.get_frame_parameters(compressed).content_size != shape[0] * shape[1]:
                raise ValueError(f"it does not hold {shape[1]}x{shape[0]} ids")
            ids = self._decompressor.decompress(compressed, max_output_size=shape[0] * shape[1])
            return np.frombuffer(ids, np.uint8).reshape(shape)
        except (zstandard.ZstdError, ValueError) as error:
            raise LabelError(f"label tile {number} is damaged ({error})") from error

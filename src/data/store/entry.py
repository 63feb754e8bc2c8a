"""One photo with its label map in one file.

An entry is an ordinary JPEG, which any viewer opens, with more behind its end:

    JPEG | label tiles | tables | directory | footer

so that it is either whole or absent, and a window of it takes four short reads. docs/store.md has the details.

    H, W  size of the upright photo and its label map
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from src.data.preview import preview_blocks
from src.data.source import Window
from src.data.store.label_tiles import LabelError, LabelTiles, encode_tiles, tile_count
from src.data.store.restart_jpeg import (
    JpegError,
    Read,
    RestartJpeg,
    check,
    index_segments,
    parse_frame,
    running_checks,
)
from src.errors import UserError
from src.photos import upright

FORMAT_VERSION = 2
SUFFIX = ".jpg"

_MAGIC = b"MaSSentr"
_CURE = "Delete the file and run src.prepare again: it makes the missing entries."
_FOOTER = struct.Struct("<8sHHI")  # magic, version, check of the directory, its length in bytes
_TAIL = 1 << 17  # bytes read at once from the end; directory and tables nearly always fit


class StoreError(UserError):
    """A store or an entry of it cannot be used; the message names it and the cure."""


def check_version(version: int, what: str) -> None:
    """Refuse any format but this program's.

    Raises:
        StoreError: with both versions and the cure; ``what`` begins the message.
    """
    if version != FORMAT_VERSION:
        update = "Update the program, or" if version > FORMAT_VERSION else "Delete the store and"
        raise StoreError(
            f"{what} format {version}; this program reads format {FORMAT_VERSION}. "
            f"{update} make the store again with src.prepare."
        )


class EntryInfo(NamedTuple):
    """What an entry says about itself.

    Attributes:
        size: (H, W) of the upright photo.
        orientation: EXIF orientation of the pixels in the JPEG, 1 to 8.
        encoding: "lossless" or how the photo was encoded.
        source: of "image" and "label": file name, bytes, modification time and SHA-256 of the files it was made of.
        payload_sha256: of everything in front of the directory.
        payload_bytes: length of that.
    """

    size: tuple[int, int]
    orientation: int
    encoding: str
    source: Mapping[str, Any]
    payload_sha256: str
    payload_bytes: int


def pack_entry(
    jpeg: bytes, orientation: int, label: NDArray[np.uint8], encoding: str, source: Mapping[str, Any]
) -> bytes:
    """All bytes of an entry.

    Args:
        jpeg: baseline with restart markers.
        orientation: EXIF orientation of its pixels.
        label: (H, W) uint8 raw ids of the upright photo.
        encoding, source: see ``EntryInfo``.
    """
    frame = parse_frame(jpeg)
    segments = index_segments(jpeg, frame)
    tiles = encode_tiles(label)
    blocks, mixed = preview_blocks(label)
    compress = zstandard.ZstdCompressor(level=9, write_checksum=True).compress
    tables = {
        "segments": compress(segments.astype("<u4").tobytes()),
        "running": compress(running_checks(jpeg, frame, segments).astype("<u4").tobytes()),
        "blocks": compress(blocks.tobytes()),
        "mixed": compress(np.packbits(mixed).tobytes()),
    }
    payload = b"".join([jpeg, *tiles, *tables.values()])
    directory = {
        "size": list(label.shape),
        "orientation": orientation,
        "encoding": encoding,
        "source": source,
        "jpeg_bytes": len(jpeg),
        "header_bytes": frame.scan_offset,
        "header_check": check(jpeg[: frame.scan_offset]),
        "tile_bytes": [len(tile) for tile in tiles],
        "table_bytes": {name: len(table) for name, table in tables.items()},
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    encoded = json.dumps(directory, separators=(",", ":")).encode()
    return b"".join([payload, encoded, _FOOTER.pack(_MAGIC, FORMAT_VERSION, check(encoded), len(encoded))])


class Entry:
    """Reads windows of an entry.

    Args:
        read: gives bytes of the file; raises OSError.
        length: of the file in bytes.
        name: of the file, for messages.
        cure: what to do when it is damaged, for messages.

    Raises:
        StoreError: the file is no entry, is damaged, or was written in another format.
    """

    def __init__(self, read: Read, length: int, name: str, cure: str = _CURE) -> None:
        self._read_file = read
        self._length = length
        self._name = name
        self._cure = cure
        self._tail_offset = max(0, length - _TAIL)
        self._tail = read(self._tail_offset, length - self._tail_offset)
        if len(self._tail) != length - self._tail_offset or length < _FOOTER.size:
            raise self._damaged("it is cut off")
        magic, version, expected, directory_bytes = _FOOTER.unpack(self._tail[-_FOOTER.size :])
        if magic != _MAGIC or version < 1:
            raise self._damaged("it does not end like an entry")
        check_version(version, f"{name}: written in")
        end = length - _FOOTER.size - directory_bytes
        encoded = self._read(end, directory_bytes) if end >= 0 else b""
        if check(encoded) != expected:
            raise self._damaged("the checksum of its directory is wrong")
        try:
            directory = json.loads(encoded)
            self.info = EntryInfo(
                (int(directory["size"][0]), int(directory["size"][1])),
                int(directory["orientation"]),
                str(directory["encoding"]),
                directory["source"],
                str(directory["payload_sha256"]),
                end,
            )
            self._tile_bytes = [int(value) for value in directory["tile_bytes"]]
            self._jpeg_bytes = int(directory["jpeg_bytes"])
            self._header = int(directory["header_bytes"]), int(directory["header_check"])
            self._tables: dict[str, tuple[int, int]] = {}
            position = self._jpeg_bytes + sum(self._tile_bytes)
            for table, size in directory["table_bytes"].items():
                self._tables[table] = position, int(size)
                position += int(size)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._damaged(f"directory: {error}") from error
        if position != end:
            raise self._damaged("its parts do not add up")
        size = self.info.size
        if min(size) < 1 or len(self._tile_bytes) != tile_count(size) or min(self._tile_bytes) < 1:
            raise self._damaged(f"its label tiles are not those of {size[1]}x{size[0]} pixels")

    def label(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 raw ids under a window of the upright photo; raises ``StoreError``."""
        try:
            return self._tiles.decode(window)
        except LabelError as error:
            raise self._damaged(str(error)) from error

    def image(self, window: Window) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB under a window of the upright photo; raises ``StoreError``."""
        stored = stored_window(window, self.info.size, self.info.orientation)
        try:
            return upright(self._jpeg.decode(stored), self.info.orientation)
        except JpegError as error:
            raise self._damaged(f"photo: {error}") from error

    def preview(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Blocks of raw ids and which of them are mixed, see ``preview_blocks``."""
        shape = tuple(-(-edge // 16) for edge in self.info.size)
        blocks = np.frombuffer(self._table("blocks"), np.uint8)
        mixed = np.unpackbits(np.frombuffer(self._table("mixed"), np.uint8), count=blocks.size)
        try:
            return blocks.reshape(shape), mixed.astype(bool).reshape(shape)
        except ValueError as error:
            raise self._damaged(f"preview: {error}") from error

    def check_payload(self) -> None:
        """Read everything and compare its checksum; raises ``StoreError``."""
        payload = self._read_file(0, self.info.payload_bytes)
        if hashlib.sha256(payload).hexdigest() != self.info.payload_sha256:
            raise self._damaged("its checksum is wrong")

    @cached_property
    def _jpeg(self) -> RestartJpeg:
        length, expected = self._header
        header = self._read(0, length)
        if check(header) != expected:
            raise self._damaged("the checksum of the photo's header is wrong")
        segments = np.frombuffer(self._table("segments"), "<u4").astype(np.uint32)
        checks = np.frombuffer(self._table("running"), "<u4").astype(np.uint32)
        return RestartJpeg(self._read, header, segments, checks)

    @cached_property
    def _tiles(self) -> LabelTiles:
        return LabelTiles(self._read, self._jpeg_bytes, self._tile_bytes, self.info.size)

    def _table(self, name: str) -> bytes:
        if name not in self._tables:
            raise self._damaged(f"it has no table {name!r}")
        compressed = self._read(*self._tables[name])
        blocks = -(-self.info.size[0] // 16) * -(-self.info.size[1] // 16)
        most = {"blocks": blocks, "mixed": -(-blocks // 8)}.get(name, 4 * self._jpeg_bytes)
        try:
            if not 0 <= zstandard.get_frame_parameters(compressed).content_size <= most:
                raise self._damaged(f"table {name!r} is larger than it can be")
            return zstandard.decompress(compressed)
        except zstandard.ZstdError as error:
            raise self._damaged(f"table {name!r}: {error}") from error

    def _read(self, offset: int, length: int) -> bytes:
        if offset >= self._tail_offset:
            data = self._tail[offset - self._tail_offset : offset - self._tail_offset + length]
        else:
            data = self._read_file(offset, length)
        if len(data) != length:
            raise self._damaged("it is cut off")
        return data

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(f"{self._name}: this store entry is damaged ({reason}). {self._cure}")


def stored_window(window: Window, size: tuple[int, int], orientation: int) -> Window:
    """Where the pixels of an upright window lie before an EXIF orientation is applied.

    Args:
        window: in the upright photo.
        size: (H, W) of the upright photo.
        orientation: 1 to 8, see ``src.photos.upright``, which this undoes.
    """
    top, left, height, width = window
    if orientation in (3, 4, 7, 8):
        top = size[0] - top - height
    if orientation in (2, 3, 6, 7):
        left = size[1] - left - width
    return Window(left, top, width, height) if orientation >= 5 else Window(top, left, height, width)

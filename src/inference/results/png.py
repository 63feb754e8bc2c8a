"""Writing PNGs row by row, so that a picture larger than memory goes from one disk to the other."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from src.files import TEMPORARY, new_file_mode, to_disk

Kind = Literal["gray", "palette", "rgb", "rgba"]
_COLOUR_TYPES: dict[Kind, tuple[int, int]] = {
    "gray": (0, 1),
    "rgb": (2, 3),
    "palette": (3, 1),
    "rgba": (6, 4),
}
_FILTER_NONE, _FILTER_UP = 0, 2
_CHUNK_BYTES = 2**20


class PngWriter:
    """A PNG that appears under its name when it is complete.

    As a context manager it gives up the file when the block raises.

    Args:
        path: the file; its folder is created.
        width, height: pixels.
        kind: channels. bits: 8, or 16 for gray.
        palette: RGB colours of the indices, for ``palette``.
        level: of zlib, 0 to 9.
        profile: ICC profile of the colours, or None.
        text: Latin-1 keyword to text, which stand before the pixels.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        kind: Kind = "gray",
        bits: int = 8,
        palette: Sequence[Sequence[int]] = (),
        level: int = 3,
        profile: bytes | None = None,
        text: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        colour_type, self._channels = _COLOUR_TYPES[kind]
        self._path, self._width, self._height = path, width, height
        self._dtype = np.dtype(">u2") if bits == 16 else np.dtype("u1")
        # Indices compress best as they are; tones compress best as differences from the row above.
        self._filter = _FILTER_NONE if kind == "palette" else _FILTER_UP
        self._above = np.zeros((1, width * self._channels * self._dtype.itemsize), np.uint8)
        self._written = 0
        self._deflate, self._pending = zlib.compressobj(level), bytearray()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, self._temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        self._file = os.fdopen(descriptor, "wb")
        self._file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        if profile is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
        for keyword, value in text.items():
            self._chunk(b"tEXt", f"{keyword}\0{value}".encode("latin-1"))
        if kind == "palette":
            self._chunk(b"PLTE", bytes(value for colour in palette for value in colour))

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows: (n, W) for one channel, (n, W, 3) or (n, W, 4) for colours."""
        count = len(rows)
        data = np.ascontiguousarray(rows, self._dtype).reshape(count, -1).view(np.uint8)
        if data.shape[1] != self._above.shape[1] or self._written + count > self._height:
            raise ValueError(f"{self._path}: rows of shape {rows.shape} do not fit into the picture")
        filtered = np.empty((count, data.shape[1] + 1), np.uint8)
        filtered[:, 0] = self._filter
        if self._filter == _FILTER_UP:
            np.subtract(data, np.concatenate((self._above, data[:-1])), out=filtered[:, 1:])
            self._above = data[-1:].copy()
        else:
            filtered[:, 1:] = data
        self._written += count
        self._emit(self._deflate.compress(filtered.data))

    def finish(self) -> None:
        """Complete the file and give it its name."""
        if self._written != self._height:
            raise ValueError(f"{self._path}: {self._written} of {self._height} rows were written")
        self._emit(self._deflate.flush(), last=True)
        self._chunk(b"IEND", b"")
        to_disk(self._file)
        self._file.close()
        os.chmod(self._temporary, new_file_mode())  # mkstemp's files are private
        os.replace(self._temporary, self._path)

    def abandon(self) -> None:
        """Remove the file if it is unfinished."""
        try:
            self._file.close()  # writes what it holds, which a full disk refuses
        finally:
            Path(self._temporary).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self.abandon()

    def _emit(self, data: bytes, last: bool = False) -> None:
        self._pending += data
        while len(self._pending) >= _CHUNK_BYTES or (last and self._pending):
            self._chunk(b"IDAT", bytes(self._pending[:_CHUNK_BYTES]))
            del self._pending[:_CHUNK_BYTES]

    def _chunk(self, name: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + name + data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))

"""Decoding a window of a JPEG without decoding the rest.

A restart marker ends a segment: behind it the decoder starts afresh, so segments can be decoded one without
the other. ``jpegtran`` puts markers into any baseline JPEG without changing a coefficient. The segments under a
window, put behind a copy of the header with another height and width, are a small JPEG whose pixels equal those
of the whole photo, apart from the outermost two rows and columns, where upsampled chroma would need its
neighbours. Windows are therefore decoded with a margin.

    MCU  minimum coded unit: the block of pixels that a JPEG codes at once, 8x8 to 32x16 pixels
    H, W  height and width as stored in the file, before any EXIF orientation
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from src.data.source import Window

MARGIN = 2  # pixels; chroma upsampling looks one chroma sample further, which is up to two pixels

_SOI, _EOI, _SOS, _DRI, _TEM = 0xD8, 0xD9, 0xDA, 0xDD, 0x01
_BASELINE = (0xC0, 0xC1)
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FIRST_RESTART, _LAST_RESTART = 0xD0, 0xD7

Read = Callable[[int, int], bytes]  # (offset, length) -> bytes of the file


class JpegError(ValueError):
    """Bytes that are not the JPEG they should be."""


class UnsuitableJpeg(JpegError):
    """A JPEG that cannot be cut into segments: not three or one components, not baseline, several scans."""


class Frame(NamedTuple):
    """What the header of a baseline JPEG says.

    Attributes:
        height, width: pixels as stored.
        mcu_height, mcu_width: pixels.
        size_offset: position of height and width in the file.
        scan_offset: position of the first coded byte.
        restart_interval: MCUs per segment, 0 without restart markers.
    """

    height: int
    width: int
    mcu_height: int
    mcu_width: int
    size_offset: int
    scan_offset: int
    restart_interval: int

    @property
    def mcu_rows(self) -> int:
        return -(-self.height // self.mcu_height)

    @property
    def mcu_columns(self) -> int:
        return -(-self.width // self.mcu_width)


def parse_frame(data: bytes | bytearray) -> Frame:
    """Read the header.

    Raises:
        JpegError: the header is damaged.
        UnsuitableJpeg: see there.
    """
    if data[:2] != bytes((0xFF, _SOI)):
        raise JpegError("not a JPEG")
    position, interval = 2, 0
    frame: tuple[int, int, int, int, int] | None = None
    components = 0
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise JpegError(f"no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if marker in _OTHER_FRAMES:
            raise UnsuitableJpeg("not a baseline JPEG")
        if marker in _BASELINE:
            precision, height, width, components = struct.unpack_from(">BHHB", body)
            if precision != 8 or components not in (1, 3) or height == 0:
                raise UnsuitableJpeg(f"{components} components of {precision} bits, height {height}")
            sampling = [body[7 + 3 * index] for index in range(components)]
            # The only component of a scan is coded block by block, whatever its sampling factors.
            horizontal = 1 if components == 1 else max(factor >> 4 for factor in sampling)
            vertical = 1 if components == 1 else max(factor & 15 for factor in sampling)
            frame = height, width, 8 * vertical, 8 * horizontal, position + 5
        elif marker == _DRI:
            (interval,) = struct.unpack_from(">H", body)
        elif marker == _SOS:
            if frame is None or body[0] != components:
                raise UnsuitableJpeg("its components lie in several scans")
            return Frame(*frame, position + 2 + length, interval)
        position += 2 + length
    raise JpegError("the header is cut off")


def index_segments(jpeg: bytes, frame: Frame) -> NDArray[np.uint32]:
    """Lengths of all segments in bytes, each with the marker behind it.

    Raises:
        JpegError: the markers are not those that the header announces.
    """
    coded = np.frombuffer(jpeg, np.uint8)[frame.scan_offset :]
    escapes = np.flatnonzero(coded[:-1] == 0xFF)
    markers = coded[escapes + 1]
    ends = escapes[(markers >= _FIRST_RESTART) & (markers <= _EOI)] + 2
    starts = np.concatenate([[0], ends])
    numbers = coded[ends - 1]
    expected = _FIRST_RESTART + np.arange(len(ends)) % 8
    expected[-1:] = _EOI
    if frame.restart_interval == 0 or frame.mcu_columns % frame.restart_interval:
        raise JpegError("its restart interval does not divide a row")
    segments = frame.mcu_rows * (frame.mcu_columns // frame.restart_interval)
    if len(ends) != segments or (numbers != expected).any():
        raise JpegError(f"{len(ends)} segments instead of {segments}, or wrongly numbered")
    return np.diff(starts).astype(np.uint32)


def check(data: bytes | memoryview) -> int:
    """The lower 16 bits of the CRC-32."""
    return crc32(data) & 0xFFFF


def running_checks(jpeg: bytes, frame: Frame, segments: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The CRC-32 of the coded bytes from the first one to the end of each segment, marker included.

    Continued from the value in front of it, the CRC-32 of any run of segments ends with the value behind it, so one
    call checks a run.
    """
    ends = np.concatenate([[0], np.cumsum(segments, dtype=np.int64)]) + frame.scan_offset
    coded, value = memoryview(jpeg), 0
    return np.array(
        [value := crc32(coded[start:stop], value) for start, stop in pairwise(ends.tolist())], np.uint32
    )


class RestartJpeg:
    """Decodes windows of a JPEG with restart markers.

    Args:
        read: gives bytes of the file.
        header: the file's bytes up to the first coded one.
        segments: as ``index_segments`` gives them.
        checks: as ``running_checks`` gives them. A decoder would take most damaged bytes for other pixels.
    """

    def __init__(
        self, read: Read, header: bytes, segments: NDArray[np.uint32], checks: NDArray[np.uint32]
    ) -> None:
        self._read = read
        self._header = header
        self._frame = frame = parse_frame(header)
        self._per_row = frame.mcu_columns // frame.restart_interval
        self._starts = np.zeros(len(segments) + 1, dtype=np.int64)  # relative to the first coded byte
        np.cumsum(segments, out=self._starts[1:])
        self._checks = np.zeros(
            len(checks) + 1, dtype=np.uint32
        )  # in front of each segment, and behind the last
        self._checks[1:] = checks
        if not len(segments) == len(checks) == frame.mcu_rows * self._per_row:
            raise JpegError(f"an index of {len(segments)} segments does not fit the header")

    def decode(self, window: Window) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB under a window of the stored photo.

        Raises:
            JpegError: the coded bytes are damaged.
        """
        frame = self._frame
        width, height = frame.mcu_width * frame.restart_interval, frame.mcu_height
        first_row = max(0, window.top - MARGIN) // height
        last_row = -(-min(frame.height, window.top + window.height + MARGIN) // height)
        first = max(0, window.left - MARGIN) // width
        last = -(-min(frame.width, window.left + window.width + MARGIN) // width)
        top, left = first_row * height, first * width
        size = min(frame.height, last_row * height) - top, min(frame.width, last * width) - left
        pixels = self._decode(self._splice(range(first_row, last_row), first, last, size), size)
        if pixels.shape[:2] != size:
            raise JpegError(f"{pixels.shape[:2]} pixels were decoded instead of {size}")
        return pixels[
            window.top - top : window.top - top + window.height,
            window.left - left : window.left - left + window.width,
        ]

    def _splice(self, rows: range, first: int, last: int, size: tuple[int, int]) -> bytearray:
        """A JPEG of the segments first..last of the given rows of MCUs."""
        firsts = np.arange(rows.start, rows.stop)[:, None] * self._per_row + first  # (rows, 1)
        begin, end = int(self._starts[firsts[0, 0]]), int(self._starts[firsts[-1, 0] + last - first])
        coded = memoryview(self._read(len(self._header) + begin, end - begin))
        starts = self._starts[firsts + np.arange(last - first + 1)] - begin  # (rows, segments + 1)
        jpeg = bytearray(self._header)
        struct.pack_into(">HH", jpeg, self._frame.size_offset, *size)
        edges = [
            starts[:, 0],
            starts[:, -1],
            self._checks[firsts[:, 0]],
            self._checks[firsts[:, 0] + last - first],
        ]
        for start, stop, before, behind in zip(*(edge.tolist() for edge in edges), strict=True):
            run = coded[start:stop]
            if crc32(run, before) != behind:
                raise JpegError("the checksum of a segment is wrong")
            jpeg += run
        # Every segment ends with a marker: number them anew, and end the last with the end of the image.
        ends = len(self._header) + np.cumsum(np.diff(starts, axis=1).ravel())
        written = np.frombuffer(jpeg, np.uint8)
        written[ends - 1] = _FIRST_RESTART + np.arange(len(ends)) % 8
        written[-1] = _EOI
        return jpeg

    @staticmethod
    def _decode(jpeg: bytearray, size: tuple[int, int]) -> NDArray[np.uint8]:
        # NumPy asks the system for large pages, which saves a whole photo ten thousand page faults.
        pixels = np.empty((*size, 3), np.uint8)
        try:
            return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=pixels, strict=True)
        except ValueError as error:
            raise JpegError(str(error)) from error

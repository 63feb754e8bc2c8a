"""Decoding an ordinary JPEG down to the lowest row that a window shows.

A JPEG is coded row by row, so a header with a smaller height makes the decoder stop early; on average a third of a
photo lies below a window. Rows above and columns beside it cannot be left out: their lengths are unknown. A prepared
store knows them, see ``src.data.store.restart_jpeg``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from src.data.source import Window
from src.data.store.entry import stored_window
from src.data.store.restart_jpeg import MARGIN, JpegError, parse_frame
from src.photos import read_photo, upright

# What the decoder says about rows that the header does not mention. It tells its first complaint only, so damage that
# it notices above them is heard. Bytes that merely decode to other pixels are noticed where a photo ends, so only by
# whole decoding (scripts/validate_dataset.py, src.prepare).
_LEFT_OVER = "extraneous bytes before marker 0xd9"


def read_window(path: Path, window: Window, size: tuple[int, int], orientation: int) -> NDArray[np.uint8]:
    """A window of a photo, as cut out of ``read_photo``.

    Args:
        path: of the photo, a JPEG or PNG.
        window: in the upright photo.
        size, orientation: as ``photo_header`` gives them.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        PhotoError: the photo is damaged, as far as it was decoded.
    """
    upper = _upper_rows(path, window, size, orientation)
    return read_photo(path)[window.slices] if upper is None else upper


def _upper_rows(
    path: Path, window: Window, size: tuple[int, int], orientation: int
) -> NDArray[np.uint8] | None:
    """The window, or None where the photo has to be decoded whole."""
    data = bytearray(path.read_bytes())
    try:
        frame = parse_frame(data)
    except (JpegError, struct.error, IndexError):
        return None  # no JPEG, one of several scans such as a progressive one, or a damaged one
    stored = stored_window(window, size, orientation)
    rows = stored.top + stored.height + MARGIN
    if rows >= frame.height:
        return None
    struct.pack_into(">H", data, frame.size_offset, rows)
    pixels = np.empty((rows, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=pixels, strict=True)
    except ValueError as error:
        if _LEFT_OVER not in str(error):
            return None
    return upright(pixels[stored.slices], orientation)

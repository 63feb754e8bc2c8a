"""Rewriting JPEGs without loss, by the system's ``jpegtran``: restart markers put in, metadata left out.

MCU  minimum coded unit, see ``src.data.store.restart_jpeg``, which decodes what is written here
"""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
from contextlib import suppress

import numpy as np
import simplejpeg

from src.data.store.restart_jpeg import Frame, UnsuitableJpeg, parse_frame
from src.errors import UserError

SEGMENT_PIXELS = 128  # wanted width of a segment: narrow ones spare decoding, wide ones spare bytes
_NARROWEST = 64  # a marker costs about six bytes, too much for every 8 or 16 pixels of a row


def segment_mcus(frame: Frame) -> int:
    """MCUs per segment: the divisor of a row's MCUs that comes closest to ``SEGMENT_PIXELS``, or the row."""
    wide_enough = [
        mcus
        for mcus in range(1, frame.mcu_columns + 1)
        if frame.mcu_columns % mcus == 0
        and (mcus * frame.mcu_width >= _NARROWEST or mcus == frame.mcu_columns)
    ]
    return min(wide_enough, key=lambda mcus: abs(np.log(mcus * frame.mcu_width / SEGMENT_PIXELS)))


def find_jpegtran() -> str:
    """Path of the system's jpegtran.

    Raises:
        UserError: it is not installed.
    """
    found = shutil.which("jpegtran")
    if found is None:
        raise UserError(
            "jpegtran is not installed; it rewrites JPEGs without loss. Debian and Ubuntu: "
            "apt-get install libjpeg-turbo-progs; macOS: brew install jpeg-turbo (and add its bin folder to PATH); "
            "conda: conda install -c conda-forge libjpeg-turbo."
        )
    return found


def add_restart_markers(jpeg: bytes, jpegtran: str) -> bytes:
    """Rewrite a JPEG as one baseline scan with restart markers; its pixels stay the same, metadata is dropped.

    Args:
        jpeg: any JPEG, also a progressive one.
        jpegtran: see ``find_jpegtran``.

    Raises:
        UnsuitableJpeg: it has other than one or three components, or codes or samples them in a way that jpegtran
            cannot rewrite or TurboJPEG cannot decode.
        UserError: jpegtran was killed.
    """

    def run(data: bytes, interval: int) -> bytes:
        command = [jpegtran, "-copy", "none", "-optimize", "-restart", f"{interval}B"]
        # in a group of its own: Ctrl-C reaches all processes of a terminal, and a photo in work is to be finished
        result = subprocess.run(command, input=data, capture_output=True, process_group=0)
        if result.returncode == -signal.SIGKILL:
            raise UserError(
                "jpegtran was killed, as when memory runs out: give the same command again, with fewer workers"
            )
        if result.returncode != 0:
            reason = result.stderr.decode(errors="replace").strip()
            raise UnsuitableJpeg(f"jpegtran refuses it: {reason}")
        return result.stdout

    try:
        frame = parse_frame(jpeg)
    except UnsuitableJpeg:
        jpeg = run(jpeg, 0)  # one baseline scan, which tells the size of an MCU
        frame = parse_frame(jpeg)
    rewritten = run(jpeg, segment_mcus(frame))
    try:
        with suppress(KeyError):  # simplejpeg decodes chroma sampled 1x4, but has no name for it
            simplejpeg.decode_jpeg_header(rewritten)
    except ValueError as error:  # TurboJPEG has no name for its chroma sampling, such as 3x1
        raise UnsuitableJpeg(f"it cannot be decoded in windows: {error}") from error
    return rewritten


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF block with nothing but the orientation behind a JPEG's first marker, so viewers show it upright."""
    if orientation == 1:
        return jpeg
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"MM\x00*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    block = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]

"""Pictures as data URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from src.structures import IGNORE


def jpeg_uri(picture: NDArray[np.uint8], quality: int = 82) -> str:
    """A photo as JPEG.

    Args:
        picture: (H, W, 3) RGB.
        quality: 1..100; from 90 on colours keep their full resolution.
    """
    subsampling = "444" if quality >= 90 else "420"
    content = simplejpeg.encode_jpeg(
        np.ascontiguousarray(picture), quality=quality, colorspace="RGB", colorsubsampling=subsampling
    )
    return _uri("image/jpeg", content)


def label_uri(label: NDArray[np.uint8], colours: NDArray[np.uint8]) -> str:
    """A label map as palette PNG; ignored pixels are transparent.

    Args:
        label: (H, W) class ids, or 255.
        colours: (K, 3) RGB.
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    picture = Image.fromarray(label)
    picture.putpalette(palette.tobytes())
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=IGNORE)
    return _uri("image/png", content.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

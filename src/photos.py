"""Reading photos and label maps from files.

The bottom layer of everything that touches a photo: training crops, evaluation and prediction decode
through these functions, so EXIF rotation, odd colour modes and damaged files are handled once.

    H, W  height and width of the upright photo, in pixels

Nothing here guesses: a file that does not decode completely raises ``PhotoError``. libjpeg would rather
fill the missing rows of a truncated photo with grey, which training then learns without a word.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from src.errors import UserError

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png"})
LABEL_SUFFIXES = frozenset({".png"})

# Pillow's own limits are below an aerial photo, the colour profile of a printer and what image generators write.
Image.MAX_IMAGE_PIXELS = 10**9  # Pillow refuses twice as many; src.predict sets its own
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # bytes, of one compressed chunk and of a colour profile
PngImagePlugin.MAX_TEXT_MEMORY = 2**28

_EXIF_ORIENTATION = 0x0112
# What Pillow raises for damaged headers, chunks, palettes, EXIF blocks and pixel data.
DAMAGED = (OSError, SyntaxError, ValueError, AssertionError, struct.error)
# JPEGs with further pictures behind the first, as many phones write them, open as JPEGs too ("MPO").
_FORMATS = ("JPEG", "PNG")
# What simplejpeg says about chroma samplings that TurboJPEG has no name for, such as 3x1; Pillow reads them.
_RARE_SAMPLING = "Could not determine subsampling"
# PNG header: bytes 24 and 25 of the file are bit depth and colour type.
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_GRAY, _PNG_PALETTE = 0, 3


class PhotoError(UserError):
    """A photo or label map cannot be used; the message names the file and the cure."""


def read_photo(path: Path | str) -> NDArray[np.uint8]:
    """Decode a photo to 8-bit RGB, upright.

    JPEGs go through libjpeg-turbo directly; CMYK JPEGs, those of rare chroma samplings and PNGs through Pillow.
    Grayscale is repeated on three channels, palettes are looked up, 16-bit samples keep their high byte and an
    alpha channel is dropped (the colours underneath are kept; nothing is composited).

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous, EXIF orientation applied.

    Raises:
        PhotoError: the file is empty, truncated, damaged or not a JPEG or PNG.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    data = _read_bytes(path)
    with open_image(path, data) as photo:
        orientation = _orientation(path, photo)
        if photo.format == "PNG" or photo.mode == "CMYK":
            pixels = _decode_with_pillow(path, photo)
        else:
            pixels = _decode_jpeg(path, data, photo)
    return np.ascontiguousarray(upright(pixels, orientation))


def photo_header(path: Path | str) -> tuple[tuple[int, int], int]:
    """Height and width of a photo as ``read_photo`` returns it, and its EXIF orientation, from the header alone.

    The orientation is 1 to 8; 1 when absent or out of range.

    Raises:
        PhotoError: the file is empty or not a JPEG or PNG.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    _refuse_empty(path)
    with path.open("rb") as file, open_image(path, file) as photo:
        (width, height), orientation = photo.size, _orientation(path, photo)
        return ((width, height) if orientation >= 5 else (height, width)), orientation


def photo_size(path: Path | str) -> tuple[int, int]:
    """Height and width of a photo as ``read_photo`` returns it; errors as ``photo_header``."""
    return photo_header(path)[0]


def colour_profile(path: Path | str) -> bytes | None:
    """The ICC profile that says what a photo's RGB values mean; None where it has none or its pixels are not RGB.

    ``read_photo`` gives the values as they are: pictures made of them need the profile to look like the photo.
    """
    with open_image(Path(path), _read_bytes(Path(path))) as photo:
        profile = photo.info.get("icc_profile")
    return profile if profile and profile[16:20] == b"RGB " else None


def photo_orientation(path: Path | str) -> int:
    """EXIF orientation of a photo; errors as ``photo_header``."""
    return photo_header(path)[1]


def read_label(path: Path | str) -> NDArray[np.uint8]:
    """Decode a label map: an 8-bit PNG with one channel whose values are class ids.

    Palette PNGs give their indices, never the palette's colours. Label maps are taken as they lie in the
    file: they belong to the upright photo, so no EXIF orientation is applied to them.

    Returns:
        (H, W) uint8 raw ids.

    Raises:
        PhotoError: the file is empty, damaged, or holds something other than 8-bit ids.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with open_image(path, label_bytes(path)) as label:
        try:
            return np.array(label, dtype=np.uint8)
        except DAMAGED as error:
            raise damaged(path, error) from error


def label_bytes(path: Path) -> bytes:
    """The content of a label map's file, whose header was looked at; errors as ``read_label``."""
    data = _read_bytes(path)
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 26:
        raise PhotoError(
            f"{path}: not a PNG. Label maps must be PNGs with one class id per pixel; "
            "lossy formats such as JPEG change ids along every boundary."
        )
    depth, colour_type = data[24], data[25]
    if colour_type not in (_PNG_GRAY, _PNG_PALETTE):
        raise PhotoError(
            f"{path}: the label map has colour channels. It must hold one class id per pixel in one 8-bit "
            "channel; if it is colour-coded, replace each colour by its class id first."
        )
    if colour_type == _PNG_GRAY and depth != 8:
        raise PhotoError(
            f"{path}: the label map has {depth} bits per pixel. It must hold 8-bit class ids (0 to 254, "
            "255 for ignore); save it as 8-bit grayscale, and map instance or 16-bit ids to class ids first."
        )
    return data


def fit_within(
    image: NDArray[np.uint8], limit: tuple[int, int], *, enlarge: bool = False
) -> NDArray[np.uint8]:
    """Resize a photo, keeping its ratio, so that its long and short edges fit a limit.

    The evaluation protocol of MaSS13K: "4096x3072" bounds a landscape as 4096 wide and a portrait as 4096
    high. Bilinear with half-pixel centres and without antialiasing, as in the released pipeline. The
    release also enlarges photos that are smaller than the limit; here that is ``enlarge=True``, because it
    costs time and memory and adds no detail.

    Args:
        image: (H, W, 3) uint8.
        limit: two edge lengths in pixels, in any order.
        enlarge: also bring smaller photos up to the limit.

    Returns:
        (h, w, 3) uint8; ``image`` itself when there is nothing to do.
    """
    return resized(image, fitted_size(image.shape[:2], limit, enlarge=enlarge))


def fitted_size(size: tuple[int, ...], limit: tuple[int, int], *, enlarge: bool = False) -> tuple[int, int]:
    """The size (height, width) that ``fit_within`` gives a photo of a size (height, width)."""
    height, width = size
    scale = min(max(limit) / max(size), min(limit) / min(size))
    if scale == 1 or (scale > 1 and not enlarge):
        return height, width
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A photo (H, W, 3) at a size (height, width), bilinear; itself where that is its size."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise PhotoError(f"{path}: the file is empty (0 bytes). Copy or download it again.")


def _read_bytes(path: Path) -> bytes:
    _refuse_empty(path)
    return path.read_bytes()


def open_image(path: Path, source: bytes | io.BufferedReader) -> Image.Image:
    """Read the header only; pixels follow on access."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            # Pillow warns above 89 megapixels, which is a photo here and not an attack.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            photo = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError(
            f"{path}: {error} Cut the photo into parts; in src.predict inference.max_megapixels is the limit."
        ) from error
    except DAMAGED as error:
        reason = "its content is something else" if isinstance(error, UnidentifiedImageError) else error
        raise PhotoError(
            f"{path}: not a readable JPEG or PNG ({reason}). Convert the photo to JPEG or PNG, or copy it "
            "again."
        ) from error
    return photo


def damaged(path: Path, error: Exception) -> PhotoError:
    """The error about a file that does not decode completely."""
    return PhotoError(f"{path}: the file is truncated or damaged ({error}). Copy or download it again.")


def _decode_jpeg(path: Path, data: bytes, photo: Image.Image) -> NDArray[np.uint8]:
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        if _RARE_SAMPLING in str(error):
            return _decode_with_pillow(path, photo)
        if (tidy := tidied(data)) != data:
            return _decode_jpeg(path, tidy, photo)
        raise damaged(path, error) from error


def tidied(jpeg: bytes) -> bytes:
    """A JPEG with the scan parameters that the standard wants, which some cameras leave at 0.

    They mean nothing in sequential JPEGs, so no pixel changes. But a decoder tells its first complaint only, and
    behind this one it would not be heard of lost pixels. Other faults of the header are left alone: what they have
    cost is not known.
    """
    at, sequential = 2, False
    try:
        while jpeg[at] == 0xFF:
            marker, (length,) = jpeg[at + 1], struct.unpack_from(">H", jpeg, at + 2)
            sequential |= marker in (0xC0, 0xC1)
            end = at + 2 + length
            if marker == 0xDA:
                return jpeg[: end - 3] + b"\x00\x3f\x00" + jpeg[end:] if sequential else jpeg
            at = end
    except (IndexError, struct.error):
        pass
    return jpeg


def _decode_with_pillow(path: Path, photo: Image.Image) -> NDArray[np.uint8]:
    try:
        if photo.mode.startswith("I"):  # 16-bit grayscale
            high_byte = (np.asarray(photo).astype(np.uint16) >> 8).astype(np.uint8)
            return np.repeat(high_byte[:, :, None], 3, axis=2)
        return np.array(photo.convert("RGB"), dtype=np.uint8)
    except DAMAGED as error:
        raise damaged(path, error) from error


def _orientation(path: Path, photo: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 when absent or out of range."""
    # Without this, Pillow would decode a whole PNG to look for a block behind its pixels.
    if "exif" not in photo.info:
        return 1
    block = Image.Exif()  # of the photo's own block alone: Pillow's getexif falls back on XMP
    try:
        block.load(photo.info["exif"])
        orientation = block.get(_EXIF_ORIENTATION, 1)
    except DAMAGED as error:
        raise PhotoError(
            f"{path}: its EXIF block is damaged ({error}), so which side is up is unknown. Save the photo "
            "again or strip its metadata."
        ) from error
    return int(orientation) if orientation in range(1, 9) else 1  # a fraction in some files


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation; 5 to 8 exchange height and width."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

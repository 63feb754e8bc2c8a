"""Pictures of label maps: overlays, error maps, panels for reports, and PNG files with a palette.

The bottom layer: arrays in, arrays out, no model and no data set. Pictures are (H, W, 3) uint8 RGB, label
maps (H, W) uint8 with 255 for ignored pixels, colours (K, 3) uint8 RGB.

    H W picture height and width   K classes
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.files import write_atomically
from src.sheet import compose_sheet
from src.structures import IGNORE

Picture = NDArray[np.uint8]

IGNORED = (128, 128, 128)
WRONG = (230, 0, 140)  # of no class, whatever the usual palettes


class Window(NamedTuple):
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: Picture) -> Picture:
        """The part of the picture inside, as a view."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


def overlay(image: Picture, label: Picture, colours: Picture, alpha: float = 0.6) -> Picture:
    """Tint every pixel with its class's colour; ignored pixels keep the photo's.

    Args:
        image: (H, W, 3) photo.
        label: (H, W) class ids below K, or 255.
        colours: (K, 3).
        alpha: share of the class's colour, 0..1.
    """
    _check_sizes(image, label)
    tinted = np.asarray(cv2.addWeighted(image, 1 - alpha, _painted(label, colours), alpha, 0), np.uint8)
    return _pasted(image, tinted, where=label == IGNORE)


def error_map(image: Picture, prediction: Picture, label: Picture) -> Picture:
    """Mark wrong pixels magenta on a faded grey photo; ignored pixels are plain grey.

    Args:
        image: (H, W, 3) photo.
        prediction: (H, W) class ids.
        label: (H, W) class ids, or 255.
    """
    _check_sizes(image, prediction, label)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    faded = np.asarray(
        cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=0.4, beta=150), cv2.COLOR_GRAY2RGB), np.uint8
    )
    marks = (prediction != label).astype(np.uint8)
    marks[label == IGNORE] = IGNORE
    return _pasted(_painted(marks, np.array([WRONG, WRONG], np.uint8)), faded, where=marks != 0)


def boundary_rich_window(label: Picture, size: tuple[int, int]) -> Window:
    """Find the window that holds the most class-boundary pixels, the topmost and leftmost of equals.

    Args:
        label: (H, W) class ids; edges of ignored regions are no class boundaries.
        size: height and width wanted; the window is no larger than the map.
    """
    height, width = min(size[0], label.shape[0]), min(size[1], label.shape[1])
    boundary = np.zeros(label.shape, np.uint8)
    for first, second, target in (
        (label[:, :-1], label[:, 1:], boundary[:, :-1]),
        (label[:-1], label[1:], boundary[:-1]),
    ):
        target |= ((first != second) & (first != IGNORE) & (second != IGNORE)).view(np.uint8)
    total = cv2.integral(boundary)  # (H + 1, W + 1) sums over everything above and left
    counts = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return Window(int(top), int(left), height, width)


_TALLEST = 4  # height of a cell, as a multiple of its width


def panel(
    image: Picture,
    label: Picture,
    prediction: Picture,
    colours: Picture,
    names: Sequence[str],
    *,
    title: str = "",
    cell_width: int = 480,
    zoom: Window | None = None,
) -> Picture:
    """Compose photo, label, prediction and errors, whole and zoomed in, with titles and a legend.

    Args:
        image: (h, w, 3) photo; brought to the label's size when it has another.
        label: (H, W) class ids, or 255.
        prediction: (H, W) class ids.
        colours: (K, 3).
        names: K class names.
        title: a line above everything, for example the photo's name and scores.
        cell_width: width of each of the four columns in pixels; less for photos over four times as high as wide.
        zoom: what the lower row shows; left out, the most boundary-rich window of a cell's width, but at
            most a third of the photo's.
    """
    height, width = label.shape
    if image.shape[:2] != label.shape:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if height > _TALLEST * width:  # the sheet would be many times higher than wide
        cell_width = max(1, round(_TALLEST * cell_width * width / height))
    cell = (max(1, round(cell_width * height / width)), cell_width)
    if zoom is None:
        share = min(cell_width / width, 1 / 3)
        zoom = boundary_rich_window(label, (max(1, round(share * height)), max(1, round(share * width))))

    columns = {
        "Photo": image,
        "Label": _painted(label, colours),
        "Prediction": _painted(prediction, colours),
        "Errors": error_map(image, prediction, label),
    }
    whole = [_frame(_fit(picture, cell), zoom, cell_width / width) for picture in columns.values()]
    detail = [_fit(zoom.cut(picture), cell) for picture in columns.values()]
    occurring = [
        index for index in range(len(names)) if (label == index).any() or (prediction == index).any()
    ]
    legend = [(names[index], tuple(map(int, colours[index]))) for index in occurring]
    legend += [("wrong", WRONG), ("ignored", IGNORED)]
    note = f"Detail, {zoom.width} x {zoom.height} pixels at column {zoom.left}, row {zoom.top}"
    return compose_sheet([whole, detail], list(columns), legend, title=title, note=note)


def index_png(path: Path, label: Picture, palette: Picture) -> None:
    """Write a label map as 8-bit PNG whose values are the ids, shown in colour by viewers.

    Args:
        path: the file, written atomically.
        label: (H, W) ids.
        palette: (K, 3) colours of the ids 0..K-1; 255 is shown white, other ids black.
    """
    table = np.zeros((256, 3), np.uint8)
    table[IGNORE] = 255
    table[: len(palette)] = palette
    picture = Image.fromarray(label)
    picture.putpalette(table.tobytes())
    write_atomically(path, _encoded(picture, "PNG"))


def write_image(path: Path, rgb: Picture) -> None:
    """Write a picture atomically, as PNG or JPEG by the path's suffix.

    Raises:
        ValueError: another suffix.
    """
    match path.suffix.lower():
        case ".png":
            content = _encoded(Image.fromarray(rgb), "PNG")
        case ".jpg" | ".jpeg":
            content = _encoded(Image.fromarray(rgb), "JPEG", quality=92, subsampling=0)  # text stays sharp
        case suffix:
            raise ValueError(f"{path}: cannot write {suffix!r} pictures; end the name in .png or .jpg")
    write_atomically(path, content)


def _painted(label: Picture, colours: Picture) -> Picture:
    """(H, W, 3) class colours; every id without a colour, 255 too, is the grey of ignored pixels."""
    table = np.full((256, 1, 3), IGNORED, np.uint8)
    table[: len(colours), 0] = colours
    return np.asarray(cv2.applyColorMap(label, table), np.uint8)


def _pasted(picture: Picture, onto: Picture, *, where: NDArray[np.bool_]) -> Picture:
    """The second picture with the first one's pixels at the marked places; reuses the second's memory."""
    return np.asarray(cv2.copyTo(picture, where.view(np.uint8), onto), np.uint8)


def _fit(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resize to (height, width): area means when reducing; pixels stay visible squares when enlarging."""
    enlarges = size[1] > picture.shape[1]
    mode = cv2.INTER_NEAREST if enlarges else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=mode), np.uint8)


def _frame(picture: Picture, window: Window, scale: float) -> Picture:
    """Draw the window's outline, white in black, on a picture reduced by the scale."""
    left, top = round(window.left * scale), round(window.top * scale)
    right, bottom = round((window.left + window.width) * scale), round((window.top + window.height) * scale)
    framed = picture.copy()
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.rectangle(framed, (left, top), (right - 1, bottom - 1), colour, thickness)
    return framed


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _check_sizes(image: Picture, *labels: Picture) -> None:
    sizes = [image.shape[:2], *(label.shape for label in labels)]
    if len(set(sizes)) > 1:
        raise ValueError(f"photo and label maps must have one size, but are {', '.join(map(str, sizes))}")

"""Pictures of single photos for a report: photo, label, prediction and errors, whole and where boundaries fail.

H W map height and width   K classes
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from src.data.classes import ClassMap
from src.data.folder import FilePhoto, Pair
from src.data.source import Window as Area
from src.metrics.boundary import boundary_map, boundary_radius
from src.pictures import Window, error_map
from src.report.embed import jpeg_uri, label_uri
from src.report.record import ImageRecords
from src.structures import IGNORE

Picture = NDArray[np.uint8]

_WIDTH = 640  # of whole photos, pixels
_FRAMES = (
    (255, 205, 0),
    (0, 190, 255),
    (255, 110, 200),
    (120, 220, 60),
)  # of the details, in order, then again
_HEADINGS = ("Photo", "Label", "Prediction", "Errors")


class Cell(NamedTuple):
    """A picture with a heading, as a data URI."""

    heading: str
    uri: str


class Row(NamedTuple):
    """Pictures side by side.

    Attributes:
        note: what they show.
        cells: the pictures.
        frame: RGB colour of the frame that marks this detail in the whole photo; None for the whole photo.
    """

    note: str
    cells: list[Cell]
    frame: tuple[int, int, int] | None


class Example(NamedTuple):
    """One photo of a report.

    Attributes:
        name: of the photo.
        facts: its scores, as a line of text.
        rows: the whole photo first, then its details.
    """

    name: str
    facts: str
    rows: list[Row]


def extremes(images: ImageRecords, worst: int, best: int) -> tuple[list[int], list[int]]:
    """Indices of the photos with the lowest and the highest boundary IoU, most extreme first; none is in both."""
    biou = images.biou
    order = [int(index) for index in np.argsort(biou, kind="stable") if not np.isnan(biou[index])]
    lowest = order[:worst]
    return lowest, order[len(lowest) :][::-1][:best]


def boundary_errors(prediction: Picture, label: Picture, ratio: float) -> NDArray[np.uint8]:
    """Mark boundary pixels of either map that the other does not share.

    Edges of ignored regions are never marked, whatever boundary IoU makes of them: nothing is wrong there.

    Args:
        prediction: (H, W) class ids.
        label: (H, W) class ids, or 255; ignored pixels are never marked.
        ratio: width of the boundaries as a share of the diagonal.

    Returns:
        (H, W) uint8, 1 where marked.
    """
    radius = boundary_radius(label.shape[0], label.shape[1], ratio)
    prediction = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
    predicted, labelled = (
        boundary_map(torch.from_numpy(np.ascontiguousarray(labels)), radius, ignore_boundaries=False).numpy()
        for labels in (prediction, label)
    )
    shared = predicted & labelled & (prediction == label)
    return ((predicted | labelled) & ~shared).astype(np.uint8)


def busiest_windows(marks: NDArray[np.uint8], size: tuple[int, int], count: int) -> list[Window]:
    """The windows with the most marks, one after the other, without overlap; fewer where marks run out.

    Among windows with the same marks the one that has them in its middle is taken.

    Args:
        marks: (H, W) 0 or 1.
        size: height and width of a window, at most the map's.
        count: how many.
    """
    height, width = size
    windows: list[Window] = []
    while len(windows) < count:
        total = cv2.integral(marks)  # (H + 1, W + 1) sums over everything above and left
        sums = (
            total[height:, width:]
            - total[:-height, width:]
            - total[height:, :-width]
            + total[:-height, :-width]
        )
        for taken in windows:  # a window that starts here would overlap
            rows = slice(max(0, taken.top - height + 1), taken.top + height)
            sums[rows, max(0, taken.left - width + 1) : taken.left + width] = 0
        top, left = (int(index) for index in np.unravel_index(sums.argmax(), sums.shape))
        if sums[top, left] == 0:
            break
        window = Window(top, left, height, width)
        centred = _centred(window, marks)
        overlaps = any(
            abs(centred.top - taken.top) < height and abs(centred.left - taken.left) < width
            for taken in windows
        )
        windows.append(window if overlaps else centred)
    return windows


def _centred(window: Window, marks: NDArray[np.uint8]) -> Window:
    """Move a window so that its marks lie in its middle, as far as the map allows; it loses none."""
    inside = window.cut(marks)
    starts = []
    for axis, (start, length) in enumerate(((window.top, window.height), (window.left, window.width))):
        marked = np.flatnonzero(inside.any(1 - axis))
        middle = start + (int(marked[0]) + int(marked[-1]) + 1) // 2
        starts.append(min(max(0, middle - length // 2), marks.shape[axis] - length))
    return Window(starts[0], starts[1], window.height, window.width)


def example(
    name: str,
    facts: str,
    image: Picture,
    label: Picture,
    prediction: Picture,
    colours: Picture,
    *,
    ratio: float,
    details: int,
) -> Example:
    """Show a photo and its worst boundary windows.

    Args:
        name, facts: see `Example`.
        image: (h, w, 3) RGB, brought to the label's size when it has another.
        label: (H, W) class ids, or 255.
        prediction: (H, W) class ids.
        colours: (K, 3) RGB.
        ratio: width of boundaries as a share of the diagonal.
        details: how many windows.
    """
    height, width = label.shape
    if image.shape[:2] != label.shape:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    # A 4K photo shows single pixels in a window of 256; small photos still show their surroundings.
    edge = min(256, max(1, min(height, width) // 3))
    windows = busiest_windows(boundary_errors(prediction, label, ratio), (edge, edge), details)
    errors = error_map(image, prediction, label)

    rows = [
        Row(
            f"{width} x {height} pixels",
            _whole_cells(image, label, prediction, errors, colours, windows),
            frame=None,
        )
    ]
    for window, frame in zip(windows, cycle(_FRAMES), strict=False):
        pictures = jpeg_uri(window.cut(image), 92), *_label_uris(window, (label, prediction), colours)
        cells = [*pictures, jpeg_uri(window.cut(errors), 92)]
        note = f"{window.width} x {window.height} pixels at column {window.left}, row {window.top}"
        rows.append(Row(note, [Cell(*pair) for pair in zip(_HEADINGS, cells, strict=True)], frame))
    return Example(name, facts, rows)


def photo_and_label(pair: Pair, class_map: ClassMap, colours: Picture, facts: str) -> Example:
    """Show a photo and its label map, whole and where most class boundaries are, in one row.

    Raises:
        UserError: a file is unreadable, or the two differ in size.
    """
    photo = FilePhoto(pair, class_map)
    area = Area(0, 0, *photo.size)
    image, label = photo.image(area), photo.label(area)
    edge = min(256, max(1, min(label.shape) // 3))
    boundaries = boundary_map(
        torch.from_numpy(np.ascontiguousarray(label)), 1, ignore_boundaries=False
    ).numpy()
    boundaries[[0, -1]] = boundaries[:, [0, -1]] = False  # the image's border bounds classes too
    windows = busiest_windows(boundaries.astype(np.uint8), (edge, edge), 1)
    window = windows[0] if windows else Window(0, 0, edge, edge)
    scale = min(1.0, _WIDTH / max(label.shape))
    size = _scaled(label, scale)
    small = np.array(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _draw_frame(small, window, scale, _FRAMES[0])
    small_label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    whole = [
        Cell("Photo", jpeg_uri(small)),
        Cell("Label", label_uri(np.asarray(small_label, np.uint8), colours)),
    ]
    detail = [
        Cell("Photo", jpeg_uri(window.cut(image), 92)),
        Cell("Label", label_uri(np.ascontiguousarray(window.cut(label)), colours)),
    ]
    extent = f"{label.shape[1]} x {label.shape[0]} pixels"
    note = f"{window.width} x {window.height} pixels at column {window.left}, row {window.top}"
    return Example(pair.name, facts, [Row(extent, whole, None), Row(note, detail, _FRAMES[0])])


def _whole_cells(
    image: Picture,
    label: Picture,
    prediction: Picture,
    errors: Picture,
    colours: Picture,
    windows: Sequence[Window],
) -> list[Cell]:
    scale = min(1.0, _WIDTH / max(label.shape))
    size = _scaled(label, scale)
    framed = np.array(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    for window, colour in zip(windows, cycle(_FRAMES), strict=False):
        _draw_frame(framed, window, scale, colour)
    uris = [
        jpeg_uri(framed),
        *(
            label_uri(
                np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8), colours
            )
            for labels in (label, prediction)
        ),
        jpeg_uri(np.asarray(cv2.resize(errors, size, interpolation=cv2.INTER_AREA), np.uint8)),
    ]
    return [Cell(*pair) for pair in zip(_HEADINGS, uris, strict=True)]


def _scaled(label: Picture, scale: float) -> tuple[int, int]:
    """Width and height of a map at a scale."""
    height, width = label.shape
    return max(1, round(width * scale)), max(1, round(height * scale))


def _label_uris(window: Window, maps: Sequence[Picture], colours: Picture) -> list[str]:
    return [label_uri(np.ascontiguousarray(window.cut(labels)), colours) for labels in maps]


def _draw_frame(picture: Picture, window: Window, scale: float, colour: tuple[int, int, int]) -> None:
    """Outline a window, in colour on black, on a picture reduced by the scale."""
    first = (round(window.left * scale), round(window.top * scale))
    last = (
        round((window.left + window.width) * scale) - 1,
        round((window.top + window.height) * scale) - 1,
    )
    for ink, thickness in (((0, 0, 0), 6), (colour, 3)):
        cv2.rectangle(picture, first, last, ink, thickness)

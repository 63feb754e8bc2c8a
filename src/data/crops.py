"""Random training crops of very large photos, window first.

The released pipeline of MaSS13K (CVPR 2025) decodes a photo, resizes all of it (up to 50 megapixels) and then
cuts 1024x1024 pixels. Here the window is chosen first, from the photo's size and label map alone, and only
the source pixels under it are resized. The distribution of crops is the same; the work is a fraction.

    H, W  photo size   h, w  size of the scaled photo   S  crop size

Deviations from the release. A window begins at a whole source pixel, less than one above and left of where it
was drawn, so that any resizing will do, which knows no fractional offset. And the label of a pixel is the label
under the pixel's centre, as the colours are; the release takes the label under the pixel's corner, which shifts
labels by up to half a source pixel against the photo whenever the scale is not 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from src.data.source import LabelledPhoto, Window
from src.errors import UserError
from src.structures import IGNORE

# The colour under padding: the ImageNet mean, close to zero after normalisation, as in the release. Distortion and
# flips come after padding, so it may change its tone and side.
PADDING_COLOUR = (124, 116, 104)


def scaled_size(
    size: tuple[int, int], short_edge: int | None, scale: float, max_long_edge: int | None
) -> tuple[int, int]:
    """Size of a photo whose short edge becomes ``short_edge * scale``, keeping its ratio.

    Args:
        size: (H, W) in pixels.
        short_edge: pixels; None for the photo's own short edge.
        scale: factor on the short edge.
        max_long_edge: reduce further where the long edge would exceed this many pixels; None for no bound.

    Returns:
        (h, w), each rounded to the nearest pixel and at least 1.
    """
    height, width = size
    short = max(1, int((min(size) if short_edge is None else short_edge) * scale))
    factor = short / min(size)
    if max_long_edge is not None:
        factor = min(factor, max_long_edge / max(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


@dataclass(frozen=True)
class RandomCrop:
    """Draws S x S crops of a photo that is scaled at random.

    As released: short edge scaled by a factor drawn from ``scales``; a window drawn uniformly; drawn again,
    up to ``tries`` times, while one class covers ``max_class_share`` or more of its labelled pixels or it
    shows fewer than two classes. After the last try the window is taken as it is.

    Where the scaled photo is smaller than S, the crop is filled up at the right and bottom with the mean
    colour of ImageNet, labelled ignore.

    Attributes:
        crop_size: S in pixels.
        scales: factors on the short edge, drawn uniformly.
        short_edge: pixels at factor 1; None for each photo's own short edge.
        max_long_edge: bound on the scaled long edge in pixels; None for none.
        max_class_share: in (0, 1]; 1 accepts every window.
        tries: how often a window may be drawn again.
    """

    crop_size: int
    scales: Sequence[float]
    short_edge: int | None = None
    max_long_edge: int | None = None
    max_class_share: float = 0.75
    tries: int = 10

    def __post_init__(self) -> None:
        if self.crop_size < 1 or not self.scales or min(self.scales) <= 0:
            raise UserError(
                f"crop_size {self.crop_size} and scales {list(self.scales)} must be positive, with one "
                "scale at least"
            )

    def __call__(
        self, photo: LabelledPhoto, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Cut one crop.

        Returns:
            (S, S, 3) uint8 RGB and (S, S) uint8 class ids.
        """
        scale = self.scales[int(rng.integers(len(self.scales)))]
        size = scaled_size(photo.size, self.short_edge, scale, self.max_long_edge)
        window, label = self._draw(size, rng), None
        for _ in range(self.tries):
            varied, label = self._look(photo, size, window)
            if varied:
                break
            window, label = self._draw(size, rng), None
        if label is None:
            label = cut_label(photo, size, window)
        image = cut_image(photo, size, window)
        return self._fill(image, PADDING_COLOUR), self._fill(label, IGNORE)

    def _look(
        self, photo: LabelledPhoto, size: tuple[int, int], window: Window
    ) -> tuple[bool, NDArray[np.uint8] | None]:
        """Whether a window is varied, and its label where that had to be cut to know."""
        if self.max_class_share >= 1:
            return True, None
        if photo.preview is not None:
            certain = photo.preview.is_varied(*_label_grid(photo, size, window), self.max_class_share)
            if certain is not None:
                return certain, None
        label = cut_label(photo, size, window)
        classes = label if label.ndim == 2 else label[..., 0]  # scores may follow the classes
        return is_varied(classes, self.max_class_share), label

    def _draw(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        height, width = (min(edge, self.crop_size) for edge in size)
        top = int(rng.integers(size[0] - height + 1))
        left = int(rng.integers(size[1] - width + 1))
        return Window(top, left, height, width)

    def _fill(self, pixels: NDArray[np.uint8], value: int | tuple[int, ...]) -> NDArray[np.uint8]:
        if pixels.shape[:2] == (self.crop_size, self.crop_size):
            return pixels
        filled = np.full((self.crop_size, self.crop_size, *pixels.shape[2:]), value, np.uint8)
        filled[: pixels.shape[0], : pixels.shape[1]] = pixels
        return filled


def is_varied(label: NDArray[np.uint8], max_class_share: float) -> bool:
    """Whether the label shows two classes or more and none has ``max_class_share`` of the labelled pixels."""
    if max_class_share >= 1:
        return True
    # Class by class, because a histogram is slow where neighbours are equal, as in label maps they are.
    labelled = label.size - int(np.count_nonzero(label == IGNORE))
    counts: list[int] = []
    while sum(counts) < labelled:
        counts.append(int(np.count_nonzero(label == len(counts))))
    several = sum(count > 0 for count in counts) > 1
    return several and max(counts) < max_class_share * labelled


def cut_label(photo: LabelledPhoto, size: tuple[int, int], window: Window) -> NDArray[np.uint8]:
    """The window of the label map scaled to ``size`` (nearest), reading only what lies under it."""
    if size == photo.size:
        return photo.label(window)
    rows, columns = _label_grid(photo, size, window)
    top, left = int(rows[0]), int(columns[0])
    source = photo.label(Window(top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1))
    # Taking rows copies whole lines, so columns are taken as rows of the transposed map: twice as fast. What makes
    # the map smaller comes first.
    if window.height < source.shape[0]:
        return _transposed(_transposed(source.take(rows - top, axis=0)).take(columns - left, axis=0))
    return _transposed(_transposed(source).take(columns - left, axis=0)).take(rows - top, axis=0)


def cut_image(photo: LabelledPhoto, size: tuple[int, int], window: Window) -> NDArray[np.uint8]:
    """The window of the photo scaled to ``size`` (bilinear), reading only what lies under it."""
    if size == photo.size:
        return photo.image(window)
    top, height = _source_range(window.top, window.height, photo.size[0], size[0])
    left, width = _source_range(window.left, window.width, photo.size[1], size[1])
    # Both factors are given, not the size, which would change them by up to a source pixel over the window. OpenCV
    # copies where they change the window's size by less than half a pixel.
    scaled = cv2.resize(
        photo.image(Window(top, left, height, width)),
        None,
        fx=size[1] / photo.size[1],
        fy=size[0] / photo.size[0],
        interpolation=cv2.INTER_LINEAR,
    )
    return scaled[: window.height, : window.width].astype(np.uint8, copy=False)


def _transposed(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, C) to (W, H) or (W, H, C)."""
    if label.ndim == 3 and label.shape[2] > 4:  # OpenCV transposes pixels of some sizes only
        return np.ascontiguousarray(label.swapaxes(0, 1))
    return cv2.transpose(label).astype(np.uint8, copy=False)


def _label_grid(
    photo: LabelledPhoto, size: tuple[int, int], window: Window
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the label map that the window of the scaled photo shows."""
    rows = _nearest(window.top, window.height, photo.size[0], size[0])
    return rows, _nearest(window.left, window.width, photo.size[1], size[1])


def _nearest(start: int, length: int, source: int, scaled: int) -> NDArray[np.intp]:
    """Source pixels that contain the centres of scaled pixels, along one axis."""
    centres = (2 * np.arange(length, dtype=np.intp) + 1) * source
    # In integers: floor((i + 0.5) * source / scaled) without rounding.
    return _origin(start, source, scaled) + centres // (2 * scaled)


def _source_range(start: int, length: int, source: int, scaled: int) -> tuple[int, int]:
    """First source pixel under a window, and how many its bilinear sampling needs, along one axis."""
    first = _origin(start, source, scaled)
    covered = -(-length * source // scaled)
    sampled = ((2 * length - 1) * source + 3 * scaled) // (
        2 * scaled
    )  # with the last centre's right neighbour
    return first, min(max(covered, sampled), source - first)


def _origin(start: int, source: int, scaled: int) -> int:
    """The source pixel where a window begins that starts at pixel ``start`` of the scaled photo."""
    return start * source // scaled

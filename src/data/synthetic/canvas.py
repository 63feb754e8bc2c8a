"""The drawing surface of the synthetic scenes: every stroke writes a colour and a material in one call.

The canvas is an (H, W, 4) uint8 array: red, green, blue and the index of a material. Image and label come from
the same array, so they agree to the pixel, however thin the shape. Nothing is anti-aliased here: the finished
image is softened a little, the label is not.

Geometry is normalised: one unit is the image height, x grows to the right from 0 to W/H, y grows downwards
from 0 to 1. The same geometry on a larger canvas gives the same picture with finer detail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

import cv2
import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike  # a colour is three of them, red green blue, 0..255

_SUBPIXEL_BITS = 4
_BENCHMARK_SIZE = (4096 * 3072) ** 0.5
_BAND = 64  # rows
_MOST_SAMPLES = 120  # up to here marking an ellipse's pixels is faster than filling a polygon
_AT_ONCE = 2048  # ellipses whose temporary arrays fit the processor's cache
_OCTAGON = np.stack([f(np.arange(8) * np.pi / 4) for f in (np.cos, np.sin)], 1).astype(np.float32)


class Material(IntEnum):
    """What a pixel is made of; each material belongs to one class and has a grain (`textures.grain_bank`)."""

    AIR = 0
    WATER = 1
    GRASS = 2
    SAND = 3
    PAVING = 4
    CONCRETE = 5
    BRICK = 6
    GLASS = 7
    ROOF = 8
    FOLIAGE = 9
    WOODLAND = 10
    BARK = 11
    SKIN = 12
    CLOTH = 13
    HAIR = 14
    METAL = 15
    WOOD = 16


CLASS_OF_MATERIAL: Mapping[Material, str] = {
    Material.AIR: "sky",
    Material.WATER: "water",
    Material.GRASS: "ground",
    Material.SAND: "ground",
    Material.PAVING: "ground",
    Material.CONCRETE: "building",
    Material.BRICK: "building",
    Material.GLASS: "building",
    Material.ROOF: "building",
    Material.FOLIAGE: "tree",
    Material.WOODLAND: "tree",
    Material.BARK: "tree",
    Material.SKIN: "person",
    Material.CLOTH: "person",
    Material.HAIR: "person",
    Material.METAL: "background",
    Material.WOOD: "background",
}


class Canvas:
    """An image and its materials, drawn upon from back to front.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.height = height
        self.width = width
        self.aspect = width / height

    def label(self, class_ids: Mapping[str, int]) -> np.ndarray:
        """The label map, (H, W) uint8, under a mapping from class name to id."""
        table = np.zeros(256, np.uint8)
        for material, name in CLASS_OF_MATERIAL.items():
            table[material] = class_ids[name]
        return np.take(table, self.pixels[..., 3])

    def bands(self, top: int = 0, bottom: int | None = None) -> Iterator[slice]:
        """The rows in slices whose temporary arrays fit the processor's cache."""
        bottom = self.height if bottom is None else bottom
        for first in range(top, bottom, _BAND):
            yield slice(first, min(first + _BAND, bottom))

    def hairline(self, pixels: float) -> int:
        """Thickness in pixels of a line that has `pixels` at 12 megapixels; it shrinks slower than the image."""
        return max(1, round(pixels * (self.height * self.width) ** 0.25 / _BENCHMARK_SIZE**0.5))

    def polygon(self, points: Numbers, colour: Numbers, material: Material) -> None:
        """Fill any polygon, (N, 2)."""
        ink = (*np.asarray(colour, float).tolist(), int(material))
        cv2.fillPoly(self.pixels, [self._fixed(points)], ink, cv2.LINE_8, _SUBPIXEL_BITS)

    def convex(self, polygons: Numbers, colours: Numbers, material: Material) -> None:
        """Fill many convex polygons (N, corners, 2), each in its colour (N, 3) or all in one (3,)."""
        for corners, ink in self._inked(polygons, colours, material):
            cv2.fillConvexPoly(self.pixels, corners, ink, cv2.LINE_8, _SUBPIXEL_BITS)

    def lines(self, paths: Numbers, colours: Numbers, material: Material, thickness: float) -> None:
        """Draw many open paths (N, points, 2); `thickness` as in `hairline`."""
        pixels = self.hairline(thickness)
        for path, ink in self._inked(paths, colours, material):
            cv2.polylines(self.pixels, [path], False, ink, pixels, cv2.LINE_8, _SUBPIXEL_BITS)

    def ellipses(
        self,
        centres: np.ndarray,
        axes: np.ndarray,
        angles: np.ndarray,
        colours: np.ndarray,
        material: Material,
    ) -> None:
        """Draw thousands of small ellipses, later ones over earlier ones.

        Args:
            centres: (N, 2).
            axes: (N, 2) half axes; the smallest ellipse still marks a pixel.
            angles: (N,) in radians.
            colours: (N, 3).
            material: of all of them.
        """
        axes = np.maximum(axes * self.height, 0.5)
        seen = np.all((centres >= 0) & (centres < (self.aspect, 1)), axis=1)
        if not seen.any():
            return
        samples = _disc_samples(axes.max(0))
        shape = samples if len(samples) <= _MOST_SAMPLES else _OCTAGON
        for first in range(0, len(axes), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            keep = seen[part]
            a, b = axes[part][keep].T.astype(np.float32)[..., None]
            turn = angles[part][keep, None].astype(np.float32)
            cos, sin = np.cos(turn), np.sin(turn)
            u, v = a * shape[:, 0], b * shape[:, 1]
            x, y = (centres[part][keep].T * self.height).astype(np.float32)[..., None]
            points = x + u * cos - v * sin, y + u * sin + v * cos
            if shape is samples:
                self._mark(*points, colours[part][keep], material)
            else:
                self.convex(np.stack(points, -1) / self.height, colours[part][keep], material)

    def shadow(self, centre: Numbers, axes: Numbers, strength: float) -> None:
        """Darken a soft ellipse: by `strength` (0..1) in the middle, not at all at its rim."""
        (cx, cy), (ax, ay) = np.asarray(centre, float) * self.height, np.asarray(axes, float) * self.height
        top, bottom = max(0, int(cy - ay)), min(self.height, int(cy + ay) + 1)
        left, right = max(0, int(cx - ax)), min(self.width, int(cx + ax) + 1)
        if top >= bottom or left >= right:
            return
        x = ((np.arange(left, right, dtype=np.float32) - cx) / ax) ** 2
        for rows in self.bands(top, bottom):
            y = ((np.arange(rows.start, rows.stop, dtype=np.float32) - cy) / ay) ** 2
            gain = 1 - strength * np.clip(1 - x[None, :] - y[:, None], 0, 1)
            colours = self.pixels[rows, left:right, :3]
            np.multiply(colours, gain[..., None], out=colours, casting="unsafe")

    def _mark(self, x: np.ndarray, y: np.ndarray, colours: np.ndarray, material: Material) -> None:
        """Colour the pixels under points (N, S) of N small shapes; what crosses the border is pressed against it."""
        ink = np.empty((len(colours), 4), np.uint8)
        ink[:, :3] = np.clip(colours, 0, 255)
        ink[:, 3] = material
        index = np.clip(y, 0, self.height - 1).astype(np.int32) * self.width
        index += np.clip(x, 0, self.width - 1).astype(np.int32)
        self.pixels.view(np.uint32).reshape(-1)[index] = ink.view(np.uint32)

    def _inked(
        self, shapes: Numbers, colours: Numbers, material: Material
    ) -> Iterator[tuple[np.ndarray, tuple[float, ...]]]:
        points = self._fixed(shapes)
        inks = np.broadcast_to(np.asarray(colours, float), (len(points), 3)).tolist()
        for shape, (red, green, blue) in zip(points, inks, strict=True):
            yield shape, (red, green, blue, int(material))

    def _fixed(self, points: Numbers) -> np.ndarray:
        """Normalised points as OpenCV's fixed-point pixels; pixel centres lie at whole numbers there."""
        pixels = np.asarray(points, float) * self.height - 0.5
        return np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _disc_samples(axes: np.ndarray) -> np.ndarray:
    """Points (S, 2) of the unit disc, dense enough to leave no gap in an ellipse of these half axes in pixels."""
    u, v = (np.linspace(-1, 1, int(np.ceil(axis * 2 / 0.7)) | 1) for axis in axes)
    grid = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    return grid[(grid**2).sum(1) <= 1.05].astype(np.float32)

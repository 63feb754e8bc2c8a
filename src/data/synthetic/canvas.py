"""The drawing surface of the synthetic scenes: every stroke writes a colour and a material in one call.

The canvas is an (H, W, 4) uint8 array: red, green, blue and the index of a material. Image and label come from
the same array, so they agree to the pixel, however thin the shape. Nothing is anti-aliased here; the finished image is
softened a little, the label is not.

Geometry is normalised: one unit is the image height, x grows to the right from 0 to W/H, y grows downwards from
0 to 1. The same geometry on a larger canvas gives the same picture with finer detail.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import cv2
import numpy as np
import numpy.typing as npt

Colour = npt.ArrayLike  # three numbers, red green blue, 0..255
Points = npt.ArrayLike  # (N, 2) x and y, normalised

_SUBPIXEL_BITS = 4
_REFERENCE_SIZE = (4096 * 3072) ** 0.5
_SAMPLES_AT_ONCE = 2_000_000


class Material(IntEnum):
    """What a pixel is made of; each material has a grain (`textures.grain_bank`) and belongs to one class."""

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
    BARK = 10
    SKIN = 11
    CLOTH = 12
    HAIR = 13
    METAL = 14
    WOOD = 15


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

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, a copy."""
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGBA2RGB)

    @property
    def materials(self) -> np.ndarray:
        """(H, W) uint8 indices of `Material`, a copy."""
        return np.ascontiguousarray(self.pixels[..., 3])

    def label(self, class_ids: Mapping[str, int]) -> np.ndarray:
        """The label map, (H, W) uint8, under a mapping from class name to id."""
        table = np.zeros(256, np.uint8)
        for material, name in CLASS_OF_MATERIAL.items():
            table[material] = class_ids[name]
        return cv2.LUT(self.materials, table)

    def hairline(self, pixels: float) -> int:
        """Thickness in pixels of a line that is `pixels` thick at 12 megapixels; shrinks slower than the image."""
        return max(1, round(pixels * (self.height * self.width) ** 0.25 / _REFERENCE_SIZE**0.5))

    def polygon(self, points: Points, colour: Colour, material: Material) -> None:
        """Fill any simple polygon."""
        cv2.fillPoly(self.pixels, [self._fixed(points)], _ink(colour, material), cv2.LINE_8, _SUBPIXEL_BITS)

    def convex(self, polygons: npt.ArrayLike, colours: npt.ArrayLike, material: Material) -> None:
        """Fill many convex polygons of equally many corners, (N, corners, 2), each in its colour, (N, 3) or (3,)."""
        corners = self._fixed(polygons)
        inks = np.broadcast_to(np.asarray(colours, float), (len(corners), 3)).tolist()
        for corner, ink in zip(corners, inks, strict=True):
            cv2.fillConvexPoly(self.pixels, corner, (*ink, int(material)), cv2.LINE_8, _SUBPIXEL_BITS)

    def ellipse(
        self, centre: Points, axes: Points, colour: Colour, material: Material, degrees: float = 0.0
    ) -> None:
        """Fill one ellipse with the given half axes."""
        turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        tilt = np.deg2rad(degrees)
        local = np.stack([np.cos(turn), np.sin(turn)], 1) * np.asarray(axes, float)
        rotation = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        self.convex([local @ rotation + np.asarray(centre, float)], colour, material)

    def lines(
        self, paths: npt.ArrayLike, colours: npt.ArrayLike, material: Material, thickness: float = 1
    ) -> None:
        """Draw many open paths (N, points, 2); `thickness` is in pixels at 12 megapixels, see `hairline`."""
        fixed = self._fixed(paths)
        inks = np.broadcast_to(np.asarray(colours, float), (len(fixed), 3)).tolist()
        pixels = self.hairline(thickness)
        for path, ink in zip(fixed, inks, strict=True):
            cv2.polylines(
                self.pixels, [path], False, (*ink, int(material)), pixels, cv2.LINE_8, _SUBPIXEL_BITS
            )

    def limb(self, start: Points, end: Points, radii: Points, colour: Colour, material: Material) -> None:
        """Draw a tapered rod with round ends; `radii` at the start and at the end, normalised."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        first, last = np.asarray(radii, float)
        along = (end - start) / max(float(np.hypot(*(end - start))), 1e-9)
        across = np.array([-along[1], along[0]])
        corners = [start + across * first, end + across * last, end - across * last, start - across * first]
        self.convex([corners], colour, material)
        self.ellipse(start, (first, first), colour, material)
        self.ellipse(end, (last, last), colour, material)

    def scatter(
        self,
        centres: np.ndarray,
        axes: np.ndarray,
        angles: np.ndarray,
        colours: np.ndarray,
        material: Material,
    ) -> None:
        """Draw thousands of small ellipses at once, later ones over earlier ones.

        Args:
            centres: (N, 2).
            axes: (N, 2) half axes, normalised; ellipses below a pixel still mark one.
            angles: (N,) in radians.
            colours: (N, 3) in 0..255.
            material: of all of them.
        """
        axes_px = np.maximum(axes * self.height, 0.5)
        samples = _unit_disc(float(axes_px[:, 0].max()), float(axes_px[:, 1].max()))
        packed = np.empty((len(centres), 4), np.uint8)
        packed[:, :3] = np.clip(colours, 0, 255)
        packed[:, 3] = material
        inks = packed.view(np.uint32)[:, 0]
        surface = self.pixels.view(np.uint32)[..., 0]
        rotation = np.stack([np.cos(angles), np.sin(angles)], 1)
        step = max(1, _SAMPLES_AT_ONCE // len(samples))
        for begin in range(0, len(centres), step):
            chunk = slice(begin, begin + step)
            cos, sin = rotation[chunk, :1], rotation[chunk, 1:]
            u = axes_px[chunk, :1] * samples[:, 0]
            v = axes_px[chunk, 1:] * samples[:, 1]
            x = np.floor(centres[chunk, :1] * self.height + u * cos - v * sin).astype(np.int32)
            y = np.floor(centres[chunk, 1:] * self.height + u * sin + v * cos).astype(np.int32)
            inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
            surface[y[inside], x[inside]] = np.broadcast_to(inks[chunk, None], x.shape)[inside]

    def shadow(self, centre: Points, axes: Points, strength: float) -> None:
        """Darken a soft ellipse: by `strength` (0..1) in the middle, not at all at its rim."""
        (cx, cy), (ax, ay) = np.asarray(centre, float) * self.height, np.asarray(axes, float) * self.height
        top, bottom = max(0, int(cy - ay)), min(self.height, int(cy + ay) + 1)
        left, right = max(0, int(cx - ax)), min(self.width, int(cx + ax) + 1)
        if top >= bottom or left >= right:
            return
        x = ((np.arange(left, right, dtype=np.float32) - cx) / ax) ** 2
        y = ((np.arange(top, bottom, dtype=np.float32) - cy) / ay) ** 2
        gain = 1 - strength * np.clip(1 - x[None, :] - y[:, None], 0, 1) ** 0.7
        colours = self.pixels[top:bottom, left:right, :3]
        np.multiply(colours, gain[..., None], out=colours, casting="unsafe")

    def _fixed(self, points: npt.ArrayLike) -> np.ndarray:
        """Normalised points as OpenCV's fixed-point pixels; pixel centres lie at whole numbers there."""
        pixels = np.asarray(points, float) * self.height - 0.5
        return np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _ink(colour: Colour, material: Material) -> tuple[float, ...]:
    return (*np.asarray(colour, float).tolist(), int(material))


def _unit_disc(major: float, minor: float) -> np.ndarray:
    """Sample points (S, 2) of the unit disc, dense enough to leave no gap in an ellipse of these axes in pixels."""
    u = np.linspace(-1, 1, int(np.ceil(major * 2 / 0.7)) | 1)
    v = np.linspace(-1, 1, int(np.ceil(minor * 2 / 0.7)) | 1)
    grid = np.stack(np.meshgrid(u, v), -1).reshape(-1, 2)
    return grid[(grid**2).sum(1) <= 1.05]

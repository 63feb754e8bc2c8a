"""Draw a thing in metres: the brush knows where it stands, how large it looks there and in which light."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from src.data.synthetic.canvas import Canvas, Material, Numbers
from src.data.synthetic.view import Camera, Weather

_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 40, endpoint=False)) for f in (np.cos, np.sin)], 1)


@dataclass(frozen=True)
class Brush:
    """A place on the ground from which one thing is drawn.

    All points and lengths of its methods are metres from that place, x to the right and y upwards; all colours are
    those of the material in white light.

    Attributes:
        canvas: drawn upon.
        weather: the light and the haze.
        camera: gives the perspective.
        x: normalised x of the place.
        distance: metres from the camera.
    """

    canvas: Canvas
    weather: Weather
    camera: Camera
    x: float
    distance: float

    @property
    def metre(self) -> float:
        """Normalised length of a metre here."""
        return 1 / self.distance

    def farther(self, distance: float, x: float) -> Brush:
        """The same brush at another place."""
        return replace(self, distance=distance, x=x)

    def place(self, points: Numbers) -> np.ndarray:
        """Points (..., 2) in normalised coordinates."""
        foot = (self.x, self.camera.y(self.distance))
        return np.asarray(points, float) * (self.metre, -self.metre) + foot

    def lit(self, colour: Numbers) -> np.ndarray:
        """A colour (..., 3) as it looks here."""
        return self.weather.lit(colour, self.distance)

    def polygon(self, points: Numbers, colour: Numbers, material: Material) -> None:
        """Fill any polygon, (N, 2)."""
        self.canvas.polygon(self.place(points), self.lit(colour), material)

    def convex(self, polygons: Numbers, colours: Numbers, material: Material) -> None:
        """Fill many convex polygons of equally many corners, (N, corners, 2)."""
        self.canvas.convex(self.place(polygons), self.lit(colours), material)

    def boxes(self, boxes: Numbers, colours: Numbers, material: Material) -> None:
        """Fill many upright rectangles, (N, 4) as left, right, bottom, top."""
        left, right, bottom, top = np.asarray(boxes, float).T
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        self.convex(np.transpose(corners, (2, 0, 1)), colours, material)

    def lines(self, paths: Numbers, colours: Numbers, material: Material, thickness: float) -> None:
        """Draw open paths (N, points, 2); `thickness` in pixels at 12 megapixels."""
        self.canvas.lines(self.place(paths), self.lit(colours), material, thickness)

    def ellipse(self, centre: Numbers, axes: Numbers, colour: Numbers, material: Material) -> None:
        """Fill an upright ellipse with these half axes."""
        self.convex([_CIRCLE * np.asarray(axes) + np.asarray(centre)], colour, material)

    def ellipses(
        self,
        centres: np.ndarray,
        axes: np.ndarray,
        angles: np.ndarray,
        colours: np.ndarray,
        material: Material,
    ) -> None:
        """Draw many small ellipses, see `Canvas.ellipses`."""
        self.canvas.ellipses(self.place(centres), axes * self.metre, angles, self.lit(colours), material)

    def rod(self, path: Numbers, radii: Numbers, colour: Numbers, material: Material) -> None:
        """Draw a jointed rod with round joints along (N, 2) points, with a radius at each."""
        points, widths = np.asarray(path, float), np.asarray(radii, float)
        for first, last, start, end in zip(points, points[1:], widths, widths[1:], strict=False):
            along = (last - first) / max(float(np.hypot(*(last - first))), 1e-9)
            across = np.array([-along[1], along[0]])
            corners = [
                first + across * start,
                last + across * end,
                last - across * end,
                first - across * start,
            ]
            self.convex([corners], colour, material)
        for point, radius in zip(points, widths, strict=True):
            self.ellipse(point, (radius, radius), colour, material)

    def shadow(self, half_width: float, half_depth: float, height: float = 0.0) -> None:
        """Darken the ground around the place; what is `height` tall throws it away from the sun."""
        slide = -self.weather.sun * height * 0.3
        axes = np.array((half_width + abs(slide), half_depth)) * self.metre
        self.canvas.shadow(self.place((slide, 0)), axes, self.weather.shadow)

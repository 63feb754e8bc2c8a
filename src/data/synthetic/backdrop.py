"""The large surfaces of a scene: sky with clouds, wooded hills, ground in perspective, water with reflections."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.textures import fractal_noise, ridge, slabs, wrap
from src.data.synthetic.view import Camera, Weather, pick

_SKY_ROWS = 384  # the sky is smooth: it is computed at most this high and enlarged
_GROUND = {
    Material.GRASS: ((84, 108, 50), (100, 122, 60), (124, 126, 72), (72, 98, 54)),
    Material.SAND: ((206, 188, 150), (188, 166, 126), (166, 144, 112), (196, 190, 178)),
    Material.PAVING: ((150, 148, 144), (176, 170, 160), (128, 130, 132), (158, 144, 130)),
}
_WATER = ((38, 74, 96), (54, 96, 104), (70, 90, 86), (30, 66, 112), (92, 108, 112))


@dataclass(frozen=True)
class Backdrop:
    """Paints surfaces that fill the canvas.

    Attributes:
        canvas: painted upon.
        weather: the light and the sky.
        camera: gives the perspective.
    """

    canvas: Canvas
    weather: Weather
    camera: Camera

    def sky(self, rng: np.random.Generator) -> None:
        """Gradient, glow of the sun, and clouds on a plane overhead; covers the whole canvas."""
        canvas, weather = self.canvas, self.weather
        rows = min(_SKY_ROWS, canvas.height)
        columns = round(rows * canvas.aspect)
        y, x = (np.mgrid[:rows, :columns] + 0.5).astype(np.float32) / rows
        elevation = np.maximum(self.camera.horizon - y, 0)
        height = (elevation / self.camera.horizon)[..., None] ** 0.85
        colours = (weather.zenith, weather.haze, weather.cloud_dark, weather.cloud_light)
        zenith, haze, dark, bright = np.asarray(colours, np.float32)
        sky = haze * (1 - height) + zenith * height

        sun = ((0.5 + 0.6 * weather.sun) * canvas.aspect, self.camera.horizon * rng.uniform(0.1, 0.8))
        glow = np.exp(-((x - sun[0]) ** 2 + (y - sun[1]) ** 2) / 0.12)[..., None]
        sky += glow * (np.minimum(haze * 1.25, 255) - sky) * 0.6

        noise = fractal_noise(rng, self._tile, 4, 4, 7)
        start = rng.random(2).tolist()
        away = 1 / (0.09 + elevation)
        u, v = (x - canvas.aspect / 2) * away * 0.07 + start[0], away * 0.09 + start[1]
        density = wrap(noise, u, v)
        towards_sun = wrap(noise, u + 0.014 * weather.sun, v + 0.01)
        excess = density - (1.6 - 3.0 * weather.cover)
        opacity = np.clip(excess / 0.9, 0, 1)[..., None] ** 0.8
        light = np.clip(0.62 + 0.55 * (density - towards_sun) - 0.22 * excess, 0, 1)[..., None]
        clouds = dark * (1 - light) + bright * light
        clouds += (haze - clouds) * np.exp(-elevation / 0.10)[..., None] * 0.7
        sky += (clouds - sky) * opacity

        # Enlarged in 1/16 of a grey level, then dithered: the gradients show no steps.
        size = (canvas.width, canvas.height)
        fine = cv2.resize((np.clip(sky, 0, 254) * 16).astype(np.uint16), size, interpolation=cv2.INTER_LINEAR)
        dither = np.tile(rng.integers(0, 16, (64, 64, 1), np.uint16), (1, canvas.width // 64 + 1, 1))
        for band in canvas.bands():
            steps = dither[: band.stop - band.start, : canvas.width]
            canvas.pixels[band, :, :3] = (fine[band] + steps) >> 4
        canvas.pixels[..., 3] = Material.AIR

    def hills(self, rng: np.random.Generator) -> None:
        """One to three wooded ridges along the horizon, the farthest first, each with a leafy skyline."""
        layers = int(rng.integers(1, 4))
        green = pick(rng, ((58, 84, 48), (74, 92, 52), (66, 78, 60), (96, 84, 48)))
        points, horizon = 500, self.camera.horizon
        x = np.linspace(-0.02, self.canvas.aspect + 0.02, points)
        for layer in range(layers):
            near = (layer + 1) / layers
            rise = 0.05 * (1.25 - near) + 0.05 * (1.3 - near) * ridge(rng, points, 3)
            top = horizon - np.maximum(rise, 0.006)
            colour = self.weather.lit(green, self.weather.visibility * (1.7 - 1.3 * near))
            outline = [*zip(x, top, strict=True), (x[-1], horizon + 0.01), (x[0], horizon + 0.01)]
            self.canvas.polygon(outline, colour, Material.WOODLAND)
            crowns = 1200
            at = rng.uniform(x[0], x[-1], crowns)
            centres = np.stack([at, np.interp(at, x, top) + rng.uniform(-0.001, 0.012, crowns) * near], 1)
            axes = rng.uniform(0.001, 0.005, (crowns, 2)) * (0.4 + near)
            shades = colour * rng.uniform(0.84, 1.1, (crowns, 1))
            self.canvas.ellipses(centres, axes, rng.uniform(0, 3, crowns), shades, Material.WOODLAND)

    def ground(self, rng: np.random.Generator, material: Material) -> None:
        """Everything below the horizon."""
        self._plane(rng, material, np.ones(self.canvas.pixels.shape[:2], np.bool_))

    def path(self, rng: np.random.Generator, material: Material) -> None:
        """A road or a path from the foreground towards the horizon."""
        depth = np.linspace(0, 1, 60) ** 2
        y = self.camera.horizon + 0.012 + depth * (1.02 - self.camera.horizon)
        vanishing = rng.uniform(0.2, 0.8) * self.canvas.aspect
        bend = 0.05 * np.sin(depth * 6 + rng.uniform(0, 6)) * (1 - depth)
        left = vanishing + rng.uniform(-1.0, 0.2) * depth + bend
        right = left + 0.012 + rng.uniform(0.3, 0.9) * depth
        outline = np.concatenate([np.stack([left, y], 1), np.stack([right, y], 1)[::-1]])
        mask = np.zeros(self.canvas.pixels.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.rint(outline * self.canvas.height).astype(np.int32)], 1)
        self._plane(rng, material, mask.view(np.bool_))

    def _plane(self, rng: np.random.Generator, material: Material, mask: np.ndarray) -> None:
        """Paint the ground under an (H, W) mask with a texture that recedes to the horizon."""
        fine, metres = {
            Material.GRASS: lambda: (fractal_noise(rng, self._tile, 64, 128, 3), 4.0),
            Material.SAND: lambda: (fractal_noise(rng, self._tile, 32, 16, 5) * 0.6, 6.0),
            Material.PAVING: lambda: (slabs(rng, self._tile, 8), rng.uniform(3, 6)),
        }[material]()
        coarse = fractal_noise(rng, self._tile // 2, 4, 4, 5)
        turn = rng.uniform(-0.5, 0.5) if material is Material.PAVING else 0.0
        colour = pick(rng, _GROUND[material])
        # A ramp of 256 shades from the dark to the light end; grass turns yellow where it is light.
        level = np.linspace(-1, 1, 256)[:, None]
        lightest = np.array((0.3, 0.2, 0.1) if material is Material.GRASS else (0.18, 0.18, 0.18))
        shades = colour * (1 + np.where(level > 0, lightest, 0.34) * level)
        for band in self.canvas.bands(round((self.camera.horizon + 0.002) * self.canvas.height)):
            if not mask[band].any():
                continue
            across, away, below = self._plane_coordinates(band)
            east, north = (
                across * np.cos(turn) - away * np.sin(turn),
                across * np.sin(turn) + away * np.cos(turn),
            )
            near = np.clip(below / 0.05, 0, 1)  # finer than a pixel towards the horizon
            value = wrap(fine, east / metres, north / metres) * near * 0.5
            value += wrap(coarse, east / 26, north / 26) * (0.25 + 0.35 * near)
            ramp = self.weather.lit(shades, float(away[len(away) // 2, 0])).astype(np.uint8)
            texture = np.take(ramp, np.clip(value * 48 + 128, 0, 255).astype(np.uint8), axis=0)
            _fill(self.canvas.pixels[band], texture, material, mask[band])

    def water(self, rng: np.random.Generator, far: float, near: np.ndarray) -> None:
        """Water between two shores: ripples, and a broken mirror image of what is already drawn behind it.

        Args:
            rng: source of randomness.
            far: normalised y of the far shore, below the horizon.
            near: (N,) normalised y of the near shore from the left to the right border.
        """
        canvas = self.canvas
        shore = np.interp(np.arange(canvas.width), np.linspace(0, canvas.width - 1, len(near)), near)
        top = round(far * canvas.height)
        bottom = min(canvas.height, round(float(near.max()) * canvas.height) + 1)
        waves = fractal_noise(rng, self._tile, 32, 16, 4)
        metres, swell = rng.uniform(8, 16), rng.uniform(0.3, 1.0)
        body = self.weather.lit(pick(rng, _WATER), 10).astype(np.float32)
        clearness = rng.uniform(0.55, 0.8)
        mirrored = cv2.cvtColor(canvas.pixels[:top], cv2.COLOR_RGBA2RGB)
        columns = np.arange(canvas.width, dtype=np.float32)[None, :]
        for band in canvas.bands(top, bottom):
            across, away, below = self._plane_coordinates(band)
            ripple = wrap(waves, across / metres, np.broadcast_to(away / metres, across.shape))
            shake = ripple * (0.002 + 0.012 * swell * np.minimum(1, below / 0.08)) * canvas.height
            rows = np.arange(band.start, band.stop, dtype=np.float32)[:, None]
            mirror = np.clip(top - (rows - top) * 1.15 + shake * 1.5, 0, top - 1)
            seen = cv2.remap(
                mirrored, columns + shake * 0.5, mirror, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            strength = (clearness - 0.4 * np.clip(below / 0.5, 0, 1))[..., None]
            gain = (1 + 0.10 * ripple * np.minimum(1, below / 0.03))[..., None]
            colours = np.clip((body + (seen - body) * strength) * gain, 0, 255)
            wet = rows < shore * canvas.height
            region = canvas.pixels[band]
            np.copyto(region[..., :3], colours, where=wet[..., None], casting="unsafe")
            np.copyto(region[..., 3], np.uint8(Material.WATER), where=wet)

    @property
    def _tile(self) -> int:
        """Side of texture tiles in pixels: a power of two near half the canvas."""
        return int(2 ** np.clip(np.round(np.log2(self.canvas.height / 2.5)), 6, 10))

    def _plane_coordinates(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of pixels on the ground: metres across (R, W) and away (R, 1), and y below the horizon (R, 1)."""
        y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / self.canvas.height
        below = np.maximum(y - np.float32(self.camera.horizon), 2e-3)[:, None]
        x = (np.arange(self.canvas.width, dtype=np.float32) + 0.5) / self.canvas.height
        away = np.float32(self.camera.height) / below
        return (x - np.float32(self.canvas.aspect / 2))[None, :] * away, away, below


def _fill(region: np.ndarray, colours: np.ndarray, material: Material, mask: np.ndarray) -> None:
    """Write colours (R, W, 3) and a material where a mask (R, W) holds."""
    np.copyto(region[..., :3], colours, where=mask[..., None], casting="unsafe")
    np.copyto(region[..., 3], np.uint8(material), where=mask)

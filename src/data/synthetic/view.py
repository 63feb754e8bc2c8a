"""Where things stand and in which light: a pinhole camera over flat ground, and the weather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Spot:
    """A place on the ground, with the scale that things have there.

    Attributes:
        x: normalised, as in `Canvas`.
        y: normalised; where the ground is touched.
        metre: normalised length of one metre at that distance.
    """

    x: float
    y: float
    metre: float

    def place(self, metres: npt.ArrayLike) -> np.ndarray:
        """Points (..., 2) in metres, x to the right and y upwards from the spot, in normalised coordinates."""
        return np.asarray(metres, float) * (self.metre, -self.metre) + (self.x, self.y)


@dataclass(frozen=True)
class Camera:
    """A level camera over flat ground.

    Attributes:
        horizon: normalised y of the horizon.
        height: of the camera over the ground, in metres.
    """

    horizon: float
    height: float

    def spot(self, x: float, y: float) -> Spot:
        """The ground point seen at (x, y); y must lie below the horizon."""
        return Spot(x, y, (y - self.horizon) / self.height)

    def distance(self, y: float) -> float:
        """Metres to the ground seen at y, for a lens as high as its focal length (53 degrees upright)."""
        return self.height / (y - self.horizon)


@dataclass(frozen=True)
class Weather:
    """Colours of sky and light, all RGB in 0..255 or factors around 1.

    Attributes:
        zenith: sky colour far above.
        haze: sky colour at the horizon; far things fade into it.
        cloud_light: sunlit cloud.
        cloud_dark: underside of a cloud.
        cover: how much of the sky clouds cover, 0..1.
        tint: factor of the light on everything, per channel.
        shadow: depth of shadows, 0..1.
        sun: horizontal direction of the sun, -1 left to 1 right.
        visibility: metres over which things fade to a third.
    """

    zenith: np.ndarray
    haze: np.ndarray
    cloud_light: np.ndarray
    cloud_dark: np.ndarray
    cover: float
    tint: np.ndarray
    shadow: float
    sun: float
    visibility: float

    def lit(self, colour: npt.ArrayLike, metres: float = 0.0) -> np.ndarray:
        """A surface colour (..., 3) under this light, seen from `metres` away."""
        fade = np.exp(-metres / self.visibility)
        return np.clip(np.asarray(colour, float) * self.tint * fade + self.haze * (1 - fade), 0, 255)


# zenith, haze, cloud light, cloud dark, least and most cover, tint, shadow, visibility
_SKIES = (
    ((52, 108, 186), (188, 214, 236), (252, 252, 252), (196, 206, 218), 0.00, 0.25, (1.04, 1.02, 0.96), 0.55, 900),
    ((70, 122, 190), (196, 214, 228), (250, 250, 248), (150, 160, 174), 0.35, 0.70, (1.00, 1.00, 0.98), 0.45, 800),
    ((138, 146, 156), (206, 208, 210), (214, 216, 218), (118, 124, 134), 0.80, 1.00, (0.88, 0.90, 0.93), 0.20, 500),
    ((160, 172, 182), (224, 222, 214), (236, 234, 230), (170, 174, 178), 0.55, 0.95, (0.97, 0.96, 0.93), 0.15, 260),
    ((62, 74, 124), (246, 178, 118), (250, 170, 124), (98, 82, 112), 0.30, 0.75, (0.98, 0.80, 0.68), 0.40, 500),
    ((112, 150, 196), (250, 222, 180), (254, 232, 204), (176, 160, 160), 0.10, 0.50, (1.08, 0.97, 0.82), 0.50, 450),
)  # fmt: skip


def draw_weather(rng: np.random.Generator) -> Weather:
    """Fine, broken cloud, overcast, misty, dusk or golden hour, each with its own variation."""
    zenith, haze, light, dark, least, most, tint, shadow, visibility = _SKIES[rng.integers(len(_SKIES))]
    return Weather(
        zenith=vary(rng, zenith, 14),
        haze=vary(rng, haze, 10),
        cloud_light=vary(rng, light, 6),
        cloud_dark=vary(rng, dark, 12),
        cover=float(rng.uniform(least, most)),
        tint=np.asarray(tint) * rng.uniform(0.9, 1.06),
        shadow=shadow * float(rng.uniform(0.8, 1.2)),
        sun=float(rng.uniform(-1, 1)),
        visibility=visibility * float(rng.uniform(0.8, 1.6)),
    )


def vary(rng: np.random.Generator, colour: npt.ArrayLike, spread: float) -> np.ndarray:
    """A colour near the given one: brightness and hue move together and apart by about `spread`."""
    shift = rng.normal(0, spread) + rng.normal(0, spread * 0.5, 3)
    return np.clip(np.asarray(colour, float) + shift, 0, 255)


def pick(rng: np.random.Generator, colours: npt.ArrayLike, spread: float = 12) -> np.ndarray:
    """One colour of a list, varied."""
    choices = np.asarray(colours, float)
    return vary(rng, choices[rng.integers(len(choices))], spread)

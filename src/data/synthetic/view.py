"""Where things stand, in which light: a camera over flat ground, and the weather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.data.synthetic.canvas import Numbers


@dataclass(frozen=True)
class Camera:
    """A level camera over flat ground, its lens as long as the picture is high (53 degrees from top to bottom).

    Attributes:
        horizon: normalised y of the horizon.
        height: of the camera over the ground, in metres.
    """

    horizon: float
    height: float

    def y(self, distance: float) -> float:
        """Normalised y of the ground this many metres away."""
        return self.horizon + self.height / distance

    def distance(self, y: float) -> float:
        """Metres to the ground at a normalised y below the horizon."""
        return self.height / (y - self.horizon)


@dataclass(frozen=True)
class Weather:
    """Colours of sky and light.

    Attributes:
        zenith: sky colour far above, (3,) in 0..255.
        haze: sky colour at the horizon; far things fade into it.
        cloud_light: sunlit cloud.
        cloud_dark: underside of a cloud.
        cover: how much of the sky clouds cover, 0..1.
        tint: (3,) factor of the light on everything.
        shadow: depth of shadows, 0..1.
        sun: where the sun stands, -1 left to 1 right.
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

    @property
    def sunward(self) -> float:
        """1 when the light comes from the right, -1 from the left."""
        return 1.0 if self.sun >= 0 else -1.0

    def lit(self, colour: Numbers, metres: float) -> np.ndarray:
        """A surface colour (..., 3) under this light, seen from `metres` away."""
        clear = np.exp(-metres / self.visibility)
        return np.clip(np.asarray(colour, float) * self.tint * clear + self.haze * (1 - clear), 0, 255)


class _Sky(NamedTuple):
    """The typical colours and light of one kind of weather; fields as in `Weather`, cover as a range."""

    zenith: tuple[int, int, int]
    haze: tuple[int, int, int]
    cloud_light: tuple[int, int, int]
    cloud_dark: tuple[int, int, int]
    cover: tuple[float, float]
    tint: tuple[float, float, float]
    shadow: float
    visibility: float


_SKIES = {
    "fine": _Sky(
        (84, 138, 206), (196, 220, 238), (252, 252, 252), (196, 206, 218), (0.0, 0.25), (1.04, 1.02, 0.96), 0.55, 900
    ),
    "broken cloud": _Sky(
        (92, 142, 200), (200, 218, 232), (250, 250, 248), (150, 160, 174), (0.35, 0.7), (1.0, 1.0, 0.98), 0.45, 800
    ),
    "overcast": _Sky(
        (138, 146, 156), (206, 208, 210), (214, 216, 218), (118, 124, 134), (0.8, 1.0), (0.88, 0.9, 0.93), 0.2, 500
    ),
    "mist": _Sky(
        (160, 172, 182), (224, 222, 214), (236, 234, 230), (170, 174, 178), (0.5, 0.9), (0.97, 0.96, 0.93), 0.15, 200
    ),
    "dusk": _Sky(
        (82, 96, 146), (248, 188, 132), (250, 176, 130), (108, 94, 122), (0.3, 0.65), (0.98, 0.82, 0.7), 0.4, 500
    ),
    "golden hour": _Sky(
        (124, 160, 204), (250, 226, 188), (254, 232, 204), (176, 160, 160), (0.1, 0.5), (1.08, 0.97, 0.82), 0.5, 450
    ),
}  # fmt: skip


def draw_weather(rng: np.random.Generator) -> Weather:
    """One of the skies, with its own variation."""
    sky = list(_SKIES.values())[rng.integers(len(_SKIES))]
    return Weather(
        zenith=vary(rng, sky.zenith, 14),
        haze=vary(rng, sky.haze, 10),
        cloud_light=vary(rng, sky.cloud_light, 6),
        cloud_dark=vary(rng, sky.cloud_dark, 12),
        cover=float(rng.uniform(*sky.cover)),
        tint=np.asarray(sky.tint) * rng.uniform(0.92, 1.06),
        shadow=sky.shadow * float(rng.uniform(0.8, 1.2)),
        sun=float(rng.uniform(-1, 1)),
        visibility=sky.visibility * float(rng.uniform(0.8, 1.6)),
    )


def vary(rng: np.random.Generator, colour: Numbers, spread: float) -> np.ndarray:
    """A colour near the given one; brightness varies by about `spread`, hue by less."""
    shift = rng.normal(0, spread) + rng.normal(0, spread * 0.3, 3)
    return np.clip(np.asarray(colour, float) + shift, 0, 255)


def pick(rng: np.random.Generator, colours: Numbers, spread: float = 12) -> np.ndarray:
    """One colour of a list, varied."""
    choices = np.asarray(colours, float)
    return vary(rng, choices[rng.integers(len(choices))], spread)

"""People: walking and standing figures with clothes, and hair that ends in single strands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import Material, Numbers
from src.data.synthetic.view import pick

_SKIN = ((232, 190, 160), (214, 164, 130), (176, 122, 88), (122, 82, 60), (90, 60, 46))
_HAIR = ((52, 38, 30), (92, 64, 42), (160, 122, 74), (34, 30, 30), (120, 66, 40), (168, 164, 160))
_TOPS = (
    (40, 62, 108), (150, 40, 44), (226, 222, 212), (56, 84, 54), (34, 36, 42), (196, 150, 60),
    (120, 150, 176), (128, 126, 128), (150, 120, 92), (92, 60, 92), (70, 120, 124),
)  # fmt: skip
_TROUSERS = ((52, 66, 92), (44, 44, 48), (128, 116, 96), (88, 92, 96), (76, 84, 62))
_SHOES = np.array((46, 42, 40))


@dataclass(frozen=True)
class _Figure:
    """One person; heights below are those of somebody 1.72 m tall and scale with `size`."""

    brush: Brush
    size: float
    skin: np.ndarray
    hair: np.ndarray
    top: np.ndarray
    legs: np.ndarray
    facing: str  # front, back or side
    turn: float  # 1 when walking to the right, -1 to the left
    breadth: float

    @property
    def sideways(self) -> bool:
        return self.facing == "side"

    def fill(self, points: Numbers, colour: Numbers, material: Material) -> None:
        self.brush.polygon(np.asarray(points) * self.size, colour, material)

    def oval(self, centre: Numbers, axes: Numbers, colour: Numbers, material: Material) -> None:
        self.brush.ellipse(np.asarray(centre) * self.size, np.asarray(axes) * self.size, colour, material)

    def strokes(self, paths: Numbers, colours: Numbers, material: Material, thickness: float) -> None:
        self.brush.lines(np.asarray(paths) * self.size, colours, material, thickness)

    def limb(self, path: Numbers, radii: Numbers, colour: np.ndarray, material: Material) -> None:
        """A jointed limb, darker on the side away from the light."""
        points, widths = np.asarray(path) * self.size, np.asarray(radii) * self.size
        weather = self.brush.weather
        self.brush.rod(points, widths, colour * (1 - 0.35 * weather.shadow), material)
        shift = np.array((weather.sunward * widths.mean() * 0.28, 0))
        self.brush.rod(points + shift, widths * 0.72, colour, material)


def draw_person(brush: Brush, rng: np.random.Generator) -> None:
    """One person, seen from the front, from behind or walking past."""
    facing = str(rng.choice(("front", "back", "side"), p=(0.35, 0.4, 0.25)))
    figure = _Figure(
        brush=brush,
        size=rng.uniform(1.5, 1.92) / 1.72,
        skin=pick(rng, _SKIN, 6),
        hair=pick(rng, _HAIR, 6),
        top=pick(rng, _TOPS),
        legs=pick(rng, _TROUSERS),
        facing=facing,
        turn=float(rng.choice((-1.0, 1.0))),
        breadth=(0.13 if facing == "side" else 0.2) * rng.uniform(0.9, 1.1),
    )
    brush.shadow(0.45, 0.12, 1.7)
    skirt = bool(rng.random() < 0.3)
    _legs(figure, rng, bare=skirt and rng.random() < 0.6)
    arms = _arm_joints(figure, rng)
    sleeves = bool(rng.random() < 0.6)
    _arm(figure, arms[0], sleeves)
    _torso(figure, rng, skirt)
    figure.limb([(0, 1.44), (0, 1.54)], (0.062, 0.055), figure.skin * 0.86, Material.SKIN)
    _head(figure, rng)
    _arm(figure, arms[1], sleeves)


def _legs(figure: _Figure, rng: np.random.Generator, bare: bool) -> None:
    stride = rng.uniform(0.14, 0.38) if figure.sideways else rng.uniform(0.02, 0.09)
    colour, material = (figure.skin, Material.SKIN) if bare else (figure.legs, Material.CLOTH)
    for side in (-1, 1):
        x = side * figure.breadth * 0.45
        ankle = x + side * stride
        knee = (x + ankle) / 2 + (0.04 * figure.turn if figure.sideways else 0.0)
        figure.limb(
            [(x, 0.9), (knee, 0.48), (ankle, 0.08)],
            (0.09, 0.066, 0.048),
            colour * (0.93 + 0.07 * side),
            material,
        )
        toe = ankle + (0.14 * figure.turn if figure.sideways else 0.03 * side)
        figure.limb([(ankle, 0.05), (toe, 0.035)], (0.05, 0.04), _SHOES, Material.CLOTH)


def _arm_joints(figure: _Figure, rng: np.random.Generator) -> list[list[tuple[float, float]]]:
    """Shoulder, elbow and hand of the far and of the near arm; now and then one is raised."""
    arms = []
    for side in (-1, 1):
        shoulder = (side * figure.breadth * (0.1 if figure.sideways else 0.92), 1.38)
        upper = side * (rng.uniform(1.7, 2.6) if rng.random() < 0.1 else rng.normal(0.14, 0.16))
        lower = upper + (rng.uniform(0.2, 1.0) * figure.turn if figure.sideways else rng.normal(0, 0.4))
        elbow = (shoulder[0] + 0.29 * np.sin(upper), shoulder[1] - 0.29 * np.cos(upper))
        hand = (elbow[0] + 0.27 * np.sin(lower), elbow[1] - 0.27 * np.cos(lower))
        arms.append([shoulder, elbow, hand])
    return arms


def _arm(figure: _Figure, joints: list[tuple[float, float]], sleeve: bool) -> None:
    shoulder, elbow, hand = joints
    fingers = np.add(hand, np.subtract(hand, elbow) * 0.25)
    figure.limb(np.array([hand, fingers]), (0.036, 0.03), figure.skin, Material.SKIN)
    lower = (figure.top * 0.92, Material.CLOTH) if sleeve else (figure.skin, Material.SKIN)
    figure.limb([elbow, hand], (0.045, 0.034), *lower)
    figure.limb([shoulder, elbow], (0.064, 0.05), figure.top * 0.94, Material.CLOTH)


def _torso(figure: _Figure, rng: np.random.Generator, skirt: bool) -> None:
    wide, colour = figure.breadth, figure.top
    hem, flare = (0.55, rng.uniform(1.2, 1.8)) if skirt else (rng.uniform(0.8, 0.88), 1.0)
    right = np.array([(0.5, 1.47), (1.04, 1.37), (0.96, 1.15), (0.8, 1.02), (0.95 * flare, hem)])
    outline = np.concatenate([right, right[::-1] * (-1, 1)]) * (wide, 1)
    figure.fill(outline, colour, Material.CLOTH)
    shade = figure.brush.weather.shadow
    away = -figure.brush.weather.sunward
    half = np.concatenate([right * (away, 1), right[::-1] * (away * 0.35, 1)]) * (wide, 1)
    figure.fill(half, colour * (1 - 0.35 * shade), Material.CLOTH)
    if rng.random() < 0.25:
        stripes = [[(-0.9 * wide, y), (0.9 * wide, y)] for y in np.arange(1.06, 1.36, 0.05)]
        figure.strokes(stripes, np.clip(colour * 0.6 + 60, 0, 255), Material.CLOTH, 6)
    folds = rng.uniform((-0.7 * wide, hem + 0.1), (0.7 * wide, 1.3), (5, 2))
    figure.strokes(
        [np.add(at, [(0, 0), (-0.015, -0.07), (0.01, -0.12)]) for at in folds],
        colour * 0.86,
        Material.CLOTH,
        3,
    )
    if figure.facing == "front":
        figure.fill(
            [(-0.04, 1.49), (0.04, 1.49), (0.0, rng.uniform(1.34, 1.44))], figure.skin * 0.95, Material.SKIN
        )
    elif figure.facing == "back" and rng.random() < 0.4:
        bag = pick(rng, _TOPS)
        figure.fill(
            [(-0.13, 1.42), (0.13, 1.42), (0.17, 1.3), (0.16, 1.0), (-0.16, 1.0), (-0.17, 1.3)],
            bag,
            Material.CLOTH,
        )
        figure.fill([(-0.11, 1.18), (0.11, 1.18), (0.11, 1.03), (-0.11, 1.03)], bag * 0.8, Material.CLOTH)


def _head(figure: _Figure, rng: np.random.Generator) -> None:
    centre = np.array((0.02 * figure.turn if figure.sideways else 0.0, 1.62))
    long = bool(rng.random() < 0.6)
    wind = rng.normal(0, 0.5)
    _strands(figure, rng, centre, rng.uniform(0.15, 0.36) if long else 0.07, wind, 300)
    if figure.facing == "back":
        figure.oval(centre, (0.094, 0.124), figure.hair, Material.HAIR)
    else:
        figure.oval(
            centre, (0.083, 0.113), figure.skin * (1 - 0.25 * figure.brush.weather.shadow), Material.SKIN
        )
        lit_side = np.add(centre, (0.012 * figure.brush.weather.sunward, 0))
        figure.oval(lit_side, (0.07, 0.108), figure.skin, Material.SKIN)
        _face(figure, centre)
        cap = np.array([
            (-0.088, 0.02), (-0.08, 0.09), (-0.04, 0.125), (0.02, 0.13), (0.07, 0.1), (0.09, 0.02),
            (0.06, 0.06), (0.0, 0.075), (-0.055, 0.055),
        ])  # fmt: skip
        figure.fill(cap + centre, figure.hair, Material.HAIR)
        if figure.sideways:
            figure.oval(centre - (figure.turn * 0.045, -0.02), (0.06, 0.1), figure.hair, Material.HAIR)
    if rng.random() < 0.2:
        hat = pick(rng, _TOPS)
        figure.oval(np.add(centre, (0, 0.07)), (0.16, 0.025), hat * 0.8, Material.CLOTH)
        figure.oval(np.add(centre, (0, 0.1)), (0.09, 0.06), hat, Material.CLOTH)
    else:
        _strands(figure, rng, centre, 0.05, wind, 160)


def _face(figure: _Figure, centre: np.ndarray) -> None:
    shift = 0.035 * figure.turn if figure.sideways else 0.0
    for side in (-1, 1):
        eye = np.add(centre, (side * 0.032 + shift, 0.012))
        figure.oval(eye, (0.012, 0.006), (232, 228, 222), Material.SKIN)
        figure.oval(eye, (0.006, 0.006), (50, 42, 38), Material.SKIN)
        figure.strokes(
            [np.add(eye, [(-0.016, 0.02), (0, 0.026), (0.016, 0.02)])], figure.hair, Material.SKIN, 3
        )
    figure.oval(np.add(centre, (shift, -0.02)), (0.012, 0.018), figure.skin * 0.92, Material.SKIN)
    figure.oval(
        np.add(centre, (shift, -0.06)), (0.025, 0.007), figure.skin * (0.86, 0.62, 0.6), Material.SKIN
    )


def _strands(
    figure: _Figure, rng: np.random.Generator, centre: np.ndarray, length: float, wind: float, count: int
) -> None:
    """Single hairs from around the crown of the head, falling, and blown to one side by the wind."""
    angle = rng.uniform(-0.4, np.pi + 0.4, (count, 1))
    root = np.concatenate([np.cos(angle) * 0.085, np.sin(angle) * 0.115], 1) + centre
    reach = length * rng.uniform(0.4, 1.25, (count, 1))
    sway = rng.normal(wind, 0.45, (count, 1))
    t = np.linspace(0, 1, 7)[None, :]
    x = root[:, :1] + np.cos(angle) * 0.035 * np.sin(t * 2.2) + sway * reach * t**2 * 0.8
    y = root[:, 1:] + np.sin(angle) * 0.025 * np.sin(np.minimum(t * 3, np.pi)) - reach * t * 0.9
    figure.strokes(np.stack([x, y], -1), figure.hair * rng.uniform(0.75, 1.25, (count, 1)), Material.HAIR, 2)

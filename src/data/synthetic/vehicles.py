"""Things of the class "background" that move: cars, bicycles, boats, balloons and birds."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.view import Weather, pick, vary

_PAINT = (
    (176, 44, 40),
    (46, 84, 146),
    (212, 210, 204),
    (44, 46, 50),
    (198, 158, 52),
    (70, 110, 84),
    (130, 134, 138),
)
_RUBBER = np.array((34, 34, 36))
_SKY_DISTANCE = 80.0  # metres of haze in front of what flies


def draw_car(brush: Brush, rng: np.random.Generator) -> None:
    """A car from the side."""
    paint, side = pick(rng, _PAINT), rng.choice((-1.0, 1.0))
    mirrored = np.array((side, 1.0))
    lower = [(2.1, 0.62), (2.1, 0.32), (-2.1, 0.32), (-2.13, 0.62)]
    belt = [(-2.15, 0.75), (-1.95, 0.95), (-1.35, 1.0), (1.45, 1.05), (1.95, 0.98), (2.1, 0.75), *lower]
    cabin = [(-1.42, 0.98), (-0.75, 1.45), (0.75, 1.48), (1.5, 1.03)]
    rear, front = (
        [(0.08, 1.02), (0.08, 1.4), (0.7, 1.4), (1.2, 1.02)],
        [(-1.15, 1.02), (-0.68, 1.38), (0, 1.4), (0, 1.02)],
    )
    brush.shadow(2.5, 0.3)
    brush.polygon(belt * mirrored, paint, Material.METAL)
    brush.polygon(cabin * mirrored, paint * 0.95, Material.METAL)
    brush.polygon(lower * mirrored, paint * 0.75, Material.METAL)
    glass = (58, 70, 82) * np.array(0.7) + brush.weather.haze * 0.3
    brush.convex(np.array([front, rear]) * mirrored, glass, Material.METAL)
    brush.lines(
        np.array([[(0.04, 0.5), (0.04, 1.0)], [(0.15, 0.86), (0.32, 0.86)]]) * mirrored,
        paint * 0.6,
        Material.METAL,
        3,
    )
    for x in (-1.3, 1.3):
        for radius, tone in ((0.36, _RUBBER), (0.22, (150, 152, 156)), (0.07, (60, 60, 62))):
            brush.ellipse((x, 0.36), (radius, radius), tone, Material.METAL)
    brush.ellipse((side * -2.02, 0.78), (0.12, 0.08), (244, 236, 206), Material.METAL)
    brush.ellipse((side * 2.04, 0.8), (0.08, 0.08), (170, 40, 36), Material.METAL)


def draw_bicycle(brush: Brush, rng: np.random.Generator) -> None:
    """A parked bicycle; what is behind it shows between the spokes."""
    paint, side = pick(rng, _PAINT), rng.choice((-1.0, 1.0))
    turn = np.linspace(0, 2 * np.pi, 40)
    brush.shadow(0.9, 0.08)
    for x in (-0.52, 0.52):
        rim = np.stack([np.cos(turn) * 0.33 + x, np.sin(turn) * 0.33 + 0.34], 1)
        brush.lines([[(x, 0.34), point] for point in rim[::3]], (130, 130, 132), Material.METAL, 1)
        brush.lines([rim], _RUBBER, Material.METAL, 4)
    rear, pedal, seat, head, front = (-0.52, 0.34), (-0.05, 0.30), (-0.2, 0.86), (0.36, 0.84), (0.52, 0.34)
    for path in ((rear, pedal, head, front), (rear, seat, head), (pedal, seat)):
        brush.rod(np.array(path) * (side, 1), (0.016,) * len(path), paint, Material.METAL)
    brush.rod(np.array([(-0.32, 0.9), (-0.1, 0.9)]) * (side, 1), (0.03, 0.02), _RUBBER, Material.METAL)
    brush.lines([np.array([(0.36, 0.84), (0.34, 1.0), (0.24, 1.02)]) * (side, 1)], _RUBBER, Material.METAL, 4)


def draw_boat(brush: Brush, rng: np.random.Generator) -> None:
    """A sailing boat with its rigging, under sail or at anchor."""
    paint = pick(rng, ((228, 226, 220), (150, 52, 44), (52, 72, 108)))
    flip = np.array((rng.choice((-1.0, 1.0)), 1.0)) * rng.uniform(0.8, 1.4)
    brush.shadow(3.4 * flip[1], 0.5)
    brush.polygon([(-3, 0.9), (3.3, 1.1), (2.3, 0.0), (-2.6, 0.0)] * flip, paint, Material.METAL)
    brush.polygon([(-2.7, 0.25), (2.55, 0.25), (2.3, 0.0), (-2.6, 0.0)] * flip, paint * 0.6, Material.METAL)
    brush.polygon([(-1.4, 1.5), (0.5, 1.5), (0.7, 1.0), (-1.5, 1.0)] * flip, paint * 0.9, Material.METAL)
    rig, mast = (90, 84, 78), (0.2, 9.0)
    brush.lines(np.array([[(0.2, 1), mast]]) * flip, rig, Material.METAL, 4)
    if rng.random() < 0.5:
        cloth = vary(rng, (226, 220, 206), 10)
        brush.polygon([(0.05, 8.6), (0.0, 1.8), (-2.8, 1.7), (-1.6, 4.2)] * flip, cloth, Material.METAL)
        brush.polygon([(0.4, 7.6), (0.5, 1.6), (3.0, 1.3)] * flip, cloth * 0.93, Material.METAL)
    stays = [
        [mast, (3.2, 1.1)],
        [mast, (-2.9, 0.9)],
        [(0.2, 1.8), (-2.9, 1.7)],
        [(0.2, 7), (1.2, 1)],
        [(0.2, 7), (-0.8, 1)],
    ]
    brush.lines(np.array(stays) * flip, rig, Material.METAL, 1.5)


def draw_balloon(canvas: Canvas, rng: np.random.Generator, weather: Weather, x: float, y: float) -> None:
    """A striped hot-air balloon; x and y are normalised."""
    radius = rng.uniform(0.025, 0.06)
    turn = np.linspace(0, 2 * np.pi, 40)
    outline = np.stack([np.cos(turn), np.sin(turn)], 1) * radius
    stripes = weather.lit([pick(rng, _PAINT) for _ in range(3)], _SKY_DISTANCE)
    bands = [outline * (width, 1) + np.array((x, y)) for width in np.linspace(1, 0.12, 6)]
    canvas.convex(bands, stripes[np.arange(6) % 3], Material.METAL)
    top, bottom = y + radius * 0.94, y + radius * 1.7
    ropes = [[(x + s * radius * 0.3, top), (x + s * radius * 0.14, bottom)] for s in (-1, -0.3, 0.3, 1)]
    canvas.lines(ropes, stripes[0] * 0.5, Material.METAL, 1.5)
    basket = np.array([(-0.15, 0), (0.15, 0), (0.13, 0.2), (-0.13, 0.2)]) * radius + np.array((x, bottom))
    canvas.convex([basket], weather.lit((110, 78, 48), _SKY_DISTANCE), Material.WOOD)


def draw_birds(canvas: Canvas, rng: np.random.Generator, weather: Weather, x: float, y: float) -> None:
    """A loose flock of distant birds; x and y are normalised."""
    count = int(rng.integers(5, 18))
    centres = rng.normal((x, y), (0.09, 0.035), (count, 2))
    span = rng.uniform(0.003, 0.008, count)
    size = np.stack([span, span * rng.uniform(-0.2, 0.9, count)], 1)
    wings = np.array([(-1, -1), (-0.45, -0.9), (0, 0), (0.45, -0.9), (1, -1)])
    paths = centres[:, None] + wings * size[:, None]
    canvas.lines(paths, weather.lit((48, 48, 52), _SKY_DISTANCE), Material.METAL, 3)

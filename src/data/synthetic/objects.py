"""The class "background": everything nameless, most of it one to three pixels thin."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.view import Camera, Spot, Weather, pick, vary

_PAINT = (
    (176, 44, 40),
    (46, 84, 146),
    (212, 210, 204),
    (44, 46, 50),
    (198, 158, 52),
    (70, 110, 84),
    (130, 134, 138),
)
_STEEL = ((78, 80, 84), (120, 122, 124), (54, 56, 58), (96, 84, 70))


def draw_power_line(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A row of poles that runs into the distance, and the cables that sag between them."""
    height = rng.uniform(7, 10)
    drift = rng.uniform(-0.9, 0.9) * canvas.aspect
    arms = np.array([(-0.9, -0.2), (-0.3, -0.2), (0.3, -0.2), (0.9, -0.2), (-0.6, -1.1), (0.6, -1.1)])
    depths = np.array([0.55, 1, 1.8, 3.2, 6.0])
    hooks = []
    for depth in depths[::-1]:
        y = camera.horizon + (spot.y - camera.horizon) / depth
        pole = camera.spot(spot.x + drift * (1 - 1 / depth), y)
        steel = weather.lit((92, 78, 64), camera.distance(y))
        post = [(-0.12, 0), (0.12, 0), (0.08, height), (-0.08, height)]
        canvas.convex([pole.place(post)], steel, Material.WOOD)
        for beam in (-0.2, -1.1):
            canvas.lines(
                pole.place([[(-1.05, height + beam), (1.05, height + beam)]]), steel, Material.WOOD, 3
            )
        hooks.append(pole.place(arms + (0, height)))
    t = np.linspace(0, 1, 24)[:, None]
    wire = weather.lit((52, 52, 56), 20)
    for first, last in zip(hooks, hooks[1:], strict=False):
        sag = 0.10 * np.hypot(*(last - first).mean(0))
        paths = (
            first[:, None] * (1 - t)
            + last[:, None] * t
            + np.stack([0 * t, 4 * t * (1 - t) * sag], -1).reshape(1, -1, 2)
        )
        canvas.lines(paths, wire, Material.METAL, 2)


def draw_crane(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A tower crane of thin lattice."""
    height, reach, counter = rng.uniform(36, 52), rng.uniform(26, 38), 11.0
    side = rng.choice((-1.0, 1.0))
    colour = weather.lit(
        pick(rng, ((206, 168, 52), (176, 60, 48), (120, 120, 124))), camera.distance(spot.y) * 0.35
    )
    mast = _lattice((0, 0), (0, height), 1.6, 26)
    jib = _lattice((-side * counter, height), (side * reach, height), 1.5, 30)
    apex = (0.0, height + 6.5)
    for paths in (mast, jib):
        canvas.lines(spot.place(paths), colour, Material.METAL, 2)
    stays = [
        [(0, height), apex],
        [apex, (side * reach * 0.7, height + 0.8)],
        [apex, (-side * counter, height + 0.8)],
    ]
    hook = side * reach * rng.uniform(0.3, 0.9)
    stays.append([(hook, height), (hook, height * rng.uniform(0.4, 0.8))])
    canvas.lines(spot.place(stays), colour * 0.8, Material.METAL, 2)
    weight = np.array([(-1, 0), (1, 0), (1, -3), (-1, -3)]) + (-side * (counter - 1.5), height)
    canvas.convex([spot.place(weight)], colour * 0.6, Material.METAL)
    cabin = np.array([(0, 0), (2, 0), (2, -2.2), (0, -2.2)]) * (side, 1) + (0, height)
    canvas.convex([spot.place(cabin)], colour * 0.9, Material.METAL)


def _lattice(start: tuple[float, float], end: tuple[float, float], width: float, bays: int) -> list:
    """Zigzag bracing between two chords, as paths of two points in metres."""
    first, last = np.asarray(start, float), np.asarray(end, float)
    along = (last - first) / np.hypot(*(last - first))
    across = np.array([-along[1], along[0]]) * width / 2
    t = np.linspace(0, 1, bays + 1)[:, None]
    upper, lower = first + (last - first) * t + across, first + (last - first) * t - across
    paths = [[first + across, last + across], [first - across, last - across]]
    for bay in range(bays):
        paths.append([upper[bay], lower[bay + 1]])
        paths.append([lower[bay], upper[bay + 1]])
    return paths


def draw_lamp_post(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A street lamp with a curved arm."""
    height, side = rng.uniform(5, 8), rng.choice((-1.0, 1.0))
    colour = weather.lit(pick(rng, _STEEL), camera.distance(spot.y))
    canvas.convex(
        [spot.place([(-0.09, 0), (0.09, 0), (0.05, height), (-0.05, height)])], colour, Material.METAL
    )
    t = np.linspace(0, np.pi / 2, 12)
    arm = np.stack([side * 1.3 * (1 - np.cos(t)), height + 0.7 * np.sin(t)], 1)
    canvas.lines([spot.place(arm)], colour, Material.METAL, 3)
    canvas.ellipse(spot.place((side * 1.5, height + 0.62)), (0.42 * spot.metre, 0.12 * spot.metre), weather.lit((206, 204, 190)), Material.METAL)  # fmt: skip
    if rng.random() < 0.5:
        _panel(canvas, rng, weather, camera, spot, rng.uniform(2.3, 3.2))


def draw_sign(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot) -> None:
    """A road sign on a thin post."""
    colour = weather.lit(pick(rng, _STEEL), camera.distance(spot.y))
    height = rng.uniform(2.2, 3.0)
    canvas.convex(
        [spot.place([(-0.035, 0), (0.035, 0), (0.035, height), (-0.035, height)])], colour, Material.METAL
    )
    _panel(canvas, rng, weather, camera, spot, height)


def _panel(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, height: float
) -> None:
    paint = weather.lit(pick(rng, _PAINT), camera.distance(spot.y))
    white = weather.lit((232, 232, 228), camera.distance(spot.y))
    corners = int(rng.choice((3, 4, 8, 24)))
    turn = np.arange(corners) / corners * 2 * np.pi + (np.pi / 2 if corners == 3 else np.pi / corners)
    outline = np.stack([np.cos(turn), np.sin(turn)], 1)
    for scale, ink in ((0.42, white), (0.37, paint), (0.2, white)):
        canvas.convex([spot.place(outline * scale + (0, height))], ink, Material.METAL)


def draw_fence(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A fence across the picture: wooden rails, a railing, or wire mesh between posts."""
    length, height = rng.uniform(10, 24), rng.uniform(0.9, 1.3)
    left = -length * rng.uniform(0.2, 0.8)
    kind = rng.choice(("rails", "bars", "mesh"))
    distance = camera.distance(spot.y)
    colour = weather.lit(
        pick(rng, ((128, 104, 78), (170, 160, 146)) if kind == "rails" else _STEEL), distance
    )
    material = Material.WOOD if kind == "rails" else Material.METAL
    posts = np.arange(left, left + length, 2.2)
    wide = 0.06 if kind == "rails" else 0.03
    canvas.convex(spot.place([[(x - wide, height), (x + wide, height), (x + wide, 0), (x - wide, 0)] for x in posts]), colour, material)  # fmt: skip
    end = posts[-1]
    if kind == "rails":
        beams = [[(left, y + 0.05), (end, y + 0.05), (end, y - 0.05), (left, y - 0.05)] for y in (0.4, 0.8)]
        canvas.convex(spot.place(beams), colour * 0.92, material)
    elif kind == "bars":
        canvas.lines(spot.place([[(left, y), (end, y)] for y in (0.12, height - 0.05)]), colour, material, 3)
        canvas.lines(
            spot.place([[(x, 0.12), (x, height)] for x in np.arange(left, end, 0.13)]), colour, material, 2
        )
    else:
        steps = np.arange(left - height, end, 0.16)
        mesh = [[(x, 0), (x + height, height)] for x in steps] + [
            [(x + height, 0), (x, height)] for x in steps
        ]
        canvas.lines(spot.place(mesh), colour, material, 1)


def draw_car(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot) -> None:
    """A car from the side."""
    distance = camera.distance(spot.y)
    paint = weather.lit(pick(rng, _PAINT), distance)
    side = rng.choice((-1.0, 1.0))
    body = np.array([
        (-2.1, 0.32), (-2.15, 0.75), (-1.95, 0.95), (-1.35, 1.0), (-0.75, 1.45), (0.75, 1.48), (1.45, 1.05),
        (1.95, 0.98), (2.1, 0.75), (2.1, 0.32),
    ])  # fmt: skip
    canvas.shadow(spot.place((0, 0.05)), (2.5 * spot.metre, 0.3 * spot.metre), 0.6)
    canvas.polygon(spot.place(body * (side, 1)), paint, Material.METAL)
    canvas.polygon(spot.place(np.clip(body, (-3, 0), (3, 0.62)) * (side, 1)), paint * 0.78, Material.METAL)
    glass = weather.lit(np.array((58, 70, 82)) * 0.7 + weather.haze * 0.3, distance)
    for pane in (
        [(-1.15, 1.02), (-0.68, 1.38), (0.0, 1.4), (0.0, 1.02)],
        [(0.08, 1.02), (0.08, 1.4), (0.7, 1.4), (1.2, 1.02)],
    ):
        canvas.convex([spot.place(np.array(pane) * (side, 1))], glass, Material.METAL)
    for x in (-1.3, 1.3):
        for radius, tone in ((0.36, (30, 30, 32)), (0.22, (150, 152, 156)), (0.07, (60, 60, 62))):
            size = radius * spot.metre
            canvas.ellipse(spot.place((x, 0.36)), (size, size), weather.lit(tone, distance), Material.METAL)
    lamp = spot.place((side * -2.02, 0.78))
    canvas.ellipse(lamp, (0.12 * spot.metre, 0.08 * spot.metre), weather.lit((244, 236, 206)), Material.METAL)


def draw_bicycle(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A parked bicycle; ground and grass show between its spokes."""
    distance = camera.distance(spot.y)
    paint, dark = weather.lit(pick(rng, _PAINT), distance), weather.lit((40, 40, 42), distance)
    turn = np.linspace(0, 2 * np.pi, 40)
    for x in (-0.52, 0.52):
        hub = np.array((x, 0.34))
        rim = np.stack([np.cos(turn), np.sin(turn)], 1) * 0.33 + hub
        canvas.lines([spot.place(rim)], dark, Material.METAL, 3)
        spokes = [[hub, rim[i]] for i in range(0, 39, 3)]
        canvas.lines(spot.place(spokes), weather.lit((130, 130, 132), distance), Material.METAL, 1)
    pedal, seat, head = (-0.05, 0.30), (-0.2, 0.86), (0.36, 0.84)
    tubes = [
        ((-0.52, 0.34), pedal),
        (pedal, seat),
        (seat, head),
        (pedal, head),
        ((-0.52, 0.34), seat),
        (head, (0.52, 0.34)),
    ]
    for first, last in tubes:
        canvas.limb(*spot.place([first, last]), (0.016 * spot.metre,) * 2, paint, Material.METAL)
    canvas.limb(
        *spot.place([(-0.32, 0.9), (-0.1, 0.9)]), (0.03 * spot.metre, 0.02 * spot.metre), dark, Material.METAL
    )
    canvas.lines(spot.place([[(0.36, 0.84), (0.34, 1.0), (0.24, 1.02)]]), dark, Material.METAL, 3)


def draw_bench(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot
) -> None:
    """A park bench with slats."""
    distance = camera.distance(spot.y)
    wood, iron = (
        weather.lit(pick(rng, ((132, 92, 58), (150, 120, 88))), distance),
        weather.lit((50, 50, 52), distance),
    )
    canvas.shadow(spot.place((0, 0)), (1.1 * spot.metre, 0.14 * spot.metre), 0.5)
    for x in (-0.75, 0.75):
        legs = [[(x, 0), (x, 0.45), (x - 0.03, 0.9)], [(x + 0.1, 0), (x + 0.1, 0.45), (x, 0.45)]]
        for path in legs:
            for first, last in zip(path, path[1:], strict=False):
                canvas.limb(*spot.place([first, last]), (0.025 * spot.metre,) * 2, iron, Material.METAL)
    for y in (0.42, 0.50, 0.64, 0.74, 0.84):
        slat = [(-0.9, y + 0.032), (0.9, y + 0.032), (0.9, y - 0.032), (-0.9, y - 0.032)]
        canvas.convex([spot.place(slat)], wood * (1.06 if y > 0.55 else 0.9), Material.WOOD)


def draw_boat(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot) -> None:
    """A sailing boat with its rigging."""
    distance = camera.distance(spot.y)
    size = rng.uniform(0.8, 1.5)
    paint = weather.lit(pick(rng, ((228, 226, 220), (150, 52, 44), (52, 72, 108))), distance)
    side = rng.choice((-1.0, 1.0))

    def at(points: list) -> np.ndarray:
        return spot.place(np.asarray(points, float) * (side * size, size))

    canvas.shadow(spot.place((0, 0)), (3.4 * size * spot.metre, 0.25 * size * spot.metre), 0.5)
    canvas.polygon(at([(-3, 0.9), (3.3, 1.1), (2.3, 0.0), (-2.6, 0.0)]), paint, Material.METAL)
    canvas.polygon(at([(-2.7, 0.25), (2.55, 0.25), (2.3, 0.0), (-2.6, 0.0)]), paint * 0.6, Material.METAL)
    canvas.convex([at([(-1.4, 1.5), (0.5, 1.5), (0.7, 1.0), (-1.5, 1.0)])], paint * 0.9, Material.METAL)
    rig = weather.lit((90, 84, 78), distance)
    canvas.lines([at([(0.2, 1), (0.2, 9)])], rig, Material.METAL, 3)
    if rng.random() < 0.6:
        cloth = weather.lit(vary(rng, (226, 220, 206), 10), distance)
        canvas.polygon(at([(0.05, 8.6), (0.0, 1.8), (-2.8, 1.7), (-1.6, 4.2)]), cloth, Material.METAL)
        canvas.polygon(at([(0.4, 7.6), (0.5, 1.6), (3.0, 1.3)]), cloth * 0.93, Material.METAL)
    canvas.lines(
        at([[(0.2, 9), (3.2, 1.1)], [(0.2, 9), (-2.9, 0.9)], [(0.2, 1.8), (-2.9, 1.7)]]),
        rig,
        Material.METAL,
        1,
    )


def draw_balloon(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, x: float, y: float, size: float
) -> None:
    """A hot-air balloon in the sky; size is its radius."""
    stripes = weather.lit(np.stack([pick(rng, _PAINT) for _ in range(3)]), 150)
    for index, width in enumerate(np.linspace(1, 0.12, 6)):
        canvas.ellipse((x, y), (size * width, size), stripes[index % 3], Material.METAL)
    throat, basket = y + size * 0.94, y + size * 1.7
    canvas.lines([[(x + s * size * 0.3, throat), (x + s * size * 0.14, basket)] for s in (-1, -0.3, 0.3, 1)], stripes[0] * 0.5, Material.METAL, 1)  # fmt: skip
    box = np.array([(-0.15, 0), (0.15, 0), (0.13, 0.2), (-0.13, 0.2)]) * size + (x, basket)
    canvas.convex([box], weather.lit((110, 78, 48)), Material.WOOD)


def draw_birds(canvas: Canvas, rng: np.random.Generator, weather: Weather, x: float, y: float) -> None:
    """A loose flock of distant birds."""
    count = int(rng.integers(5, 18))
    centres = rng.normal((x, y), (0.09, 0.035), (count, 2))
    span = rng.uniform(0.003, 0.008, count)
    lift = rng.uniform(-0.2, 0.9, count)
    wings = np.array([(-1, -1), (-0.45, -0.9), (0, 0), (0.45, -0.9), (1, -1)])
    paths = centres[:, None] + wings * np.stack([span, span * lift], 1)[:, None]
    canvas.lines(paths, weather.lit((48, 48, 52), 60), Material.METAL, 3)

"""Buildings: facades with rows of windows in perspective, gabled houses, towers and open frames."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.view import Camera, Spot, Weather, pick, vary

_FACADES = {
    Material.CONCRETE: ((176, 174, 170), (206, 200, 188), (140, 142, 146), (226, 218, 200), (188, 164, 128), (150, 168, 186)),
    Material.BRICK: ((150, 84, 64), (168, 112, 84), (126, 78, 66), (178, 140, 108)),
    Material.GLASS: ((96, 128, 152), (82, 108, 124), (120, 150, 164), (90, 120, 110)),
}  # fmt: skip
_ROOFS = ((122, 66, 52), (92, 84, 82), (78, 90, 84), (148, 92, 66), (70, 70, 78))
_WINDOWS = ((48, 58, 70), (70, 84, 98), (120, 144, 164), (36, 38, 44))
_LAMPLIGHT = np.array((246, 206, 130))


def draw_building(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, metres: float
) -> None:
    """One building of any kind, standing on its spot and about as high as said."""
    distance = camera.distance(spot.y) * 0.35
    kind = rng.random()
    if metres < 14 or kind < 0.25:
        _house(canvas, rng, weather, spot, min(metres, 16), distance)
    elif kind < 0.36:
        _frame(canvas, rng, weather, spot, metres, distance)
    elif kind < 0.48:
        _bell_tower(canvas, rng, weather, spot, metres, distance)
    else:
        _block(canvas, rng, weather, spot, metres, distance)


def _block(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, spot: Spot, height: float, distance: float
) -> None:
    """A block of flats or offices: a front and a side receding towards the horizon, with what stands on the roof."""
    material = (Material.CONCRETE, Material.CONCRETE, Material.BRICK, Material.GLASS)[rng.integers(4)]
    wall = pick(rng, _FACADES[material])
    width = rng.uniform(9, 24)
    depth = rng.uniform(0.2, 0.5) * width
    side = -1 if weather.sun > 0 else 1  # the side in shade is the one shown
    shrink = rng.uniform(0.86, 0.95)
    left, right = -width / 2, width / 2
    corner = left if side < 0 else right
    front = np.array([(left, height), (right, height), (right, 0), (left, 0)])
    flank = np.array(
        [(corner, height), (corner + side * depth, height * shrink), (corner + side * depth, 0), (corner, 0)]
    )
    floors = max(2, round(height / rng.uniform(3.0, 4.2)))
    columns = max(2, round(width / rng.uniform(2.4, 4.0)))
    fill = (rng.uniform(0.4, 0.75), rng.uniform(0.45, 0.7))
    if material is Material.GLASS:
        fill = (0.88, 0.86)
    _facade(canvas, rng, weather, spot, front, wall, material, floors, columns, fill, distance)
    shade = wall * (1 - 0.7 * weather.shadow)
    _facade(canvas, rng, weather, spot, flank, shade, material, floors, max(2, columns // 3), fill, distance)
    cornice = weather.lit(wall * 0.8, distance)
    canvas.convex(
        [
            spot.place(
                [
                    (left - 0.3, height + 0.5),
                    (right + 0.3, height + 0.5),
                    (right + 0.3, height),
                    (left - 0.3, height),
                ]
            )
        ],
        cornice,
        material,
    )
    for _ in range(int(rng.integers(1, 4))):
        x, w, h = rng.uniform(left + 1, right - 3), rng.uniform(1.5, 4), rng.uniform(1, 3)
        box = [(x, height + h), (x + w, height + h), (x + w, height + 0.4), (x, height + 0.4)]
        canvas.convex([spot.place(box)], weather.lit(vary(rng, wall * 0.75, 10), distance), Material.CONCRETE)
    masts = int(rng.integers(0, 5))
    dark = weather.lit((60, 60, 64), distance)
    for _ in range(masts):
        x, h = rng.uniform(left, right), rng.uniform(2, 6)
        paths = [[(x, height), (x, height + h)]]
        paths += [[(x - 0.7, height + h * f), (x + 0.7, height + h * f)] for f in (0.7, 0.82, 0.94)]
        canvas.lines(spot.place(paths), dark, Material.CONCRETE, 2)


def _facade(
    canvas: Canvas,
    rng: np.random.Generator,
    weather: Weather,
    spot: Spot,
    quad: np.ndarray,
    wall: np.ndarray,
    material: Material,
    floors: int,
    columns: int,
    fill: tuple[float, float],
    distance: float,
) -> None:
    """A wall with a grid of windows; `quad` is its corners in metres from the top left clockwise."""
    colour = weather.lit(wall, distance)
    canvas.convex([spot.place(quad)], colour, material)
    if rng.random() < 0.6:  # bands between the floors
        v = (np.arange(1, floors) / floors)[:, None]
        bands = np.stack([np.zeros_like(v), v, np.ones_like(v), v], 1).reshape(-1, 2, 2)
        canvas.lines(spot.place(_on_quad(quad, bands)), colour * 0.84, material, 3)
    u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(floors) + 0.5) / floors)
    half = np.array([fill[0] / columns / 2, fill[1] / floors / 2])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    panes = np.stack([u, v], -1).reshape(-1, 1, 2) + corners
    glass = pick(rng, _WINDOWS, 8) * 0.7 + 0.3 * weather.haze
    shades = glass * rng.uniform(0.75, 1.15, (len(panes), 1))
    lamps = rng.random(len(panes)) < (0.3 if weather.tint[2] < 0.75 else 0.03)
    shades[lamps] = _LAMPLIGHT
    canvas.convex(spot.place(_on_quad(quad, panes)), weather.lit(shades, distance), Material.GLASS)
    lintels = panes.copy()
    lintels[:, 2:, 1] = lintels[:, :2, 1] + half[1] * 0.35
    canvas.convex(spot.place(_on_quad(quad, lintels)), weather.lit(shades * 0.62, distance), Material.GLASS)


def _on_quad(quad: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear map of (..., 2) points in 0..1 onto a quadrilateral (top left, top right, bottom right, bottom left)."""
    u, v = points[..., :1], points[..., 1:]
    top = quad[0] * (1 - u) + quad[1] * u
    bottom = quad[3] * (1 - u) + quad[2] * u
    return top * (1 - v) + bottom * v


def _house(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, spot: Spot, height: float, distance: float
) -> None:
    """A gabled house with a chimney and a door."""
    material = Material.BRICK if rng.random() < 0.4 else Material.CONCRETE
    wall = pick(rng, _FACADES[material])
    width, eaves = rng.uniform(7, 15), height * rng.uniform(0.5, 0.65)
    half = width / 2
    roof = weather.lit(pick(rng, _ROOFS), distance)
    front = np.array([(-half, eaves), (half, eaves), (half, 0), (-half, 0)])
    floors = max(1, round(eaves / 3))
    _facade(
        canvas,
        rng,
        weather,
        spot,
        front,
        wall,
        material,
        floors,
        int(rng.integers(3, 6)),
        (0.4, 0.5),
        distance,
    )
    overhang = half + 0.6
    chimney = rng.uniform(-0.5, 0.5) * half
    stack = [(chimney, height + 0.8), (chimney + 1, height + 0.8), (chimney + 1, eaves), (chimney, eaves)]
    canvas.convex([spot.place(stack)], weather.lit(wall * 0.8, distance), Material.BRICK)
    if rng.random() < 0.5:  # gable towards us
        gable = [(-half, eaves), (0, height), (half, eaves)]
        canvas.convex([spot.place(gable)], weather.lit(wall, distance), material)
        for x in (-overhang, overhang):
            slope = [(x, eaves - 0.4), (0, height + 0.3), (0, height - 0.3), (x, eaves - 0.9)]
            canvas.convex([spot.place(slope)], roof * (0.8 if x * weather.sun < 0 else 1), Material.ROOF)
    else:
        ridge = half * rng.uniform(0.6, 1.0)
        slope = [(-ridge, height), (ridge, height), (overhang, eaves - 0.3), (-overhang, eaves - 0.3)]
        canvas.convex([spot.place(slope)], roof, Material.ROOF)
    door = rng.uniform(-0.6, 0.4) * half
    entrance = [(door, 2.2), (door + 1.1, 2.2), (door + 1.1, 0), (door, 0)]
    canvas.convex([spot.place(entrance)], weather.lit(pick(rng, _ROOFS) * 0.8, distance), Material.CONCRETE)


def _frame(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, spot: Spot, height: float, distance: float
) -> None:
    """A building shell under construction: floors and columns, with the sky in between."""
    colour = weather.lit(pick(rng, _FACADES[Material.CONCRETE]), distance)
    width = rng.uniform(10, 22)
    floors, columns = max(3, round(height / 3.6)), max(4, round(width / 3.2))
    levels = np.linspace(0, height, floors + 1)[1:]
    posts = np.linspace(-width / 2, width / 2, columns)
    slabs = [[(-width / 2 - 0.5, y + 0.25), (width / 2 + 0.5, y + 0.25), (width / 2 + 0.5, y - 0.25), (-width / 2 - 0.5, y - 0.25)] for y in levels]  # fmt: skip
    pillars = [[(x - 0.22, height), (x + 0.22, height), (x + 0.22, 0), (x - 0.22, 0)] for x in posts]
    canvas.convex(spot.place(pillars), colour * 0.8, Material.CONCRETE)
    canvas.convex(spot.place(slabs), colour, Material.CONCRETE)
    bars = [
        [(x, height), (x, height + rng.uniform(0.8, 2.0))]
        for x in np.linspace(-width / 2, width / 2, columns * 4)
    ]
    canvas.lines(spot.place(bars), colour * 0.55, Material.CONCRETE, 2)
    rails = [[(-width / 2, y + h), (width / 2, y + h)] for y in levels for h in (0.8, 1.3)]
    canvas.lines(spot.place(rails), colour * 0.7, Material.CONCRETE, 1)


def _bell_tower(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, spot: Spot, height: float, distance: float
) -> None:
    """A slender tower whose open belfry shows the sky, under a pointed roof."""
    material = Material.BRICK if rng.random() < 0.5 else Material.CONCRETE
    wall = pick(rng, _FACADES[material])
    half = height * rng.uniform(0.07, 0.10)
    body, belfry = height * 0.6, height * 0.76
    shaft = np.array([(-half, body), (half, body), (half, 0), (-half, 0)])
    _facade(
        canvas, rng, weather, spot, shaft, wall, material, max(2, round(body / 6)), 2, (0.25, 0.4), distance
    )
    shade = shaft * (0.5, 1) + (-np.sign(weather.sun or 1) * half * 0.5, 0)
    _facade(canvas, rng, weather, spot, shade, wall * (1 - 0.5 * weather.shadow), material, max(2, round(body / 6)), 1, (0.3, 0.4), distance)  # fmt: skip
    colour = weather.lit(wall, distance)
    for x in np.linspace(-half, half, 4):
        pillar = [
            (x - half * 0.14, belfry),
            (x + half * 0.14, belfry),
            (x + half * 0.14, body),
            (x - half * 0.14, body),
        ]
        canvas.convex([spot.place(pillar)], colour, material)
    lid = [
        (-half * 1.15, belfry + half * 0.3),
        (half * 1.15, belfry + half * 0.3),
        (half * 1.15, belfry),
        (-half * 1.15, belfry),
    ]
    canvas.convex([spot.place(lid)], colour * 0.9, material)
    roof = weather.lit(pick(rng, _ROOFS), distance)
    canvas.convex([spot.place([(-half * 1.2, belfry + half * 0.3), (0, height), (half * 1.2, belfry + half * 0.3)])], roof, Material.ROOF)  # fmt: skip
    canvas.lines(spot.place([[(0, height), (0, height * 1.06)]]), roof * 0.6, Material.ROOF, 2)

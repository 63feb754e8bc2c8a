"""Buildings: blocks with rows of windows, gabled houses, bell towers and shells under construction."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import Material
from src.data.synthetic.view import pick, vary

_CONCRETE = (
    (176, 174, 170),
    (206, 200, 188),
    (140, 142, 146),
    (226, 218, 200),
    (188, 164, 128),
    (150, 168, 186),
)
_BRICK = ((150, 84, 64), (168, 112, 84), (126, 78, 66), (178, 140, 108))
_GLASS = ((96, 128, 152), (82, 108, 124), (120, 150, 164), (90, 120, 110))
_ROOFS = ((122, 66, 52), (92, 84, 82), (78, 90, 84), (148, 92, 66), (70, 70, 78))
_WINDOWS = ((48, 58, 70), (70, 84, 98), (120, 144, 164), (36, 38, 44))
_LAMPLIGHT = (246, 206, 130)


def draw_block(brush: Brush, rng: np.random.Generator) -> None:
    """Flats or offices: a front, a side in shade that recedes, and what stands on the roof."""
    material, colours = ((Material.CONCRETE, _CONCRETE), (Material.BRICK, _BRICK), (Material.GLASS, _GLASS))[
        rng.choice(3, p=(0.55, 0.2, 0.25))
    ]
    wall = pick(rng, colours)
    width, height = rng.uniform(10, 24), rng.uniform(11, 42)
    half, depth, shrink = width / 2, rng.uniform(2, 10), rng.uniform(0.86, 0.95)
    side = -brush.weather.sunward
    front = np.array([(-half, height), (half, height), (half, 0), (-half, 0)])
    far, near = side * (half + depth), side * half
    flank = np.array([(near, height), (far, height * shrink), (far, 0), (near, 0)])
    floors = max(2, round(height / rng.uniform(3.0, 4.2)))
    columns = max(2, round(width / rng.uniform(2.4, 4.0)))
    fill = (0.88, 0.86) if material is Material.GLASS else (rng.uniform(0.4, 0.75), rng.uniform(0.45, 0.7))
    _wall(brush, rng, front, wall, material, (floors, columns), fill)
    _wall(
        brush,
        rng,
        flank,
        wall * (1 - 0.7 * brush.weather.shadow),
        material,
        (floors, max(2, columns // 3)),
        fill,
    )
    brush.boxes([(-half - 0.3, half + 0.3, height, height + 0.5)], wall * 0.8, material)
    for left in rng.uniform(1 - half, half - 4, int(rng.integers(1, 4))):
        box = (left, left + rng.uniform(1.5, 4), height + 0.4, height + rng.uniform(1.4, 3.4))
        brush.boxes([box], vary(rng, wall * 0.75, 10), Material.CONCRETE)
    for x in rng.uniform(-half, half, int(rng.integers(1, 6))):
        mast = rng.uniform(2, 6)
        rungs = [[(x - 0.7, height + mast * f), (x + 0.7, height + mast * f)] for f in (0.7, 0.82, 0.94)]
        brush.lines([[(x, height), (x, height + mast)], *rungs], (60, 60, 64), Material.CONCRETE, 2)


def draw_house(brush: Brush, rng: np.random.Generator) -> None:
    """A house with a gabled or a hipped roof, a chimney and a door."""
    material, colours = (Material.BRICK, _BRICK) if rng.random() < 0.4 else (Material.CONCRETE, _CONCRETE)
    wall, roof = pick(rng, colours), pick(rng, _ROOFS)
    half, height = rng.uniform(4, 8), rng.uniform(7, 14)
    eaves = height * rng.uniform(0.5, 0.65)
    chimney = rng.uniform(-0.5, 0.5) * half
    brush.boxes([(chimney, chimney + 1, eaves, height + 0.8)], wall * 0.8, Material.BRICK)
    front = np.array([(-half, eaves), (half, eaves), (half, 0), (-half, 0)])
    _wall(brush, rng, front, wall, material, (max(1, round(eaves / 3)), int(rng.integers(3, 6))), (0.4, 0.5))
    overhang = half + 0.6
    if rng.random() < 0.5:
        brush.convex([[(-half, eaves), (0, height), (half, eaves)]], wall, material)
        for x in (-overhang, overhang):
            slope = [(x, eaves - 0.4), (0, height + 0.3), (0, height - 0.3), (x, eaves - 0.9)]
            brush.convex([slope], roof * (1 if x * brush.weather.sunward > 0 else 0.75), Material.ROOF)
    else:
        top = half * rng.uniform(0.5, 1.0)
        slope = [(-top, height), (top, height), (overhang, eaves - 0.3), (-overhang, eaves - 0.3)]
        brush.convex([slope], roof, Material.ROOF)
    door = rng.uniform(-0.6, 0.4) * half
    brush.boxes([(door, door + 1.1, 0, 2.2)], pick(rng, _ROOFS) * 0.8, Material.CONCRETE)


def draw_shell(brush: Brush, rng: np.random.Generator) -> None:
    """A building under construction: floors, columns and bare reinforcement, the sky in between."""
    colour = pick(rng, _CONCRETE)
    half, height = rng.uniform(5, 11), rng.uniform(12, 34)
    floors, columns = max(3, round(height / 3.6)), max(4, round(half / 1.6))
    levels = np.linspace(0, height, floors + 1)[1:]
    posts = np.linspace(-half, half, columns)
    brush.boxes([(x - 0.22, x + 0.22, 0, height) for x in posts], colour * 0.8, Material.CONCRETE)
    brush.boxes([(-half - 0.5, half + 0.5, y - 0.25, y + 0.25) for y in levels], colour, Material.CONCRETE)
    bars = [[(x, height), (x, height + rng.uniform(0.8, 2.0))] for x in np.linspace(-half, half, columns * 4)]
    brush.lines(bars, colour * 0.55, Material.CONCRETE, 2)
    rails = [[(-half, y + up), (half, y + up)] for y in levels for up in (0.8, 1.3)]
    brush.lines(rails, colour * 0.7, Material.CONCRETE, 1)
    props = [[(x, y - 3.4), (x, y)] for y in levels for x in rng.uniform(-half, half, 6)]
    brush.lines(props, colour * 0.6, Material.CONCRETE, 1)


def draw_bell_tower(brush: Brush, rng: np.random.Generator) -> None:
    """A slender tower whose open belfry shows the sky, under a pointed roof."""
    material, colours = (Material.BRICK, _BRICK) if rng.random() < 0.5 else (Material.CONCRETE, _CONCRETE)
    wall, roof = pick(rng, colours), pick(rng, _ROOFS)
    height = rng.uniform(18, 36)
    half, body, belfry = height * rng.uniform(0.07, 0.1), height * 0.6, height * 0.76
    storeys = max(2, round(body / 6))
    front = np.array([(-half, body), (half, body), (half, 0), (-half, 0)])
    _wall(brush, rng, front, wall, material, (storeys, 2), (0.25, 0.4))
    shaded = front * (0.25, 1) - (brush.weather.sunward * half * 0.75, 0)
    _wall(brush, rng, shaded, wall * (1 - 0.5 * brush.weather.shadow), material, (storeys, 1), (0.3, 0.4))
    pillars = [(x - half * 0.14, x + half * 0.14, body, belfry) for x in np.linspace(-half, half, 4)]
    brush.boxes(pillars, wall, material)
    lid = belfry + half * 0.3
    brush.boxes([(-half * 1.15, half * 1.15, belfry, lid)], wall * 0.9, material)
    brush.convex([[(-half * 1.2, lid), (0, height), (half * 1.2, lid)]], roof, Material.ROOF)
    brush.lines([[(0, height), (0, height * 1.06)]], roof * 0.6, Material.ROOF, 2)


def _wall(
    brush: Brush,
    rng: np.random.Generator,
    corners: np.ndarray,
    colour: np.ndarray,
    material: Material,
    grid: tuple[int, int],
    fill: tuple[float, float],
) -> None:
    """A wall with windows.

    Args:
        brush: at the building's place.
        rng: source of randomness.
        corners: (4, 2) of the wall in metres: top left, top right, bottom right, bottom left.
        colour: of the wall.
        material: of the wall.
        grid: rows and columns of windows.
        fill: share of a window in the width and height of its place in the grid.
    """
    brush.convex([corners], colour, material)
    floors, columns = grid
    if rng.random() < 0.6:
        bands = np.array([[(0, y), (1, y)] for y in np.arange(1, floors) / floors]).reshape(-1, 2, 2)
        brush.lines(_on_quad(corners, bands), colour * 0.84, material, 3)
    v, u = (np.mgrid[:floors, :columns] + 0.5).reshape(2, -1) / [[floors], [columns]]
    half = np.array((fill[0] / columns, fill[1] / floors)) / 2
    panes = np.stack([u, v], 1)[:, None] + np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    glass = pick(rng, _WINDOWS, 8) * 0.7 + 0.3 * brush.weather.haze
    shades = glass * rng.uniform(0.75, 1.15, (len(panes), 1))
    evening = brush.weather.tint[2] < 0.75
    shades[rng.random(len(panes)) < (0.3 if evening else 0.02)] = _LAMPLIGHT
    brush.convex(_on_quad(corners, panes), shades, Material.GLASS)
    recess = panes.copy()
    recess[:, 2:, 1] = recess[:, :2, 1] + half[1] * 0.35
    brush.convex(_on_quad(corners, recess), shades * 0.62, Material.GLASS)
    bars = panes[:, :2].copy()
    bars[:, 0, 0] = bars[:, 1, 0] = u
    bars[:, 1, 1] += half[1] * 2
    brush.lines(_on_quad(corners, bars), colour * 0.9, material, 1)


def _on_quad(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map (..., 2) points of the unit square bilinearly to a quadrilateral, `corners` as in `_wall`."""
    u, v = points[..., :1], points[..., 1:]
    top = corners[0] * (1 - u) + corners[1] * u
    bottom = corners[3] * (1 - u) + corners[2] * u
    return top * (1 - v) + bottom * v

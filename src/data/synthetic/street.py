"""Things of the class "background" that people put up outdoors, most of them one to three pixels thin."""

from __future__ import annotations

import itertools

import numpy as np

from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import Material
from src.data.synthetic.view import pick

_PAINT = ((176, 44, 40), (46, 84, 146), (212, 210, 204), (44, 46, 50), (198, 158, 52), (70, 110, 84))
_STEEL = ((78, 80, 84), (120, 122, 124), (54, 56, 58), (96, 84, 70))
_TIMBER = ((128, 104, 78), (170, 160, 146), (132, 92, 58), (150, 120, 88))


def draw_power_line(brush: Brush, rng: np.random.Generator) -> None:
    """A row of poles that runs into the distance, and the cables that sag between them."""
    height, drift = rng.uniform(7, 10), rng.uniform(-0.9, 0.9) * brush.canvas.aspect
    wood = pick(rng, _STEEL)
    insulators = np.add([(-0.9, 0), (-0.3, 0), (0.3, 0), (0.9, 0), (-0.6, -0.9), (0.6, -0.9)], (0, height))
    hooks = []
    for ratio in (8, 4.4, 2.6, 1.6, 1, 0.6):
        pole = brush.farther(brush.distance * ratio, brush.x + drift * (1 - 1 / ratio))
        pole.convex([[(-0.12, 0), (0.12, 0), (0.08, height), (-0.08, height)]], wood, Material.WOOD)
        beams = [[(-1.05, height + y), (1.05, height + y)] for y in (0, -0.9)]
        pole.lines(beams, wood, Material.WOOD, 3)
        hooks.append(pole.place(insulators))
    t = np.linspace(0, 1, 24)[:, None]
    cable = brush.lit((48, 48, 52))
    for first, last in itertools.pairwise(hooks):
        sag = 0.4 * np.hypot(*(last - first).mean(0)) * np.concatenate([0 * t, t * (1 - t)], 1)
        paths = first[:, None] * (1 - t) + last[:, None] * t + sag
        brush.canvas.lines(paths, cable, Material.METAL, 2.5)


def draw_crane(brush: Brush, rng: np.random.Generator) -> None:
    """A tower crane of thin lattice."""
    height, reach, counter = rng.uniform(32, 50), rng.uniform(26, 38), 11.0
    side = rng.choice((-1.0, 1.0))
    paint = pick(rng, ((206, 168, 52), (176, 60, 48), (120, 120, 124)))
    mast = _lattice(np.array((0, 0)), np.array((0, height)), 26)
    jib = _lattice(np.array((-side * counter, height)), np.array((side * reach, height)), 30)
    brush.lines(np.concatenate([mast, jib]), paint, Material.METAL, 2)
    apex, hook = (0.0, height + 6.5), side * reach * rng.uniform(0.3, 0.9)
    stays = [
        [(0, height), apex],
        [apex, (side * reach * 0.7, height + 0.8)],
        [apex, (-side * counter, height + 0.8)],
        [(hook, height), (hook, height * rng.uniform(0.4, 0.8))],
    ]
    brush.lines(stays, paint * 0.8, Material.METAL, 2)
    weight = side * (1.5 - counter)
    brush.boxes([(weight - 1, weight + 1, height - 3, height)], paint * 0.6, Material.METAL)
    brush.boxes([(min(0, 2 * side), max(0, 2 * side), height - 2.2, height)], paint * 0.9, Material.METAL)


def _lattice(start: np.ndarray, end: np.ndarray, bays: int) -> np.ndarray:
    """Two chords 1.6 m apart and the crossed braces between them, as paths (N, 2, 2)."""
    along = (end - start) / np.hypot(*(end - start))
    across = np.array((-along[1], along[0])) * 0.8
    axis = start + (end - start) * np.linspace(0, 1, bays + 1)[:, None]
    upper, lower = axis + across, axis - across
    chords = [[upper[0], upper[-1]], [lower[0], lower[-1]]]
    braces = [*zip(upper, lower[1:], strict=False), *zip(lower, upper[1:], strict=False)]
    return np.array([*chords, *braces])


def draw_lamp_post(brush: Brush, rng: np.random.Generator) -> None:
    """A street lamp with a curved arm."""
    height, side = rng.uniform(4.5, 7), rng.choice((-1.0, 1.0))
    steel = pick(rng, _STEEL)
    brush.convex([[(-0.09, 0), (0.09, 0), (0.05, height), (-0.05, height)]], steel, Material.METAL)
    t = np.linspace(0, np.pi / 2, 12)
    arm = np.stack([side * 1.3 * (1 - np.cos(t)), height + 0.7 * np.sin(t)], 1)
    brush.lines([arm], steel, Material.METAL, 4)
    brush.ellipse((side * 1.5, height + 0.62), (0.42, 0.12), (206, 204, 190), Material.METAL)


def draw_sign(brush: Brush, rng: np.random.Generator) -> None:
    """A road sign on a thin post."""
    height = rng.uniform(2.2, 3.0)
    brush.boxes([(-0.035, 0.035, 0, height)], pick(rng, _STEEL), Material.METAL)
    corners = int(rng.choice((3, 4, 8, 24)))
    turn = np.arange(corners) / corners * 2 * np.pi + (np.pi / 2 if corners == 3 else np.pi / corners)
    outline = np.stack([np.cos(turn), np.sin(turn)], 1)
    white, paint = np.array((232, 232, 228)), pick(rng, _PAINT)
    for scale, colour in ((0.42, white), (0.37, paint), (0.2, white)):
        brush.convex([outline * scale + (0, height)], colour, Material.METAL)


def draw_fence(brush: Brush, rng: np.random.Generator) -> None:
    """A fence across the picture: wooden rails, a railing, or wire mesh between posts."""
    length, height = rng.uniform(10, 24), rng.uniform(0.9, 1.3)
    left = -length * rng.uniform(0.2, 0.8)
    posts = np.arange(left, left + length, 2.2)
    right = posts[-1]
    kind = rng.choice(("rails", "bars", "mesh"))
    if kind == "rails":
        wood = pick(rng, _TIMBER)
        brush.boxes([(x - 0.06, x + 0.06, 0, height) for x in posts], wood, Material.WOOD)
        brush.boxes([(left, right, y - 0.05, y + 0.05) for y in (0.4, 0.8)], wood * 0.92, Material.WOOD)
        return
    steel = pick(rng, _STEEL)
    brush.boxes([(x - 0.03, x + 0.03, 0, height) for x in posts], steel, Material.METAL)
    if kind == "bars":
        bars = [[(x, 0.12), (x, height)] for x in np.arange(left, right, 0.13)]
        brush.lines(bars + [[(left, y), (right, y)] for y in (0.12, height - 0.05)], steel, Material.METAL, 3)
    else:
        starts = np.arange(left - height, right, 0.16)
        rising = [[(x, 0), (x + height, height)] for x in starts]
        brush.lines(rising + [[(x + height, 0), (x, height)] for x in starts], steel, Material.METAL, 1.5)


def draw_bench(brush: Brush, rng: np.random.Generator) -> None:
    """A park bench with slats."""
    wood, iron = pick(rng, _TIMBER), np.array((50, 50, 52))
    brush.shadow(1.1, 0.14)
    for x in (-0.75, 0.75):
        for path in ([(x, 0), (x, 0.45), (x - 0.03, 0.9)], [(x + 0.1, 0), (x + 0.1, 0.45), (x, 0.45)]):
            brush.rod(path, (0.025,) * 3, iron, Material.METAL)
    seat, back = (0.42, 0.50), (0.64, 0.74, 0.84)
    for heights, tone in ((seat, 0.9), (back, 1.06)):
        brush.boxes([(-0.9, 0.9, y - 0.032, y + 0.032) for y in heights], wood * tone, Material.WOOD)


def draw_umbrella(brush: Brush, rng: np.random.Generator) -> None:
    """A sunshade of two colours on a pole, with a table under it."""
    paint, white = pick(rng, _PAINT), np.array((226, 222, 212))
    brush.shadow(1.5, 0.25, 2)
    brush.boxes([(-0.03, 0.03, 0, 2.5)], pick(rng, _STEEL), Material.METAL)
    rim = np.linspace(-1.5, 1.5, 9)
    for index, (left, right) in enumerate(itertools.pairwise(rim)):
        gore = [
            (left * 0.08, 2.62),
            (right * 0.08, 2.62),
            (right, 2.0),
            ((left + right) / 2, 1.96),
            (left, 2.0),
        ]
        brush.convex([gore], (paint if index % 2 else white) * (1 - 0.05 * index), Material.METAL)
    brush.boxes([(-0.6, 0.6, 0.7, 0.75)], pick(rng, _TIMBER), Material.WOOD)
    brush.lines([[(-0.5, 0), (0.4, 0.7)], [(0.5, 0), (-0.4, 0.7)]], pick(rng, _STEEL), Material.METAL, 3)

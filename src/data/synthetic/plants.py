"""Plants: trees that branch into thousands of leaves with gaps between them, bushes, reeds and tufts of grass."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import Material
from src.data.synthetic.view import pick, vary

_BARK = ((92, 80, 68), (112, 102, 92), (74, 66, 60), (150, 144, 136))
_LEAVES = (
    (84, 112, 44),
    (66, 98, 46),
    (104, 124, 56),
    (72, 92, 60),
    (84, 112, 44),
    (160, 112, 40),
    (150, 74, 40),
)
_STALKS = ((96, 112, 56), (134, 132, 78), (84, 104, 62))
_GRASS = ((84, 108, 50), (112, 124, 66), (140, 134, 84))
_BRANCHES_PER_LEVEL = 900


def draw_broadleaf(brush: Brush, rng: np.random.Generator) -> None:
    """A tree with a crown of leaves; one in ten is bare."""
    height = rng.uniform(4.5, 9)
    brush.shadow(height * 0.35, height * 0.06, height)
    tips = _branches(brush, rng, height)
    if rng.random() < 0.9:
        # A tree that fills the picture needs more and smaller leaves than one on the far shore.
        _leaves(brush, rng, tips, height, leaves=14000 * np.clip(height * brush.metre / 0.5, 0.7, 4))


def _branches(brush: Brush, rng: np.random.Generator, height: float) -> np.ndarray:
    """Trunk, boughs and twigs, each forking into the next level; returns points (N, 2) along the twigs."""
    bark = pick(rng, _BARK)
    start = np.zeros((1, 2))
    angle = np.pi / 2 + rng.normal(0, 0.05, 1)
    length = height * rng.uniform(0.24, 0.34, 1)
    radius = height * rng.uniform(0.018, 0.028, 1)
    tips = []
    for level in range(7):
        bend = angle + rng.normal(0, 0.12, len(angle))
        middle = start + _polar(bend, length / 2)
        end = middle + _polar(angle, length / 2)
        shade = bark * np.clip(1 + 0.35 * np.cos(angle) * brush.weather.sunward, 0.5, 1.3)[:, None]
        _boughs(brush, np.stack([start, middle, end], 1), radius, shade)
        if level >= 3:
            tips += [middle, end]
        forks = rng.integers(2, 4, len(angle)) if level else np.array([4])
        parent = np.repeat(np.arange(len(angle)), forks)
        parent = rng.permutation(parent)[:_BRANCHES_PER_LEVEL]
        spread = rng.normal(0, 0.52, len(parent))
        start, angle = end[parent], angle[parent] * 0.94 + np.pi / 2 * 0.06 + spread
        length = length[parent] * rng.uniform(0.62, 0.9, len(parent))
        radius = radius[parent] * rng.uniform(0.5, 0.68, len(parent))
    return np.concatenate(tips)


def _polar(angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]


def _boughs(brush: Brush, paths: np.ndarray, radius: np.ndarray, colours: np.ndarray) -> None:
    """Branches (N, 3, 2) in two tapering pieces each; below two pixels of thickness, lines."""
    thick = radius * brush.metre * brush.canvas.height >= 1
    paths_thick, wide, shade = paths[thick], radius[thick, None], colours[thick]
    for piece, start, end in ((0, 1.0, 0.85), (1, 0.85, 0.68)):
        first, last = paths_thick[:, piece], paths_thick[:, piece + 1]
        along = last - first
        across = np.stack([-along[:, 1], along[:, 0]], 1) / np.hypot(*along.T)[:, None] * wide
        quads = [first + across * start, last + across * end, last - across * end, first - across * start]
        brush.convex(np.stack(quads, 1), shade, Material.BARK)
        brush.ellipses(last, np.repeat(wide * end, 2, 1), np.zeros(len(last)), shade, Material.BARK)
    brush.lines(paths[~thick], colours[~thick], Material.BARK, 1.5)


def _leaves(brush: Brush, rng: np.random.Generator, tips: np.ndarray, height: float, leaves: float) -> None:
    """Leaves around the twigs, the shaded inner ones first and the sunlit ones last."""
    centres = np.repeat(tips, max(3, round(leaves / len(tips))), 0)
    count = len(centres)
    centres = centres + rng.normal(0, height * 0.018, centres.shape)
    outward = (centres - tips.mean(0)) / (tips.std(0) + 1e-6)
    light = np.tanh(outward @ (0.3 * brush.weather.sun, 0.4)) + rng.normal(0, 0.3, count)
    order = np.argsort(light + rng.normal(0, 0.5, count))
    centres, light = centres[order], light[order]
    base = pick(rng, _LEAVES, 8)
    level = np.clip(light * 0.5 + 0.5, 0, 1)[:, None]
    colours = base * ((0.46, 0.54, 0.58) * (1 - level) + (1.32, 1.28, 1.05) * level)
    length = height * rng.uniform(0.7, 1.35, count) / np.sqrt(leaves)
    axes = np.stack([length, length * rng.uniform(0.4, 0.7, count)], 1)
    brush.ellipses(centres, axes, rng.uniform(0, np.pi, count), colours, Material.FOLIAGE)


def draw_conifer(brush: Brush, rng: np.random.Generator) -> None:
    """A spruce: whorls of drooping branches covered with needles."""
    height, slenderness = rng.uniform(6, 13), rng.uniform(0.17, 0.24)
    bark = pick(rng, _BARK)
    brush.shadow(height * 0.2, height * 0.05, height)
    brush.convex([[(-height * 0.014, 0), (height * 0.014, 0), (0, height)]], bark, Material.BARK)
    level = np.repeat(np.linspace(0.1, 0.985, 34), 14)
    count = len(level)
    reach = height * (slenderness * (1 - level) ** 0.85 * rng.uniform(0.55, 1.1, count) + 0.008)
    side = rng.uniform(-1, 1, count)
    start = np.stack([np.zeros(count), level * height + rng.normal(0, height * 0.006, count)], 1)
    end = start + np.stack([side * reach, -reach * rng.uniform(0.15, 0.45, count)], 1)
    brush.lines(np.stack([start, end], 1), bark * 0.8, Material.BARK, 1.5)
    along = np.linspace(0.12, 1.05, 26)[None, :, None]
    centres = (start[:, None] * (1 - along) + end[:, None] * along).reshape(-1, 2)
    total = len(centres)
    centres += rng.normal(0, height * 0.005, centres.shape)
    light = (side[:, None] * brush.weather.sunward * 0.5 + along[..., 0] * 0.7 - 0.3).ravel()
    light = light + rng.normal(0, 0.25, total)
    order = np.argsort(light + rng.normal(0, 0.4, total))
    colours = vary(rng, (66, 90, 62), 10) * np.clip(0.62 + 0.42 * light, 0.35, 1.4)[:, None]
    length = height * rng.uniform(0.008, 0.014, total)
    axes = np.stack([length, length * 0.28], 1)
    tilt = np.repeat(side, along.size) * 0.5 + rng.normal(0, 0.5, total)
    brush.ellipses(centres[order], axes[order], tilt[order], colours[order], Material.FOLIAGE)


def draw_bush(brush: Brush, rng: np.random.Generator) -> None:
    """A round shrub, wider than high."""
    size, count = rng.uniform(0.5, 1.5), 260
    angle, radius = rng.uniform(0, np.pi, count), np.sqrt(rng.uniform(0, 1, count)) * size
    tips = _polar(angle, radius) * (rng.uniform(0.9, 1.5), 1)
    stems = np.stack([tips[:40] * (0.2, 0), tips[:40]], 1)
    brush.shadow(size * 1.4, size * 0.25, size)
    brush.lines(stems, pick(rng, _BARK), Material.BARK, 2)
    _leaves(brush, rng, tips, size * 2, leaves=6000)


def draw_reeds(brush: Brush, rng: np.random.Generator) -> None:
    """A clump of long thin leaves, as on the bank of a lake."""
    _blades(brush, rng, rng.uniform(0.5, 1.4), 0.5, 160, pick(rng, _STALKS), Material.FOLIAGE)


def draw_tuft(brush: Brush, rng: np.random.Generator) -> None:
    """Unmown grass."""
    _blades(brush, rng, rng.uniform(0.08, 0.22), 2.5, 160, pick(rng, _GRASS), Material.GRASS)


def _blades(
    brush: Brush,
    rng: np.random.Generator,
    height: float,
    spread: float,
    count: int,
    colour: np.ndarray,
    material: Material,
) -> None:
    """Bent blades from the ground; `spread` is the deviation of their feet in multiples of the height."""
    foot = rng.normal(0, (height * spread, height * spread * 0.08), (count, 2))
    foot = foot[np.argsort(-foot[:, 1])]
    lean = rng.normal(rng.normal(0, 0.15), 0.28, (count, 1))
    length = height * rng.uniform(0.5, 1.1, (count, 1))
    t = np.linspace(0, 1, 6)[None, :]
    paths = np.stack([foot[:, :1] + lean * length * t**1.8, foot[:, 1:] + length * t], -1)
    brush.lines(paths, colour * rng.uniform(0.6, 1.25, (count, 1)), material, 3)

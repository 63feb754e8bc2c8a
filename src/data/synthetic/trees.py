"""Trees: recursive branching that ends in thousands of leaves with gaps between them, conifers, bushes and reeds."""

from __future__ import annotations

import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.view import Camera, Spot, Weather, pick, vary

_BARK = ((92, 74, 58), (112, 98, 84), (74, 62, 54), (150, 142, 132))
_LEAVES = (
    (84, 112, 44),
    (66, 98, 46),
    (104, 124, 56),
    (72, 92, 60),
    (160, 112, 40),
    (150, 74, 40),
    (124, 118, 60),
)


def draw_tree(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, metres: float
) -> None:
    """One tree of any kind, about as high as said."""
    distance = camera.distance(spot.y)
    kind = rng.random()
    if kind < 0.22:
        _conifer(canvas, rng, weather, spot, metres, distance)
    else:
        _broadleaf(canvas, rng, weather, spot, metres, distance, bare=kind > 0.92)


def _broadleaf(
    canvas: Canvas,
    rng: np.random.Generator,
    weather: Weather,
    spot: Spot,
    height: float,
    distance: float,
    bare: bool,
) -> None:
    bark = weather.lit(pick(rng, _BARK), distance)
    radius = height * rng.uniform(0.018, 0.028)
    # One row per branch of a level: start x, start y, angle, length, radius.
    branches = np.array([[0, 0, np.pi / 2 + rng.normal(0, 0.05), height * rng.uniform(0.24, 0.34), radius]])
    tips = []
    levels = 7
    for level in range(levels):
        x, y, angle, length, thick = branches.T
        bend = angle + rng.normal(0, 0.12, len(branches))
        middle = np.stack([x + np.cos(bend) * length / 2, y + np.sin(bend) * length / 2], 1)
        end = middle + np.stack([np.cos(angle), np.sin(angle)], 1) * length[:, None] / 2
        start = branches[:, :2]
        shade = bark * np.clip(1 - 0.35 * np.cos(angle) * np.sign(weather.sun or 1), 0.5, 1.3)[:, None]
        _boughs(canvas, spot, start, middle, end, thick, shade)
        if level >= 3:
            tips.append(np.concatenate([middle, end]))
        forks = rng.integers(2, 4, len(branches)) if level else np.array([4])
        parent = np.repeat(np.arange(len(branches)), forks)
        children = len(parent)
        spread = rng.normal(0, 0.52, children)
        branches = np.stack(
            [
                end[parent, 0],
                end[parent, 1],
                angle[parent] * 0.94 + np.pi / 2 * 0.06 + spread,
                length[parent] * rng.uniform(0.62, 0.9, children),
                thick[parent] * rng.uniform(0.5, 0.68, children),
            ],
            1,
        )
        if children > 900:
            branches = branches[rng.permutation(children)[:900]]
    if not bare:
        _leaves(canvas, rng, weather, spot, np.concatenate(tips), height, distance)


def _boughs(
    canvas: Canvas,
    spot: Spot,
    start: np.ndarray,
    middle: np.ndarray,
    end: np.ndarray,
    radius: np.ndarray,
    colours: np.ndarray,
) -> None:
    """Two tapering pieces per branch; below two pixels of thickness, a line."""
    thick = radius * spot.metre * canvas.height >= 1.0
    for first, last, wide, narrow in ((start, middle, 1.0, 0.85), (middle, end, 0.85, 0.68)):
        along = last - first
        across = np.stack([-along[:, 1], along[:, 0]], 1)
        across /= np.maximum(np.hypot(*across.T), 1e-9)[:, None]
        w, n = across * (radius * wide)[:, None], across * (radius * narrow)[:, None]
        quads = np.stack([first + w, last + n + along * 0.03, last - n + along * 0.03, first - w], 1)
        canvas.convex(spot.place(quads[thick]), colours[thick], Material.BARK)
    paths = np.stack([start, middle, end], 1)[~thick]
    canvas.lines(spot.place(paths), colours[~thick], Material.BARK, 1.5)


def _leaves(
    canvas: Canvas,
    rng: np.random.Generator,
    weather: Weather,
    spot: Spot,
    tips: np.ndarray,
    height: float,
    distance: float,
) -> None:
    """Leaves around the twigs, the shaded inner ones first and the sunlit ones last."""
    per_tip = int(np.clip(14000 / len(tips), 3, 60))
    centres = np.repeat(tips, per_tip, 0)
    centres = centres + rng.normal(0, height * 0.018, centres.shape)
    count = len(centres)
    middle, spread = tips.mean(0), tips.std(0) + 1e-6
    outward = (centres - middle) / spread
    sun = np.array([0.55 * weather.sun, 0.75])
    light = np.tanh(outward @ sun * 0.55) + rng.normal(0, 0.30, count)
    order = np.argsort(light + rng.normal(0, 0.5, count))
    centres, light = centres[order], light[order]
    base = pick(rng, _LEAVES, 8)
    warm = base * (1.26, 1.22, 1.0) + (10, 10, 0)
    cool = base * (0.46, 0.54, 0.58)
    level = np.clip(light * 0.5 + 0.5, 0, 1)[:, None]
    colours = weather.lit(cool * (1 - level) + warm * level, distance)
    colours = colours * rng.uniform(0.9, 1.1, (count, 1))
    length = height * rng.uniform(0.007, 0.013, count) * spot.metre
    axes = np.stack([length, length * rng.uniform(0.4, 0.7, count)], 1)
    canvas.scatter(spot.place(centres), axes, rng.uniform(0, np.pi, count), colours, Material.FOLIAGE)


def _conifer(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, spot: Spot, height: float, distance: float
) -> None:
    """A spruce: whorls of drooping branches covered with needles."""
    bark = weather.lit(pick(rng, _BARK), distance)
    wide = height * rng.uniform(0.17, 0.24)
    trunk = [(-height * 0.014, 0), (height * 0.014, 0), (0, height)]
    canvas.convex([spot.place(trunk)], bark, Material.BARK)
    whorls = 34
    level = np.repeat(np.linspace(0.10, 0.985, whorls), 14)
    count = len(level)
    reach = wide * (1 - level) ** 0.85 * rng.uniform(0.55, 1.1, count) + height * 0.008
    side = rng.uniform(-1, 1, count)
    start = np.stack([np.zeros(count), level * height + rng.normal(0, height * 0.006, count)], 1)
    end = start + np.stack([side * reach, -reach * rng.uniform(0.15, 0.45, count)], 1)
    canvas.lines(spot.place(np.stack([start, end], 1)), bark * 0.8, Material.BARK, 1.5)
    needles = 26
    along = np.tile(np.linspace(0.12, 1.05, needles), count)[:, None]
    centres = np.repeat(start, needles, 0) * (1 - along) + np.repeat(end, needles, 0) * along
    centres += rng.normal(0, height * 0.005, centres.shape)
    total = len(centres)
    light = np.repeat(side, needles) * np.sign(weather.sun or 1) * 0.5 + along[:, 0] * 0.7 - 0.3
    light = light + rng.normal(0, 0.25, total)
    order = np.argsort(light + rng.normal(0, 0.4, total))
    base = vary(rng, (62, 88, 60), 10)
    shade = np.clip(0.62 + 0.42 * light, 0.35, 1.4)[:, None]
    colours = weather.lit(base * shade + (6, 8, 0), distance)
    length = height * rng.uniform(0.008, 0.014, total) * spot.metre
    axes = np.stack([length, length * 0.28], 1)
    tilt = np.repeat(side, needles) * 0.5 + rng.normal(0, 0.5, total)
    canvas.scatter(spot.place(centres[order]), axes[order], tilt[order], colours[order], Material.FOLIAGE)


def draw_bush(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, metres: float
) -> None:
    """A round shrub of leaves, wider than high."""
    distance = camera.distance(spot.y)
    count = 260
    angle = rng.uniform(0, np.pi, count)
    radius = np.sqrt(rng.uniform(0, 1, count))
    tips = np.stack([np.cos(angle) * radius * metres * 0.9, np.sin(angle) * radius * metres], 1)
    stems = np.stack([np.stack([tips[:40, 0] * 0.2, np.zeros(40)], 1), tips[:40]], 1)
    canvas.lines(spot.place(stems), weather.lit(pick(rng, _BARK), distance), Material.BARK, 2)
    _leaves(canvas, rng, weather, spot, tips, metres * 2.2, distance)


def draw_reeds(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot: Spot, metres: float
) -> None:
    """A clump of long thin leaves, as on the bank of a lake."""
    distance = camera.distance(spot.y)
    count = 160
    foot = np.stack([rng.normal(0, metres * 0.5, count), rng.uniform(-0.05, 0.05, count) * metres], 1)
    lean = rng.normal(0, 0.28, count)
    length = metres * rng.uniform(0.5, 1.1, count)
    t = np.linspace(0, 1, 6)[None, :]
    x = foot[:, :1] + (lean * length)[:, None] * t**1.8
    y = foot[:, 1:] + length[:, None] * t
    base = pick(rng, ((96, 112, 56), (134, 132, 78), (84, 104, 62)))
    colours = weather.lit(base * rng.uniform(0.6, 1.25, (count, 1)), distance)
    canvas.lines(spot.place(np.stack([x, y], -1)), colours, Material.FOLIAGE, 3)

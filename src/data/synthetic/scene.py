"""Compose a scene from back to front and finish it like a photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from src.data.synthetic import buildings, people, plants, street, vehicles
from src.data.synthetic.backdrop import Backdrop
from src.data.synthetic.brush import Brush
from src.data.synthetic.canvas import CLASS_OF_MATERIAL, Canvas, Material
from src.data.synthetic.textures import NEUTRAL, grain_bank, ridge
from src.data.synthetic.view import Camera, Weather, draw_weather
from src.errors import UserError

_SMALLEST_SIDE = 64
_TRIES = 8  # places looked at for a thing before the scene goes without it


class _Prop(NamedTuple):
    """Things of one kind: how they are drawn, the chance that a scene has any, how many, how many metres away."""

    draw: Callable[[Brush, np.random.Generator], None]
    chance: float
    most: int
    near: float
    far: float


_FAR_SHORE = (
    _Prop(buildings.draw_block, 0.75, 6, 70, 160),
    _Prop(buildings.draw_house, 0.6, 4, 60, 100),
    _Prop(buildings.draw_bell_tower, 0.3, 1, 70, 120),
    _Prop(buildings.draw_shell, 0.3, 1, 80, 140),
    _Prop(street.draw_crane, 0.35, 2, 90, 170),
    _Prop(plants.draw_broadleaf, 0.9, 6, 58, 100),
    _Prop(plants.draw_conifer, 0.5, 5, 58, 110),
)
_AFLOAT = (_Prop(vehicles.draw_boat, 0.6, 3, 16, 45),)
_ON_LAND = (
    _Prop(plants.draw_broadleaf, 0.85, 3, 10, 40),
    _Prop(plants.draw_broadleaf, 0.25, 1, 5, 8),
    _Prop(plants.draw_conifer, 0.3, 2, 18, 45),
    _Prop(plants.draw_bush, 0.6, 4, 5, 20),
    _Prop(people.draw_person, 0.9, 4, 4, 20),
    _Prop(people.draw_person, 0.6, 1, 2.0, 3.2),
    _Prop(street.draw_power_line, 0.4, 1, 13, 24),
    _Prop(street.draw_fence, 0.5, 1, 4, 14),
    _Prop(street.draw_lamp_post, 0.5, 2, 8, 25),
    _Prop(street.draw_sign, 0.4, 1, 7, 16),
    _Prop(street.draw_bench, 0.4, 1, 4.5, 12),
    _Prop(street.draw_umbrella, 0.3, 2, 6, 16),
    _Prop(vehicles.draw_car, 0.45, 2, 8, 22),
    _Prop(vehicles.draw_bicycle, 0.4, 2, 3.5, 9),
    _Prop(plants.draw_tuft, 0.7, 24, 2.0, 12),
)


def check_request(height: int, width: int, class_ids: Mapping[str, int]) -> None:
    """Refuse what `draw_scene` cannot draw, before any work.

    Raises:
        UserError: the picture is too small, or a class of the scenes has no id.
    """
    if min(height, width) < _SMALLEST_SIDE:
        raise UserError(
            f"synthetic scenes of {width}x{height} pixels are too small: use {_SMALLEST_SIDE} or more on each side"
        )
    missing = sorted(set(CLASS_OF_MATERIAL.values()) - class_ids.keys())
    if missing:
        raise UserError(
            f"synthetic scenes show {', '.join(missing)}, which data.classes does not have: add them"
        )


def draw_scene(
    seed: int, height: int, width: int, class_ids: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; everything follows from the seed and the aspect ratio.

    The same seed at another size of the same aspect shows the same composition.

    Args:
        seed: not negative.
        height: of the picture in pixels, at least 64.
        width: of the picture in pixels, at least 64.
        class_ids: id of each class name: background, person, building, tree, ground, sky, water.

    Returns:
        The RGB image (H, W, 3) uint8 and its label map (H, W) uint8.

    Raises:
        UserError: see `check_request`.
    """
    check_request(height, width, class_ids)
    # Each part draws from a stream of its own, so changing one leaves the others as they were.
    plan, *streams = np.random.default_rng(seed).spawn(12)
    canvas, weather = Canvas(height, width), draw_weather(plan)
    camera = Camera(horizon=float(plan.uniform(0.42, 0.66)), height=float(plan.uniform(1.5, 2.8)))
    backdrop = Backdrop(canvas, weather, camera)
    first, second = plan.permutation((Material.GRASS, Material.SAND, Material.PAVING))[:2]

    backdrop.sky(streams[0])
    _in_the_air(canvas, streams[1], weather, camera)
    backdrop.hills(streams[2])
    backdrop.ground(streams[3], Material(first))
    if plan.random() < 0.6:
        backdrop.path(streams[4], Material(second))
    brush = Brush(canvas, weather, camera, x=0, distance=1)
    near = np.full(200, camera.horizon)
    _arrange(brush, streams[5], _FAR_SHORE, near)
    if plan.random() < 0.82:
        far, near = _shores(plan, camera)
        backdrop.water(streams[6], far, near)
        _arrange(brush, streams[7], _AFLOAT, near, afloat=True)
        _reeds(brush, streams[8], near)
    _arrange(brush, streams[9], _ON_LAND, near)
    return _finish(canvas, streams[10]), canvas.label(class_ids)


def _in_the_air(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera) -> None:
    for draw, chance in ((vehicles.draw_balloon, 0.3), (vehicles.draw_birds, 0.4)):
        x, y = rng.uniform((0.1, 0.15), (0.9, 0.6)) * (canvas.aspect, camera.horizon)
        if rng.random() < chance:
            draw(canvas, rng, weather, x, y)


def _shores(rng: np.random.Generator, camera: Camera) -> tuple[float, np.ndarray]:
    """Normalised y of the far shore, and of the near shore from left to right."""
    far = camera.y(rng.uniform(38, 56))
    slope = np.linspace(-1, 1, 200) * rng.uniform(-0.35, 0.35)
    near = far + (1 - far) * (rng.uniform(0.2, 0.65) + slope + 0.1 * ridge(rng, 200, 3))
    return far, np.clip(near, far, 1.2)


def _arrange(
    brush: Brush,
    rng: np.random.Generator,
    props: tuple[_Prop, ...],
    shore: np.ndarray,
    afloat: bool = False,
) -> None:
    """Place things at random and draw them, the farthest first.

    Args:
        brush: anywhere.
        rng: source of randomness.
        props: what to draw.
        shore: (N,) normalised y of the near shore; things on land stand on our side of it.
        afloat: the things are on the water beyond it instead.
    """
    placed = []
    places = np.linspace(0, 1, len(shore))
    for prop in props:
        if rng.random() > prop.chance:
            continue
        for _ in range(int(rng.integers(1, prop.most + 1))):
            for x, depth in rng.uniform((0.02, 0), (0.98, 1), (_TRIES, 2)):
                distance = float(prop.near * (prop.far / prop.near) ** depth)
                inland = brush.camera.y(distance) - np.interp(x, places, shore)
                if inland < -0.01 if afloat else inland > 0.004:
                    placed.append((distance, x * brush.canvas.aspect, prop))
                    break
    for distance, x, prop in sorted(placed, key=lambda thing: -thing[0]):
        prop.draw(brush.farther(distance, x), rng)


def _reeds(brush: Brush, rng: np.random.Generator, shore: np.ndarray) -> None:
    """Reeds along the near shore."""
    for x in rng.uniform(0, 1, int(rng.integers(0, 8))):
        y = float(np.interp(x, np.linspace(0, 1, len(shore)), shore)) + 0.004
        if brush.camera.y(60) < y < 1.02:
            plants.draw_reeds(brush.farther(brush.camera.distance(y), x * brush.canvas.aspect), rng)


def _finish(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Soften the drawing like a lens, then apply grain, vignette and exposure; (H, W, 3) uint8."""
    height, width = canvas.height, canvas.width
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    exposure, slope = rng.uniform(0.98, 1.12), rng.normal(0, 0.05, 2)
    light = exposure * (1 - 0.07 * (x**2 + y**2) ** 1.5) + slope[0] * x + slope[1] * y
    light = cv2.resize((light * NEUTRAL).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    tile = int(2 ** np.clip(np.round(np.log2(min(height, width) / 3)), 6, 10))
    bank = grain_bank(rng, tile).reshape(-1)
    image = cv2.GaussianBlur(cv2.cvtColor(canvas.pixels, cv2.COLOR_RGBA2RGB), (3, 3), 0.55)
    columns = np.arange(width, dtype=np.int32) % tile
    for band in canvas.bands():
        rows = np.arange(band.start, band.stop, dtype=np.int32)[:, None] % tile
        grain = np.take(bank, (canvas.pixels[band, :, 3].astype(np.int32) * tile + rows) * tile + columns)
        gain = cv2.multiply(grain, light[band], scale=1 / NEUTRAL)
        image[band] = cv2.multiply(image[band], cv2.merge([gain] * 3), scale=1 / NEUTRAL)
    return image

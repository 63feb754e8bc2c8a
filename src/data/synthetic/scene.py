"""Compose a scene from back to front and finish it like a photo."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from src.data.synthetic import backdrop, buildings, objects, people, trees
from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.textures import NEUTRAL, grain_bank, ridge
from src.data.synthetic.view import Camera, Weather, draw_weather


def draw_scene(
    seed: int, height: int, width: int, class_ids: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene; everything follows from the seed and the aspect ratio.

    The same seed at another size of the same aspect shows the same composition.

    Args:
        seed: not negative.
        height: of the picture in pixels, at least 32.
        width: of the picture in pixels, at least 32.
        class_ids: id of each class name: background, person, building, tree, ground, sky, water.

    Returns:
        The RGB image (H, W, 3) uint8 and its label map (H, W) uint8.

    Raises:
        ValueError: the picture is too small.
        KeyError: a class name has no id.
    """
    if min(height, width) < 32:
        raise ValueError(f"A scene needs at least 32 pixels on each side, got {width}x{height}.")
    # Each part draws from its own stream, so changing one leaves the others alone.
    streams = iter(np.random.default_rng([seed, 20250]).spawn(32))
    canvas = Canvas(height, width)
    plan = next(streams)
    weather = draw_weather(plan)
    camera = Camera(horizon=float(plan.uniform(0.40, 0.62)), height=float(plan.uniform(1.5, 2.6)))

    backdrop.paint_sky(canvas, next(streams), weather, camera)
    backdrop.paint_hills(canvas, next(streams), weather, camera)
    grounds = plan.permutation([Material.GRASS, Material.SAND, Material.PAVING])
    backdrop.paint_ground(canvas, next(streams), weather, camera, Material(int(grounds[0])))
    if plan.random() < 0.6:
        backdrop.paint_path(canvas, next(streams), weather, camera, Material(int(grounds[1])))
    _far_shore(canvas, next(streams), weather, camera)
    wet = _lake(canvas, plan, next(streams), weather, camera)
    _foreground(canvas, next(streams), weather, camera, wet)
    return _finish(canvas, next(streams)), canvas.label(class_ids)


def _far_shore(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera) -> None:
    """Buildings and trees along the horizon, and sometimes a crane."""
    things = []
    centre = rng.uniform(0.1, 0.9) * canvas.aspect
    for _ in range(int(rng.integers(3, 9)) if rng.random() < 0.85 else 0):
        x = rng.normal(centre, 0.35 * canvas.aspect)
        things.append((camera.horizon + rng.uniform(0.012, 0.028), x, "building"))
    for _ in range(int(rng.integers(2, 8))):
        things.append((camera.horizon + rng.uniform(0.014, 0.032), rng.uniform(0, canvas.aspect), "tree"))
    if rng.random() < 0.35:
        things.append((camera.horizon + 0.014, rng.uniform(0.1, 0.9) * canvas.aspect, "crane"))
    for y, x, kind in sorted(things):
        spot = camera.spot(x, y)
        if kind == "building":
            metres = rng.uniform(8, 40) if rng.random() < 0.7 else rng.uniform(6, 14)
            buildings.draw_building(canvas, rng, weather, camera, spot, metres)
        elif kind == "tree":
            trees.draw_tree(canvas, rng, weather, camera, spot, rng.uniform(6, 13))
        else:
            objects.draw_crane(canvas, rng, weather, camera, spot)


def _lake(
    canvas: Canvas, plan: np.random.Generator, rng: np.random.Generator, weather: Weather, camera: Camera
) -> np.ndarray | None:
    """Water in front of the far shore in four scenes of five; returns the near shore's y from left to right."""
    if plan.random() > 0.82:
        return None
    far = camera.horizon + plan.uniform(0.030, 0.045)
    room = 1 - far
    tilt = np.linspace(-1, 1, 200) * plan.uniform(-0.35, 0.35)
    near = far + room * (plan.uniform(0.2, 0.65) + tilt + 0.10 * ridge(plan, 200, 3))
    near = np.clip(near, far, 1.2)
    backdrop.paint_water(canvas, rng, weather, camera, far, near)
    return near


def _foreground(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, shore: np.ndarray | None
) -> None:
    """Trees, people and things between the shore and the camera, the farthest first."""
    if shore is not None:
        for _ in range(int(rng.integers(0, 3))):
            x = rng.uniform(0.05, 0.95)
            bank = float(np.interp(x, np.linspace(0, 1, len(shore)), shore))
            y = camera.horizon + 0.05 + (bank - camera.horizon - 0.05) * rng.uniform(0.1, 0.6)
            if bank - camera.horizon > 0.1:
                objects.draw_boat(canvas, rng, weather, camera, camera.spot(x * canvas.aspect, y))
    if rng.random() < 0.3:
        objects.draw_balloon(canvas, rng, weather, rng.uniform(0.1, 0.9) * canvas.aspect, rng.uniform(0.08, 0.25), rng.uniform(0.03, 0.07))  # fmt: skip
    if rng.random() < 0.4:
        objects.draw_birds(
            canvas, rng, weather, rng.uniform(0.1, 0.9) * canvas.aspect, rng.uniform(0.08, 0.3)
        )

    things: list[tuple[float, float, str]] = []

    def scatter(kind: str, count: int, nearest: float, farthest: float) -> None:
        for _ in range(count):
            x = rng.uniform(0.02, 0.98)
            bank = (
                camera.horizon + 0.03
                if shore is None
                else float(np.interp(x, np.linspace(0, 1, len(shore)), shore))
            )
            first = max(bank + 0.01, camera.horizon + farthest)
            y = first + (camera.horizon + nearest - first) * rng.random()
            if y >= first:
                things.append((y, x * canvas.aspect, kind))

    scatter("tree", int(rng.integers(1, 4)), 0.30, 0.06)
    scatter("bush", int(rng.integers(0, 4)), 0.35, 0.08)
    scatter("person", int(rng.integers(1, 5)), 0.55, 0.10)
    scatter("close person", int(rng.random() < 0.45), 1.1, 0.55)
    for kind, chance in (("power line", 0.45), ("fence", 0.5), ("lamp post", 0.5), ("sign", 0.4), ("car", 0.4), ("bicycle", 0.35), ("bench", 0.35)):  # fmt: skip
        if rng.random() < chance:
            scatter(kind, 1, 0.42, 0.12)
    if shore is not None:
        for x in rng.uniform(0, 1, int(rng.integers(0, 7))):
            bank = float(np.interp(x, np.linspace(0, 1, len(shore)), shore))
            if bank < 1.02:
                things.append((bank + 0.004, x * canvas.aspect, "reeds"))
    for y, x, kind in sorted(things):
        _stand(canvas, rng, weather, camera, camera.spot(x, y), kind)


def _stand(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, spot, kind: str
) -> None:
    things = {
        "power line": objects.draw_power_line,
        "fence": objects.draw_fence,
        "lamp post": objects.draw_lamp_post,
        "sign": objects.draw_sign,
        "car": objects.draw_car,
        "bicycle": objects.draw_bicycle,
        "bench": objects.draw_bench,
    }
    slide = -weather.sun * 0.4
    if kind == "tree":
        metres = rng.uniform(5, 9)
        canvas.shadow(
            spot.place((slide * metres * 0.4, 0)),
            (metres * 0.4 * spot.metre, metres * 0.07 * spot.metre),
            weather.shadow,
        )
        trees.draw_tree(canvas, rng, weather, camera, spot, metres)
    elif kind == "bush":
        trees.draw_bush(canvas, rng, weather, camera, spot, rng.uniform(0.6, 1.5))
    elif kind == "reeds":
        trees.draw_reeds(canvas, rng, weather, camera, spot, rng.uniform(0.4, 1.2))
    elif kind.endswith("person"):
        canvas.shadow(spot.place((slide, 0.02)), (0.6 * spot.metre, 0.1 * spot.metre), weather.shadow)
        people.draw_person(canvas, rng, weather, camera, spot, rng.uniform(1.5, 1.9))
    else:
        things[kind](canvas, rng, weather, camera, spot)


def _finish(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Soften the drawing like a lens, then apply grain, vignette and exposure; (H, W, 3) uint8."""
    height, width = canvas.height, canvas.width
    tile = 1 << max(6, round(np.log2(min(height, width) / 3)))
    bank = grain_bank(rng, tile)
    rows = np.arange(height, dtype=np.int32) % tile * tile
    columns = np.arange(width, dtype=np.int32) % tile
    index = canvas.materials.astype(np.int32) * (tile * tile)
    index += rows[:, None]
    index += columns[None, :]
    gain = np.take(bank.reshape(-1), index)

    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    slope = rng.normal(0, 0.05, 2)
    light = rng.uniform(0.94, 1.08) * (1 - 0.10 * (x**2 + y**2) ** 1.5) + slope[0] * x + slope[1] * y
    light = cv2.resize((light * NEUTRAL).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    gain = cv2.multiply(gain, np.clip(light, 0, 255).astype(np.uint8), scale=1 / NEUTRAL)
    soft = cv2.GaussianBlur(canvas.rgb, (3, 3), 0.55)
    return cv2.multiply(soft, cv2.merge([gain, gain, gain]), scale=1 / NEUTRAL)

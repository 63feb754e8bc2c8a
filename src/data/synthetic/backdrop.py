"""The large surfaces of a scene: sky with clouds, wooded hills, textured ground, water with reflections."""

from __future__ import annotations

import cv2
import numpy as np

from src.data.synthetic.canvas import Canvas, Material
from src.data.synthetic.textures import fractal_noise, paving_tile, ridge
from src.data.synthetic.view import Camera, Weather, pick, vary

_SKY_ROWS = 512  # the sky is smooth: it is computed at this height and enlarged
_TILE = 1024
_FADE = 0.05  # below the horizon the ground's texture fades in over this height

_GROUND_COLOURS = {
    Material.GRASS: ((84, 112, 48), (104, 128, 60), (128, 132, 72), (70, 100, 52)),
    Material.SAND: ((206, 186, 146), (186, 162, 120), (168, 142, 108), (196, 190, 176)),
    Material.PAVING: ((150, 148, 144), (176, 168, 156), (128, 130, 134), (160, 140, 124)),
}
_WATER_COLOURS = ((38, 74, 96), (54, 96, 104), (70, 90, 86), (30, 66, 112), (92, 108, 112))


def paint_sky(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera) -> None:
    """Gradient, glow of the sun, and clouds on a plane overhead; covers the whole canvas."""
    columns = round(_SKY_ROWS * canvas.aspect)
    x, y = np.meshgrid(
        (np.arange(columns, dtype=np.float32) + 0.5) / _SKY_ROWS,
        (np.arange(_SKY_ROWS, dtype=np.float32) + 0.5) / _SKY_ROWS,
    )
    elevation = np.clip(camera.horizon - y, 0, None)
    height = np.clip(elevation / camera.horizon, 0, 1)[..., None] ** 0.7
    sky = weather.haze * (1 - height) + weather.zenith * height

    sun_x = (0.5 + 0.6 * weather.sun) * canvas.aspect
    sun_y = camera.horizon * rng.uniform(0.1, 0.8)
    glow = np.exp(-((x - sun_x) ** 2 + (y - sun_y) ** 2) / 0.12)[..., None]
    sky += glow * (np.minimum(weather.haze * 1.25, 255) - sky) * 0.6

    noise = fractal_noise(rng, _TILE, 5, 7)
    plane = 0.09 + elevation
    u = (x - canvas.aspect / 2) / plane * 70 + rng.uniform(0, _TILE)
    v = 1 / plane * 90 + rng.uniform(0, _TILE)
    density = cv2.remap(noise, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    sunward = cv2.remap(noise, u + 14 * weather.sun, v + 10, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    threshold = 1.6 - 3.0 * weather.cover
    opacity = np.clip((density - threshold) / 0.9, 0, 1)[..., None] ** 0.8
    light = np.clip(0.62 + 0.55 * (density - sunward) - 0.22 * (density - threshold), 0, 1)[..., None]
    clouds = weather.cloud_dark * (1 - light) + weather.cloud_light * light
    clouds += (weather.haze - clouds) * np.exp(-elevation / 0.10)[..., None] * 0.7
    sky += (clouds - sky) * opacity

    # In sixteenths, so that the enlarged gradient has no visible steps: the last bits become dither.
    fine = cv2.resize(
        (sky * 16).astype(np.uint16), (canvas.width, canvas.height), interpolation=cv2.INTER_CUBIC
    )
    dither = rng.integers(0, 16, (64, 64), dtype=np.uint16)
    dither = np.tile(dither, (canvas.height // 64 + 1, canvas.width // 64 + 1))[
        : canvas.height, : canvas.width
    ]
    for channel in range(3):
        canvas.pixels[..., channel] = np.minimum((fine[..., channel] + dither) >> 4, 255)
    canvas.pixels[..., 3] = Material.AIR


def paint_hills(canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera) -> None:
    """One to three wooded ridges along the horizon, the farthest first, each with a leafy skyline."""
    layers = int(rng.integers(1, 4))
    green = pick(rng, ((58, 84, 48), (74, 92, 52), (66, 78, 60), (96, 84, 48)))
    points = 500
    x = np.linspace(-0.02, canvas.aspect + 0.02, points)
    for layer in range(layers):
        nearness = (layer + 1) / layers
        top = 0.05 * (1.25 - nearness) + 0.05 * (1.3 - nearness) * ridge(rng, points, 3)
        top = camera.horizon - np.clip(top, 0.006, None)
        distance = weather.visibility * (1.7 - 1.4 * nearness)
        colour = weather.lit(green, distance)
        floor = [(x[-1], camera.horizon + 0.01), (x[0], camera.horizon + 0.01)]
        canvas.polygon([*np.stack([x, top], 1), *floor], colour, Material.FOLIAGE)
        crowns = 700
        at = rng.uniform(0, points - 1, crowns)
        centres = np.stack([np.interp(at, np.arange(points), x), np.interp(at, np.arange(points), top)], 1)
        centres[:, 1] += rng.uniform(-0.001, 0.012, crowns) * nearness
        axes = rng.uniform(0.0015, 0.005, (crowns, 2)) * (0.4 + nearness)
        shades = colour * rng.uniform(0.82, 1.1, (crowns, 1))
        canvas.scatter(centres, axes, rng.uniform(0, 3, crowns), shades, Material.FOLIAGE)


def paint_ground(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, material: Material
) -> None:
    """Everything below the horizon, with the material's texture in perspective."""
    colour = weather.lit(pick(rng, _GROUND_COLOURS[material]))
    top = min(canvas.height - 1, round((camera.horizon + 0.002) * canvas.height))
    _paint_plane(canvas, rng, weather, camera, material, colour, np.full(canvas.width, top))


def paint_path(
    canvas: Canvas, rng: np.random.Generator, weather: Weather, camera: Camera, material: Material
) -> None:
    """A road or a path from the foreground towards the horizon."""
    colour = weather.lit(pick(rng, _GROUND_COLOURS[material]))
    vanishing = rng.uniform(0.2, 0.8) * canvas.aspect
    left = vanishing + rng.uniform(-1.0, 0.2)
    width = rng.uniform(0.3, 0.9)
    depth = np.linspace(0, 1, 60) ** 2
    y = camera.horizon + 0.012 + depth * (1.02 - camera.horizon)
    bend = 0.05 * np.sin(depth * 6 + rng.uniform(0, 6)) * (1 - depth)
    edge = vanishing + (left - vanishing) * depth + bend
    outline = np.concatenate([np.stack([edge, y], 1), np.stack([edge + 0.012 + width * depth, y], 1)[::-1]])
    mask = np.zeros((canvas.height, canvas.width), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * canvas.height).astype(np.int32)], 1)
    top = round(float(y[0]) * canvas.height)
    _paint_plane(canvas, rng, weather, camera, material, colour, np.full(canvas.width, top), mask)


def _paint_plane(
    canvas: Canvas,
    rng: np.random.Generator,
    weather: Weather,
    camera: Camera,
    material: Material,
    colour: np.ndarray,
    top: np.ndarray,
    mask: np.ndarray | None = None,
) -> None:
    first = int(top.min())
    rows = np.arange(first, canvas.height, dtype=np.float32) + 0.5
    below = np.maximum(rows / canvas.height - camera.horizon, 1e-3)
    columns = (np.arange(canvas.width, dtype=np.float32) + 0.5) / canvas.height - canvas.aspect / 2
    depth = (camera.height / below)[:, None]
    turn = rng.uniform(-0.5, 0.5) if material is Material.PAVING else 0.0
    across = columns[None, :] * depth
    east = across * np.cos(turn) - depth * np.sin(turn)
    north = across * np.sin(turn) + depth * np.cos(turn)
    if material is Material.PAVING:
        fine, metres = paving_tile(rng, _TILE, 8), rng.uniform(3, 6)
    elif material is Material.GRASS:
        fine, metres = fractal_noise(rng, _TILE, 90, 3, stretch=0.4), 4.0
    else:
        fine, metres = fractal_noise(rng, _TILE, 30, 5, stretch=2.0), 5.0
    coarse = fractal_noise(rng, _TILE // 4, 4, 4)
    fade = np.clip((below / _FADE), 0, 1)[:, None]
    value = _wrap(fine, east, north, metres) * fade * (0.30 if material is Material.SAND else 0.5)
    value += _wrap(coarse, east, north, 26.0) * (0.4 + 0.6 * fade) * 0.6
    ramp = _ramp(colour, weather, material)
    shades = cv2.LUT(cv2.merge([np.clip(value * 48 + 128, 0, 255).astype(np.uint8)] * 3), ramp[:, None, :])
    haze = np.exp(-depth[:, 0] / weather.visibility)[:, None, None]
    near = haze[:, 0, 0] < 0.98
    shades[near] = shades[near] * haze[near] + weather.haze * (1 - haze[near])
    region = canvas.pixels[first:]
    if mask is None:
        region[..., :3] = shades
        region[..., 3] = material
    else:
        inside = mask[first:] > 0
        region[inside, :3] = shades[inside]
        region[inside, 3] = material


def _ramp(colour: np.ndarray, weather: Weather, material: Material) -> np.ndarray:
    """(256, 3) uint8 from the dark to the light end of a ground's colour; grass yellows where it is light."""
    level = np.linspace(-1, 1, 256)[:, None]
    light_end = np.array([1.30, 1.2, 1.1]) if material is Material.GRASS else np.array([1.18, 1.18, 1.18])
    dark_end = np.array([0.62, 0.68, 0.62])
    factor = 1 + np.where(level > 0, (light_end - 1) * level, (1 - dark_end) * level)
    return np.clip(colour * factor, 0, 255).astype(np.uint8)


def _wrap(tile: np.ndarray, east: np.ndarray, north: np.ndarray, metres: float) -> np.ndarray:
    """Look a tile up that repeats every `metres` on the ground plane."""
    scale = len(tile) / metres
    size = np.float32(len(tile))
    return cv2.remap(
        tile,
        np.mod(east * scale, size).astype(np.float32),
        np.mod(north * scale, size).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


def paint_water(
    canvas: Canvas,
    rng: np.random.Generator,
    weather: Weather,
    camera: Camera,
    far: float,
    near: np.ndarray,
) -> None:
    """Water between two shores, with ripples and a broken mirror image of what is already drawn behind it.

    Args:
        canvas: with everything beyond the far shore on it.
        rng: source of randomness.
        weather: colours of the light.
        camera: for the perspective of the ripples.
        far: normalised y of the far shore, below the horizon.
        near: (N,) normalised y of the near shore, from the left to the right border.
    """
    top = round(far * canvas.height)
    bottom = min(canvas.height, round(float(near.max()) * canvas.height) + 1)
    if bottom - top < 2:
        return
    shore = (
        np.interp(np.arange(canvas.width), np.linspace(0, canvas.width - 1, len(near)), near) * canvas.height
    )
    rows = np.arange(top, bottom, dtype=np.float32)
    inside = rows[:, None] < shore[None, :]
    below = np.maximum(rows / canvas.height - camera.horizon, 2e-3)[:, None]
    depth = (camera.height / below).astype(np.float32)
    columns = np.arange(canvas.width, dtype=np.float32)
    east = (columns / canvas.height - canvas.aspect / 2)[None, :] * depth
    waves = fractal_noise(rng, _TILE, 40, 4, stretch=2.5)
    ripple = _wrap(waves, east, np.broadcast_to(depth, east.shape), rng.uniform(8, 16))
    calm = rng.uniform(0.3, 1.0)
    shake = ripple * (0.012 * calm * np.minimum(1, below / 0.08) + 0.002) * canvas.height

    # Heights above the far shore are seen again below it, foreshortened once the water comes close.
    mirror = top - (rows[:, None] - top) * 1.15 + shake * 1.5
    seen = cv2.remap(
        canvas.pixels[..., :3].copy(),
        columns[None, :] + shake * 0.5,
        np.clip(mirror, 0, max(top - 1, 0)).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    body = weather.lit(pick(rng, _WATER_COLOURS)).astype(np.float32)
    strength = (rng.uniform(0.55, 0.8) - 0.4 * np.clip(below / 0.5, 0, 1)).astype(np.float32)
    gain = 1 + 0.10 * ripple * np.minimum(1, below / 0.03)
    region = canvas.pixels[top:bottom]
    for channel in range(3):
        mixed = (body[channel] + (seen[..., channel] - body[channel]) * strength) * gain
        np.copyto(region[..., channel], np.clip(mixed, 0, 255), where=inside, casting="unsafe")
    np.copyto(region[..., 3], np.uint8(Material.WATER), where=inside)

    # A wet, darker rim and a line of foam lie on the ground along the near shore.
    rim = np.stack([np.arange(canvas.width) / canvas.height, shore / canvas.height], 1)[
        :: max(1, canvas.width // 400)
    ]
    for offset, tone in ((0.004, 0.8), (0.001, 1.15)):
        strip = rim[rim[:, 1] < 0.995] + (0, offset)
        if len(strip) > 1:
            wet = np.clip(vary(rng, weather.lit((150, 140, 120)), 6) * tone, 0, 255)
            canvas.lines([strip], wet, Material.SAND, 6)

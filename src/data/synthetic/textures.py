"""Procedural textures: tileable fractal noise and the grain of every material."""

from __future__ import annotations

import cv2
import numpy as np

from src.data.synthetic.canvas import Material

NEUTRAL = 128  # grain value that leaves a colour as it is


def fractal_noise(
    rng: np.random.Generator, size: int, cells: int, octaves: int = 4, stretch: float = 1.0
) -> np.ndarray:
    """Tileable noise with detail at several scales.

    Args:
        rng: source of randomness; the same number of draws at every `size`.
        size: side of the square result, in pixels.
        cells: bumps across the tile at the coarsest scale.
        octaves: scales, each twice as fine and half as strong as the one before.
        stretch: above 1 the bumps are wider than tall, below 1 taller than wide.

    Returns:
        (size, size) float32 with zero mean and unit standard deviation.
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        across = max(2, round(cells * 2**octave / max(stretch, 1.0)))
        down = max(2, round(cells * 2**octave * min(stretch, 1.0)))
        grid = rng.standard_normal((down, across), np.float32)
        grid = np.pad(grid, 2, mode="wrap")
        columns = (np.arange(size, dtype=np.float32) + 0.5) * across / size + 1.5
        rows = (np.arange(size, dtype=np.float32) + 0.5) * down / size + 1.5
        x, y = np.meshgrid(columns, rows)
        total += cv2.remap(grid, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT) * 0.5**octave
    return (total - total.mean()) / (total.std() + 1e-6)


def ridge(rng: np.random.Generator, points: int, cells: int, octaves: int = 5) -> np.ndarray:
    """A fractal curve, (points,) in about -1..1: skylines, shores, hills."""
    x = np.linspace(0, 1, points)
    total = np.zeros(points)
    for octave in range(octaves):
        knots = cells * 2**octave + 1
        total += np.interp(x, np.linspace(0, 1, knots), rng.uniform(-1, 1, knots)) * 0.5**octave
    return total / 1.5


def grain_bank(rng: np.random.Generator, size: int) -> np.ndarray:
    """One tile of multiplicative grain per material, sensor noise included.

    Args:
        rng: source of randomness.
        size: side of a tile, in pixels; a power of two.

    Returns:
        (materials, size, size) uint8; `NEUTRAL` leaves the colour as it is, twice that doubles it.
    """
    blotch = fractal_noise(rng, size, 6, 5)
    speckle = fractal_noise(rng, size, 64, 2)
    across = fractal_noise(rng, size, 96, 2, stretch=10)
    upright = fractal_noise(rng, size, 96, 2, stretch=0.1)
    weave = _weave(size)
    grain = {
        Material.AIR: 0 * blotch,
        Material.WATER: 0.05 * across,
        Material.GRASS: 0.10 * speckle + 0.06 * upright,
        Material.SAND: 0.05 * speckle + 0.03 * blotch,
        Material.PAVING: 0.06 * speckle + 0.04 * blotch,
        Material.CONCRETE: 0.05 * blotch + 0.02 * speckle,
        Material.BRICK: _bricks(size) + 0.04 * blotch,
        Material.GLASS: 0.06 * blotch,
        Material.ROOF: 0.10 * _rows(size) + 0.05 * speckle,
        Material.FOLIAGE: 0.11 * speckle + 0.05 * blotch,
        Material.BARK: 0.16 * upright + 0.06 * speckle,
        Material.SKIN: 0.02 * blotch,
        Material.CLOTH: 0.05 * weave + 0.07 * blotch,
        Material.HAIR: 0.12 * upright,
        Material.METAL: 0.03 * blotch,
        Material.WOOD: 0.12 * across,
    }
    noise = 0.018 * rng.standard_normal((size, size), np.float32)
    bank = np.empty((len(Material), size, size), np.uint8)
    for material in Material:
        bank[material] = np.clip((1 + grain[material] + noise) * NEUTRAL, 0, 255)
    return bank


def paving_tile(rng: np.random.Generator, size: int, slabs: int) -> np.ndarray:
    """(size, size) float32 stone slabs with dark joints, tileable: about zero mean, joints near -2."""
    shades = rng.standard_normal((slabs, slabs)).astype(np.float32) * 0.7
    tile = cv2.resize(shades, (size, size), interpolation=cv2.INTER_NEAREST)
    side, joint = size // slabs, max(1, size // slabs // 14)
    for start in range(0, size, side):
        tile[start : start + joint] = -2
        tile[:, start : start + joint] = -2
    return tile


def _bricks(size: int) -> np.ndarray:
    rows, columns = 64, 24
    y = np.arange(size) * rows // size
    x = (np.arange(size)[None, :] / size * columns + 0.5 * (y[:, None] % 2)) % columns
    shade = np.sin(y[:, None] * 12.9898 + np.floor(x) * 78.233) * 0.06
    joint = (x % 1 < 0.06) | ((np.arange(size) * rows / size % 1)[:, None] < 0.16)
    return np.where(joint, 0.12, shade).astype(np.float32)


def _rows(size: int) -> np.ndarray:
    saw = (np.arange(size) * 72 / size) % 1
    return np.broadcast_to((saw - 0.5)[:, None] * 2, (size, size)).astype(np.float32)


def _weave(size: int) -> np.ndarray:
    wave = np.sin(np.arange(size) * 2 * np.pi * 128 / size)
    return (wave[:, None] * wave[None, :]).astype(np.float32)

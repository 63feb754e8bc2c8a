"""Procedural textures: tileable fractal noise and the grain of every material."""

from __future__ import annotations

import cv2
import numpy as np

from src.data.synthetic.canvas import Material

NEUTRAL = 128  # grain value that leaves a colour as it is


def fractal_noise(rng: np.random.Generator, size: int, down: int, across: int, octaves: int) -> np.ndarray:
    """Tileable noise with detail at several scales.

    Args:
        rng: source of randomness; `size` has no influence on what is drawn from it.
        size: side of the square tile in pixels, a power of two.
        down: bumps from top to bottom at the coarsest scale, a power of two.
        across: bumps from left to right at the coarsest scale, a power of two.
        octaves: number of scales, each twice as fine and half as strong as the one before.

    Returns:
        (size, size) float32 with zero mean and unit standard deviation.
    """
    total = np.zeros((size, size), np.float32)
    margin = 2
    for octave in range(octaves):
        grid = rng.standard_normal((down << octave, across << octave), np.float32)
        grid = grid[:: max(1, len(grid) // size), :: max(1, grid.shape[1] // size)]
        y, x = size // len(grid), size // grid.shape[1]
        wrapped = np.pad(grid, margin, mode="wrap")
        enlarged = cv2.resize(wrapped, None, fx=x, fy=y, interpolation=cv2.INTER_CUBIC)
        total += enlarged[margin * y : margin * y + size, margin * x : margin * x + size] * 0.5**octave
    return (total - total.mean()) / (total.std() + 1e-6)


def wrap(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Look up a repeating tile at coordinates (R, C) counted in tiles, bilinearly; (R, C) float32."""
    x, y = (((value - np.floor(value)) * len(tile)).astype(np.float32, copy=False) for value in (x, y))
    return cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def ridge(rng: np.random.Generator, points: int, cells: int) -> np.ndarray:
    """A fractal curve, (points,) in about -1..1: skylines and shores."""
    x = np.linspace(0, 1, points)
    total = np.zeros(points)
    for octave in range(6):
        knots = cells * 2**octave + 1
        total += np.interp(x, np.linspace(0, 1, knots), rng.uniform(-1, 1, knots)) * 0.5**octave
    return total / 1.5


def slabs(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """(size, size) float32 tile of `count` x `count` stone slabs around 0, with dark joints at -2."""
    shades = rng.standard_normal((count, count)).astype(np.float32) * 0.7
    tile = cv2.resize(shades, (size, size), interpolation=cv2.INTER_NEAREST)
    side = size // count
    for start in range(0, size, side):
        tile[start : start + max(1, side // 14)] = -2
        tile[:, start : start + max(1, side // 14)] = -2
    return tile


def grain_bank(rng: np.random.Generator, size: int) -> np.ndarray:
    """One tile of multiplicative grain per material, sensor noise included.

    Args:
        rng: source of randomness.
        size: side of a tile in pixels, a power of two.

    Returns:
        (materials, size, size) uint8; `NEUTRAL` leaves the colour as it is, twice that doubles it.
    """
    blotch = fractal_noise(rng, size, 8, 8, 4)
    speckle = fractal_noise(rng, size, 64, 64, 2)
    across = fractal_noise(rng, size, 128, 16, 2)
    upright = across.T
    grain = {
        Material.WATER: 0.04 * across,
        Material.GRASS: 0.09 * speckle + 0.05 * upright,
        Material.SAND: 0.05 * speckle + 0.02 * blotch,
        Material.PAVING: 0.05 * speckle + 0.03 * blotch,
        Material.CONCRETE: 0.04 * blotch + 0.02 * speckle,
        Material.BRICK: _bricks(size) + 0.03 * blotch,
        Material.GLASS: 0.05 * blotch,
        Material.ROOF: _courses(size) + 0.04 * speckle,
        Material.FOLIAGE: 0.09 * speckle + 0.04 * blotch,
        Material.WOODLAND: 0.05 * speckle,
        Material.BARK: 0.14 * upright + 0.05 * speckle,
        Material.SKIN: 0.015 * blotch,
        Material.CLOTH: _weave(size) + 0.05 * blotch,
        Material.HAIR: 0.10 * upright,
        Material.METAL: 0.012 * blotch,
        Material.WOOD: 0.06 * speckle + 0.04 * blotch,
    }
    noise = 0.016 * rng.standard_normal((size, size), np.float32)
    bank = np.empty((len(Material), size, size), np.uint8)
    for material in Material:
        bank[material] = np.clip((1 + grain.get(material, 0) + noise) * NEUTRAL, 0, 255)
    return bank


def _bricks(size: int) -> np.ndarray:
    row, within_row = np.divmod(np.arange(size)[:, None] * 64 / size, 1)
    brick, within_brick = np.divmod(np.arange(size)[None, :] * 24 / size + row % 2 / 2, 1)
    shade = np.sin(row * 12.9898 + brick % 24 * 78.233) * 0.06
    mortar = (within_row < 0.16) | (within_brick < 0.06)
    return np.where(mortar, 0.12, shade).astype(np.float32)


def _courses(size: int) -> np.ndarray:
    """Rows of roof tiles, each darker towards its lower edge."""
    return (0.1 - 0.2 * (np.arange(size, dtype=np.float32)[:, None] * 72 / size % 1)).repeat(size, 1)


def _weave(size: int) -> np.ndarray:
    wave = np.sin(np.arange(size, dtype=np.float32) * (2 * np.pi * 128 / size))
    return 0.04 * wave[:, None] * wave[None, :]

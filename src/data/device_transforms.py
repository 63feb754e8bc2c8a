"""Augmentation of whole batches on the device: the results of ``src.data.transforms``, bit by bit.

Workers then only decode and cut. Every step rounds as OpenCV's 8-bit conversions do, so where crops are
augmented changes nothing but the time.

    B batch   H, W  height and width of the crops
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.data.transforms import Distortion
from src.structures import IGNORE

_HUES = 180  # OpenCV's 8-bit hue
_SHIFT = 12  # fractional bits of its tables


def encode_distortion(flip: bool, distortion: Distortion) -> Tensor:
    """(8,) float32: flip, brightness, contrast first, contrast last, saturation, hue, has saturation, has hue."""
    brightness, contrast, saturation, hue, last = distortion
    return torch.tensor(
        [
            flip,
            0.0 if brightness is None else brightness,
            1.0 if contrast is None or last else contrast,
            1.0 if contrast is None or not last else contrast,
            1.0 if saturation is None else saturation,
            0 if hue is None else hue,
            saturation is not None,
            hue is not None,
        ],
        dtype=torch.float32,
    )


def augment_images(images: Tensor, codes: Tensor) -> Tensor:
    """Distort and flip.

    Args:
        images: (B, 3, H, W) uint8 RGB.
        codes: (B, 8) as ``encode_distortion`` gives them.

    Returns:
        (B, 3, H, W) uint8 RGB.
    """
    _, brightness, first, last, saturation, hue, has_saturation, has_hue = codes.T[:, :, None, None]
    values = _linear(images.float(), 1.0, brightness[..., None])
    values = _linear(values, first[..., None], 0.0)
    for chosen, step in ((has_saturation, "saturation"), (has_hue, "hue")):
        # Only where chosen, because the way through HSV and back loses a little.
        index = chosen.flatten().nonzero().flatten()
        if len(index) == 0:
            continue
        h, s, v = rgb_to_hsv(values[index])
        if step == "saturation":
            s = _linear(s, saturation[index], 0.0)
        else:
            h = torch.remainder(h + hue[index], _HUES)
        values = values.index_copy(0, index, hsv_to_rgb(h, s, v))
    values = _linear(values, last[..., None], 0.0)
    return flip_chosen(values.to(torch.uint8), codes)


def flip_chosen(maps: Tensor, codes: Tensor) -> Tensor:
    """Mirror (B, ..., W) maps whose code says so, left to right."""
    chosen = codes[:, 0].bool().view(-1, *([1] * (maps.ndim - 1)))
    return torch.where(chosen, maps.flip(-1), maps)


def boundary_maps(labels: Tensor, ignore: int = IGNORE) -> Tensor:
    """``src.data.targets.boundary_map`` of (B, H, W) uint8 label maps: (B, H, W) uint8."""
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    every, first, last = slice(None), slice(None, -1), slice(1, None)
    neighbours: Sequence[tuple[slice, slice, slice, slice]] = (
        (last, every, first, every),  # above
        (every, first, every, last),  # right
        (first, first, last, last),  # below right
        (first, last, last, first),  # below left
    )
    for rows, columns, other_rows, other_columns in neighbours:
        here, there = labels[:, rows, columns], labels[:, other_rows, other_columns]
        boundary[:, rows, columns] |= (here != there) & (here != ignore) & (there != ignore)
    dilated = boundary.clone()  # OpenCV's 2x2 square has its anchor at the lower right
    dilated[:, 1:] |= boundary[:, :-1]
    dilated[:, :, 1:] |= boundary[:, :, :-1]
    dilated[:, 1:, 1:] |= boundary[:, :-1, :-1]
    return dilated.to(torch.uint8)


def rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """OpenCV's 8-bit RGB to HSV.

    Args:
        rgb: (B, 3, H, W) whole numbers 0..255, any type.

    Returns:
        Hue 0..179, saturation and value 0..255, each (B, H, W) float32.
    """
    red, green, blue = rgb.to(torch.int32).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    half = 1 << (_SHIFT - 1)
    saturation = (spread * _table(255, value) + half) >> _SHIFT
    turn = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = (turn * _table(_HUES / 6, spread) + half) >> _SHIFT
    hue = torch.where(hue < 0, hue + _HUES, hue)
    return hue.float(), saturation.float(), value.float()


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """OpenCV's 8-bit HSV to RGB: (B, H, W) float32 each, as ``rgb_to_hsv`` gives them, to (B, 3, H, W)."""
    turn = hue * torch.tensor(6 / _HUES, dtype=torch.float32)
    sector = turn.floor()
    part = turn - sector
    s, v = saturation * torch.tensor(1 / 255), value * torch.tensor(1 / 255)
    # OpenCV multiplies and subtracts with one rounding; a product of two float32 is exact in float64.
    wide = torch.float32 if hue.device.type == "mps" else torch.float64
    falling, rising = ((1 - s.to(wide) * share.to(wide)).float() for share in (part, 1 - part))
    low, falling, rising = v * (1 - s), v * falling, v * rising
    sector = sector.to(torch.int64) % 6
    levels = torch.stack([v, low, falling, rising])  # (4, B, H, W)
    order = torch.tensor(
        [[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]], device=hue.device
    )  # channel, sector
    rgb = torch.stack([levels.gather(0, order[channel][sector][None])[0] for channel in range(3)], dim=1)
    return (rgb * 255).floor()


def _linear(values: Tensor, factor: Tensor | float, offset: Tensor | float) -> Tensor:
    return (values * factor + offset).clamp(0, 255).floor()


def _table(scale: float, index: Tensor) -> Tensor:
    """OpenCV's fixed-point reciprocals: round(scale * 2^12 / i), 0 for i = 0; looked up for every pixel."""
    numbers = torch.arange(1, 256, dtype=torch.float64)
    table = torch.cat([torch.zeros(1), (scale * (1 << _SHIFT) / numbers).round()]).to(torch.int32)
    return table.to(index.device)[index]

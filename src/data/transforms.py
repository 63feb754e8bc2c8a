"""Augmentation of crops: horizontal flip and photometric distortion.

H, W  height and width of a crop
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray


class Distortion(NamedTuple):
    """The amounts of one photometric distortion; None leaves a step out.

    Attributes:
        brightness: added to all channels.
        contrast: factor on all channels.
        saturation: factor on S.
        hue: added to H, in units of 2 degrees.
        contrast_last: whether contrast comes after saturation and hue.
    """

    brightness: float | None
    contrast: float | None
    saturation: float | None
    hue: int | None
    contrast_last: bool


class PhotometricDistortion(A.ImageOnlyTransform):
    """Brightness, contrast, saturation and hue, each changed with probability one half (SSD, ECCV 2016).

    The distortion of the released recipe. Albumentations' own colour transforms compute something else (its
    ColorJitter scales brightness and blends with gray, its HueSaturationValue adds to the saturation), so
    the four steps are written out: add to all channels; multiply all channels, here or last; multiply S;
    rotate H. Every step rounds down to 8 bits, so each is a table of 256 entries.

    Args:
        brightness: largest amount added or subtracted, in grey levels.
        contrast: range of the factor on all channels.
        saturation: range of the factor on the HSV saturation.
        hue: largest rotation of the hue, in units of 2 degrees (OpenCV's 0..179); the upper end is exclusive.
        p: probability of applying the transform at all.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue

    def get_params(self) -> dict[str, Any]:
        """Draw the four amounts; None leaves a step out."""
        rng = self.random_generator
        chosen = rng.integers(2, size=5).astype(bool)
        return {
            "brightness": rng.uniform(-self.brightness, self.brightness) if chosen[0] else None,
            "contrast": rng.uniform(*self.contrast) if chosen[1] else None,
            "saturation": rng.uniform(*self.saturation) if chosen[2] else None,
            "hue": int(rng.integers(-self.hue, self.hue)) if chosen[3] else None,
            "contrast_last": bool(chosen[4]),
        }

    def apply(
        self,
        img: NDArray[np.uint8],
        brightness: float | None,
        contrast: float | None,
        saturation: float | None,
        hue: int | None,
        contrast_last: bool,
        **_: Any,
    ) -> NDArray[np.uint8]:
        """Distort (H, W, 3) uint8 RGB."""
        if brightness is not None:
            img = _look_up(img, 1.0, brightness)
        if contrast is not None and not contrast_last:
            img = _look_up(img, contrast, 0.0)
        if saturation is not None:
            img = _change_hsv(img, 1, lambda values: _look_up(values, saturation, 0.0))
        if hue is not None:
            turned = ((np.arange(256) + hue) % 180).astype(np.uint8)
            img = _change_hsv(img, 0, lambda values: cv2.LUT(values, turned).astype(np.uint8, copy=False))
        if contrast is not None and contrast_last:
            img = _look_up(img, contrast, 0.0)
        return img


class CropAugmentation:
    """Flip and distort a crop; equal seeds give equal results in every process."""

    def __init__(self) -> None:
        self._flip = A.HorizontalFlip(p=0.5)
        self._distort = PhotometricDistortion()

    def __call__(
        self, image: NDArray[np.uint8], label: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment one crop.

        Args:
            image: (H, W, 3) uint8 RGB.
            label: (H, W) uint8 class ids.
            seed: 0 to 2**32 - 1.

        Returns:
            Image and label of the same shapes and types.
        """
        flips, distortion = self.draw(seed)
        image = self._distort.apply(image, **distortion._asdict())
        if flips:
            image = self._flip.apply(image)
            # OpenCV takes no more than some hundred channels, as labels of many new classes have
            label = (
                self._flip.apply_to_mask(label) if label.ndim == 2 else np.ascontiguousarray(label[:, ::-1])
            )
        return image, label

    def draw(self, seed: int) -> tuple[bool, Distortion]:
        """What calling with this seed does: whether it flips, and how it distorts."""
        # Asked one by one: composed, they would check and copy what is known to be right, at half a millisecond.
        states = np.random.default_rng(seed), random.Random(seed)
        for transform in (self._flip, self._distort):
            transform.set_random_state(*states)
        return self._flip.should_apply(), Distortion(**self._distort.get_params())


_LEVELS = np.arange(256, dtype=np.uint8)
_ROUNDS_DOWN = 0.5 - 2.0**-14  # rounding to the nearest behind this is rounding down


def _look_up(pixels: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
    """Multiply and add in single precision, clip and round down."""
    values = _LEVELS.astype(np.float32) * np.float32(factor) + np.float32(offset)
    table = np.clip(values, 0, 255).astype(np.uint8)
    # Vector instructions are several times faster than looking up, where they come to the same for all 256 levels.
    for arithmetic in (_shifted, _scaled):
        if np.array_equal(arithmetic(_LEVELS, factor, offset).ravel(), table):
            return arithmetic(pixels, factor, offset)
    return cv2.LUT(pixels, table).astype(np.uint8, copy=False)


def _shifted(pixels: NDArray[np.uint8], _: float, offset: float) -> NDArray[np.uint8]:
    steps = int(np.floor(offset))
    moved = cv2.add(pixels, (steps,) * 4) if steps >= 0 else cv2.subtract(pixels, (-steps,) * 4)  # type: ignore[call-overload]
    return np.asarray(moved, np.uint8)


def _scaled(pixels: NDArray[np.uint8], factor: float, offset: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.convertScaleAbs(pixels, alpha=factor, beta=offset - _ROUNDS_DOWN), np.uint8)


def _change_hsv(
    image: NDArray[np.uint8], channel: int, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    hsv = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)))
    hsv[channel] = change(np.asarray(hsv[channel], np.uint8))
    return cv2.cvtColor(cv2.merge(hsv), cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)

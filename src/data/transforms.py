"""Augmentation of crops: horizontal flip and photometric distortion.

H, W  height and width of a crop
"""

from __future__ import annotations

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
        contrast_last: whether contrast comes behind saturation and hue.
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
        table = _IDENTITY
        if brightness is not None:
            table = _linear_table(1.0, brightness)
        if contrast is not None and not contrast_last:
            table = _linear_table(contrast, 0.0)[table]
        img = _look_up(img, table)
        if saturation is not None:
            img = _change_hsv(img, 1, _linear_table(saturation, 0.0))
        if hue is not None:
            img = _change_hsv(img, 0, ((np.arange(256) + hue) % 180).astype(np.uint8))
        if contrast is not None and contrast_last:
            img = _look_up(img, _linear_table(contrast, 0.0))
        return img


class CropAugmentation:
    """Flip and distort a crop; equal seeds give equal results in every process."""

    def __init__(self) -> None:
        steps = [A.HorizontalFlip(p=0.5), PhotometricDistortion()]
        self._transform = A.Compose(steps, save_applied_params=True)

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
        self._transform.set_random_seed(seed)
        augmented = self._transform(image=image, mask=label)
        return augmented["image"], augmented["mask"]

    def draw(self, seed: int) -> tuple[bool, Distortion]:
        """What calling with this seed does: whether it flips, and how it distorts."""
        self._transform.set_random_seed(seed)
        pixel = np.zeros((1, 1, 3), dtype=np.uint8)
        applied = dict(self._transform(image=pixel)["applied_transforms"])
        chosen = applied[PhotometricDistortion.__name__]
        return "HorizontalFlip" in applied, Distortion(*(chosen[name] for name in Distortion._fields))


_IDENTITY = np.arange(256, dtype=np.uint8)


def _linear_table(factor: float, offset: float) -> NDArray[np.uint8]:
    values = np.arange(256, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return np.clip(values, 0, 255).astype(np.uint8)


def _look_up(pixels: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels if table is _IDENTITY else cv2.LUT(pixels, table).astype(np.uint8, copy=False)


def _change_hsv(image: NDArray[np.uint8], channel: int, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.uint8, copy=False)

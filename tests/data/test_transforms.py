from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from src.data.transforms import CropAugmentation, PhotometricDistortion


def picture(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def released_distortion(
    image: NDArray[np.uint8],
    brightness: float | None,
    contrast: float | None,
    saturation: float | None,
    hue: int | None,
    contrast_last: bool,
) -> NDArray[np.uint8]:
    """The published definition, on whole arrays in float."""

    def convert(values: NDArray[np.uint8], factor: float = 1, offset: float = 0) -> NDArray[np.uint8]:
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    if brightness is not None:
        image = convert(image, offset=brightness)
    if contrast is not None and not contrast_last:
        image = convert(image, contrast)
    if saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        image = convert(image, contrast)
    return image


class TestPhotometricDistortion:
    def test_equals_the_definition(self) -> None:
        distortion = PhotometricDistortion()
        distortion.set_random_seed(0)
        for seed in range(100):
            parameters = distortion.get_params()
            expected = released_distortion(picture(seed), **parameters)
            np.testing.assert_array_equal(distortion.apply(picture(seed), **parameters), expected)

    def test_range_and_frequency_of_every_step(self) -> None:
        distortion = PhotometricDistortion()
        distortion.set_random_seed(0)
        draws = [distortion.get_params() for _ in range(2000)]
        for name, low, high in (
            ("brightness", -32, 32),
            ("contrast", 0.5, 1.5),
            ("saturation", 0.5, 1.5),
            ("hue", -18, 17),
        ):
            values = [draw[name] for draw in draws if draw[name] is not None]
            assert 900 < len(values) < 1100  # probability one half
            assert low <= min(values) < low + 0.02 * (high - low)
            assert high - 0.02 * (high - low) < max(values) <= high
        assert 900 < sum(draw["contrast_last"] for draw in draws) < 1100

    def test_input_is_left_alone(self) -> None:
        distortion = PhotometricDistortion()
        image = picture()
        for seed in range(10):
            distortion.set_random_seed(seed)
            distortion(image=image)
        np.testing.assert_array_equal(image, picture())


class TestCropAugmentation:
    label = np.random.default_rng(1).integers(0, 7, (24, 32), dtype=np.uint8)

    def test_equal_seeds_agree_and_others_differ(self) -> None:
        first, second = CropAugmentation(), CropAugmentation()
        images = []
        for seed in range(20):
            image, label = first(picture(), self.label, seed)
            again, label_again = second(picture(), self.label, seed)
            np.testing.assert_array_equal(image, again)
            np.testing.assert_array_equal(label, label_again)
            images.append(image.tobytes())
        assert len(set(images)) > 15

    def test_half_are_flipped_image_and_label_together(self) -> None:
        # Two halves, black and white: no distortion of colours hides which side is which.
        image = np.zeros((24, 32, 3), np.uint8)
        image[:, 16:] = 255
        label = np.repeat(image[:, :, 0] // 255, 1, axis=1)
        augment = CropAugmentation()
        flipped = 0
        for seed in range(400):
            augmented, mask = augment(image, label, seed)
            left_is_bright = bool(augmented[:, :16].mean() > augmented[:, 16:].mean())
            assert left_is_bright == bool(mask[0, 0] == 1)
            flipped += left_is_bright
        assert 160 < flipped < 240

    def test_flip_and_colours_are_independent(self) -> None:
        image = np.full((8, 8, 3), 100, np.uint8)
        label = np.tile(np.arange(8, dtype=np.uint8), (8, 1))
        augment = CropAugmentation()
        results = [augment(image, label, seed) for seed in range(600)]
        flipped = np.array([mask[0, 0] == 7 for _, mask in results])
        brightness = np.array([augmented.mean() for augmented, _ in results])
        assert abs(np.corrcoef(flipped, brightness)[0, 1]) < 0.12

    @pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 64)])
    def test_shapes_and_types_stay(self, size: tuple[int, int]) -> None:
        image = np.zeros((*size, 3), np.uint8)
        augmented, label = CropAugmentation()(image, np.zeros(size, np.uint8), 3)
        assert augmented.shape == image.shape
        assert label.shape == size
        assert augmented.dtype == label.dtype == np.uint8

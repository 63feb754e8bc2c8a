"""Crops against the plain way: resize everything, then cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from src.data.crops import PADDING_COLOUR, RandomCrop, cut_image, cut_label, is_varied, scaled_size
from src.data.preview import LabelPreview
from src.data.source import Window
from src.structures import IGNORE


@dataclass
class ArrayPhoto:
    """A labelled photo in memory that remembers which windows were asked for."""

    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    name: str = "array"
    windows: list[Window] = field(default_factory=list)
    preview: LabelPreview | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.ids.shape[:2]  # type: ignore[return-value]

    def label(self, window: Window) -> NDArray[np.uint8]:
        self._remember(window)
        return self.ids[window.slices]

    def image(self, window: Window) -> NDArray[np.uint8]:
        self._remember(window)
        return self.pixels[window.slices]

    def _remember(self, window: Window) -> None:
        assert window.top >= 0
        assert window.left >= 0
        assert window.top + window.height <= self.size[0]
        assert window.left + window.width <= self.size[1]
        self.windows.append(window)


def noise_photo(height: int, width: int, seed: int = 0) -> ArrayPhoto:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ArrayPhoto(pixels, rng.integers(0, 7, (height, width), dtype=np.uint8))


def sampling(size: int, scaled: int, start: int, length: int) -> list[Fraction]:
    """Positions of a window's pixel centres in the photo, in source pixels from its edge, in exact arithmetic.

    The window begins at the whole source pixel at or in front of where it was drawn.
    """
    step = Fraction(size, scaled)
    return [floor(start * step) + Fraction(2 * i + 1, 2) * step for i in range(length)]


def sampled(
    photo: ArrayPhoto, scaled: tuple[int, int], window: Window
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Colours (bilinear) and ids at a window's pixel centres, one axis after the other.

    In front of the window's first source pixel and behind the photo's last one, colours go on as they are there. They
    are computed in OpenCV's fixed point: weights of 11 bits, products of the second axis cut to quarters of a level.
    """
    colours, ids = photo.pixels.astype(np.int64), photo.ids
    for axis in (1, 0):
        centres = sampling(photo.size[axis], scaled[axis], window[axis], window[axis + 2])
        ids = ids.take([floor(centre) for centre in centres], axis)
        edges = floor(window[axis] * Fraction(photo.size[axis], scaled[axis])), photo.size[axis] - 1
        places = np.array([float(centre - Fraction(1, 2) - edges[0]) for centre in centres], np.float32)
        low = np.floor(places)
        weights = np.moveaxis((places - low)[:, None, None], 0, axis)
        first, second = (np.rint(weight * 2048).astype(np.int64) for weight in (1 - weights, weights))
        left, right = (
            colours.take(np.clip(low.astype(int) + edges[0] + step, *edges), axis) for step in (0, 1)
        )
        if axis == 1:
            colours = left * first + right * second
        else:
            colours = ((first * (left >> 4) >> 16) + (second * (right >> 4) >> 16) + 2) >> 2
    return colours, ids


class TestScaledSize:
    @pytest.mark.parametrize(
        ("size", "short_edge", "scale", "longest", "expected"),
        [
            ((3072, 4096), 3072, 0.5, 8192, (1536, 2048)),
            ((2736, 3648), 3072, 0.7, 8192, (2150, 2867)),
            ((4032, 3024), 3072, 2.0, 8192, (8192, 6144)),
            ((3000, 6000), 3072, 2.0, 8192, (4096, 8192)),
            ((3000, 6000), 3072, 2.0, None, (6144, 12288)),
            ((360, 480), None, 1.5, None, (540, 720)),
            ((361, 477), None, 1.0, None, (361, 477)),
        ],
    )
    def test_values(
        self,
        size: tuple[int, int],
        short_edge: int | None,
        scale: float,
        longest: int | None,
        expected: tuple[int, int],
    ) -> None:
        assert scaled_size(size, short_edge, scale, longest) == expected


@st.composite
def scaled_windows(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], Window]:
    """A photo's size, its scaled size and a window in the scaled photo."""
    size = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    scaled = draw(st.tuples(st.integers(1, 150), st.integers(1, 150)))
    top, left = draw(st.integers(0, scaled[0] - 1)), draw(st.integers(0, scaled[1] - 1))
    height, width = draw(st.integers(1, scaled[0] - top)), draw(st.integers(1, scaled[1] - left))
    return size, scaled, Window(top, left, height, width)


class TestCutting:
    @settings(max_examples=300, deadline=None)
    @given(scaled_windows())
    def test_pixels_are_those_at_their_centres(
        self, case: tuple[tuple[int, int], tuple[int, int], Window]
    ) -> None:
        size, scaled, window = case
        photo = noise_photo(*size)
        colours, ids = sampled(photo, scaled, window)
        np.testing.assert_array_equal(cut_label(photo, scaled, window), ids)
        image, read = cut_image(photo, scaled, window), photo.windows[-1]
        shrinks = [round(read[axis + 2] * scaled[axis] / size[axis]) for axis in range(2)]
        if shrinks == [read.height, read.width]:  # by less than half a pixel: copied
            colours = photo.pixels[read.slices][: window.height, : window.width].astype(np.int64)
        np.testing.assert_array_equal(image, colours)

    @pytest.mark.parametrize(
        ("scaled", "window"),
        [
            ((30, 40), Window(5, 9, 16, 24)),
            ((42, 56), Window(7, 14, 16, 24)),
            ((75, 100), Window(5, 10, 70, 90)),
            ((120, 160), Window(20, 34, 100, 126)),
        ],
    )
    def test_windows_that_begin_at_a_source_pixel_are_cut_from_the_resized_photo(
        self, scaled: tuple[int, int], window: Window
    ) -> None:
        photo = noise_photo(60, 80)
        whole = cv2.resize(photo.pixels, scaled[::-1], interpolation=cv2.INTER_LINEAR).astype(int)
        inner = slice(1, None), slice(1, None)  # enlarged, the first row and column lie before a source pixel
        np.testing.assert_allclose(
            cut_image(photo, scaled, window)[inner], whole[window.slices][inner], atol=1
        )

    @pytest.mark.parametrize("channels", range(1, 13))
    def test_label_maps_with_any_number_of_channels(self, channels: int) -> None:
        ids = np.random.default_rng(0).integers(0, 255, (60, 80, channels), dtype=np.uint8)
        photo = ArrayPhoto(noise_photo(60, 80).pixels, ids)
        for scaled in ((42, 56), (120, 160)):
            window = Window(3, 5, 30, 40)
            found = cut_label(photo, scaled, window)
            for channel in range(channels):
                alone = ArrayPhoto(photo.pixels, photo.ids[..., channel])
                expected = cut_label(alone, scaled, window)
                np.testing.assert_array_equal(found.reshape(30, 40, -1)[..., channel], expected)

    def test_unscaled_windows_are_exact(self) -> None:
        photo = noise_photo(60, 80)
        window = Window(11, 13, 32, 40)
        np.testing.assert_array_equal(cut_image(photo, photo.size, window), photo.pixels[window.slices])
        np.testing.assert_array_equal(cut_label(photo, photo.size, window), photo.ids[window.slices])

    @pytest.mark.parametrize("scaled", [(300, 400), (431, 577), (1200, 1600)])
    def test_reads_no_more_than_lies_under_the_window(self, scaled: tuple[int, int]) -> None:
        photo = noise_photo(600, 800)
        cut_image(photo, scaled, Window(40, 50, 128, 128))
        cut_label(photo, scaled, Window(40, 50, 128, 128))
        for window in photo.windows:
            assert window.height <= 128 * 600 / scaled[0] + 3
            assert window.width <= 128 * 800 / scaled[1] + 3


class TestIsVaried:
    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            ([0, 0, 0, 1], False),  # exactly 75 %
            ([0, 0, 1, 1], True),
            ([0, 0, 0, 0], False),
            ([0, 0, 0, IGNORE, IGNORE, IGNORE], False),  # one class among the labelled pixels
            ([0, 0, 1, IGNORE, IGNORE, IGNORE], True),  # two thirds of the labelled pixels
            ([0, 1, 2, 2, 2, 2, 2, 2, 2, 2], False),
            ([IGNORE, IGNORE], False),
        ],
    )
    def test_share_of_the_largest_class(self, ids: list[int], expected: bool) -> None:
        assert is_varied(np.array([ids], dtype=np.uint8), 0.75) is expected

    def test_one_accepts_everything(self) -> None:
        assert is_varied(np.zeros((4, 4), np.uint8), 1.0)


def plain_crop(
    photo: ArrayPhoto, crop: RandomCrop, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The released rule, written again: scale, then draw windows until one is varied."""
    scale = crop.scales[rng.integers(len(crop.scales))]
    size = scaled_size(photo.size, crop.short_edge, scale, crop.max_long_edge)
    height, width = (min(edge, crop.crop_size) for edge in size)
    for _ in range(11):
        top = rng.integers(0, max(size[0] - crop.crop_size, 0) + 1)
        left = rng.integers(0, max(size[1] - crop.crop_size, 0) + 1)
        image, label = sampled(photo, size, Window(int(top), int(left), height, width))
        ids, counts = np.unique(label, return_counts=True)
        counts = counts[ids != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() < crop.max_class_share:
            break
    return image, label


def blocky_photo(height: int = 150, width: int = 200) -> ArrayPhoto:
    """Mostly one class, so that many windows are refused."""
    photo = noise_photo(height, width)
    photo.pixels[...] = cv2.GaussianBlur(photo.pixels, (0, 0), 2)
    photo.ids[...] = 0
    photo.ids[height // 3 : height // 2, width // 2 :] = 1
    photo.ids[: height // 5, : width // 3] = 2
    photo.ids[-10:, :] = IGNORE
    return photo


class TestRandomCrop:
    @pytest.mark.parametrize("size", [(150, 200), (200, 150), (151, 97)])
    def test_same_windows_and_pixels_as_the_plain_rule(self, size: tuple[int, int]) -> None:
        photo = blocky_photo(*size)
        crop = RandomCrop(48, [0.5, 0.7, 1.0, 1.3, 2.0], short_edge=150, max_long_edge=350)
        for seed in range(40):
            image, label = crop(photo, np.random.default_rng(seed))
            expected_image, expected_label = plain_crop(photo, crop, np.random.default_rng(seed))
            np.testing.assert_array_equal(label, expected_label)
            np.testing.assert_array_equal(image, expected_image)

    def test_gives_up_after_ten_further_tries(self) -> None:
        photo = noise_photo(80, 80)
        photo.ids[...] = 3
        RandomCrop(32, [1.0])(photo, np.random.default_rng(0))
        assert len(photo.windows) == 1 + 10 + 1  # the last is the image's

    def test_windows_are_uniform_over_all_positions(self) -> None:
        photo = noise_photo(34, 35)
        crop = RandomCrop(32, [1.0], max_class_share=1.0)
        rng = np.random.default_rng(0)
        for _ in range(1200):
            crop(photo, rng)
        positions = [(window.top, window.left) for window in photo.windows[::2]]
        _, counts = np.unique(positions, axis=0, return_counts=True)
        assert len(counts) == 3 * 4
        assert counts.min() > 60  # expected 100, standard deviation 10
        assert counts.max() < 140

    def test_small_photos_are_filled_up(self) -> None:
        photo = noise_photo(20, 50)
        image, label = RandomCrop(32, [1.0])(photo, np.random.default_rng(0))
        assert image.shape == (32, 32, 3)
        assert (image[20:] == PADDING_COLOUR).all()
        assert (label[20:] == IGNORE).all()
        assert (label[:20] != IGNORE).all()

    @pytest.mark.parametrize("size", [(40, 90), (90, 40), (33, 31), (1, 200)])
    def test_every_shape_of_photo(self, size: tuple[int, int]) -> None:
        image, label = RandomCrop(32, [0.5, 2.0])(noise_photo(*size), np.random.default_rng(1))
        assert image.shape == (32, 32, 3)
        assert label.shape == (32, 32)

    @pytest.mark.parametrize("arguments", [(0, [1.0]), (32, []), (32, [0.0]), (32, [1.0, -1.0])])
    def test_impossible_arguments(self, arguments: tuple[int, list[float]]) -> None:
        with pytest.raises(ValueError, match="crop_size"):
            RandomCrop(*arguments)

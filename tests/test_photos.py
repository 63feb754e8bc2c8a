"""Photos and label maps of every kind that cameras and labelling tools write, whole and damaged."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from src.photos import PhotoError, fit_within, photo_size, read_label, read_photo


def scene(height: int = 45, width: int = 70) -> NDArray[np.uint8]:
    """A smooth picture without symmetry, so that JPEG keeps it and every rotation shows."""
    y, x = np.mgrid[:height, :width].astype(float)
    channels = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9 + y / 5)]
    return np.stack(channels, axis=2).astype(np.uint8)


def jpeg_bytes(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


class TestReadPhoto:
    def test_png_is_exact(self, tmp_path: Path) -> None:
        Image.fromarray(scene()).save(tmp_path / "a.PNG")
        photo = read_photo(tmp_path / "a.PNG")
        np.testing.assert_array_equal(photo, scene())
        assert photo.flags.c_contiguous

    @pytest.mark.parametrize(
        "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]
    )
    def test_jpeg_agrees_with_pillow(self, tmp_path: Path, options: dict[str, object]) -> None:
        path = tmp_path / "a.JPeG"
        path.write_bytes(jpeg_bytes(Image.fromarray(scene()), **options))
        with Image.open(path) as expected:
            difference = read_photo(path).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16", "CMYK"])
    def test_every_colour_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        gray = scene()[:, :, 2]
        if mode == "I;16":
            stored = Image.fromarray(gray.astype(np.uint16) * 257)
            expected = np.repeat(gray[:, :, None], 3, axis=2)
        elif mode == "RGBA":
            transparent = np.zeros(gray.shape, np.uint8)
            stored = Image.fromarray(np.dstack([scene(), transparent]))
            expected = scene()  # colours under full transparency are kept
        else:
            stored = (
                Image.fromarray(scene()).convert("L").convert(mode)
                if mode == "LA"
                else Image.fromarray(scene()).convert(mode)
            )
            expected = np.asarray(stored.convert("RGB"))
        path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
        stored.save(path, **({"quality": 100, "subsampling": 0} if mode == "CMYK" else {}))
        photo = read_photo(path)
        assert photo.dtype == np.uint8
        assert photo.shape == (*gray.shape, 3)
        np.testing.assert_allclose(photo.astype(int), expected.astype(int), atol=6 if mode == "CMYK" else 0)

    def test_what_costs_no_pixel_is_no_damage(self, tmp_path: Path) -> None:
        """Scan parameters as some cameras write them."""
        sound = jpeg_bytes(Image.fromarray(scene()))
        scan = sound.index(b"\xff\xda")
        end_of_spectrum = scan + 2 + int.from_bytes(sound[scan + 2 : scan + 4], "big") - 2
        odd = bytearray(sound)
        odd[end_of_spectrum] = 0
        for name, content in (("sound", sound), ("odd", odd), ("cut", odd[: len(odd) * 2 // 3])):
            (tmp_path / f"{name}.jpg").write_bytes(content)
        np.testing.assert_array_equal(read_photo(tmp_path / "odd.jpg"), read_photo(tmp_path / "sound.jpg"))
        with pytest.raises(PhotoError, match="damaged"):
            read_photo(tmp_path / "cut.jpg")

    def test_xmp_turns_nothing(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x010F] = "camera"
        xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
        Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=exif, xmp=xmp)
        assert read_photo(tmp_path / "a.jpg").shape == (45, 70, 3)
        assert photo_size(tmp_path / "a.jpg") == (45, 70)

    def test_gray_jpeg(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(jpeg_bytes(Image.fromarray(scene()[:, :, 2])))
        photo = read_photo(tmp_path / "a.jpg")
        assert photo.shape == (45, 70, 3)
        assert (photo == photo[:, :, :1]).all()

    def test_16_bit_colour_keeps_the_high_byte(self, tmp_path: Path) -> None:
        deep = scene().astype(np.uint16) * 256 + 200
        cv2.imwrite(str(tmp_path / "a.png"), deep[:, :, ::-1])
        np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), scene())

    def test_content_decides_not_the_suffix(self, tmp_path: Path) -> None:
        Image.fromarray(scene()).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "a.jpg")
        np.testing.assert_array_equal(read_photo(tmp_path / "a.jpg"), scene())

    def test_phone_jpeg_with_a_second_picture(self, tmp_path: Path) -> None:
        first, second = Image.fromarray(scene()), Image.fromarray(scene()[:20, :30])
        first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
        assert photo_size(tmp_path / "a.jpg") == (45, 70)
        assert np.abs(read_photo(tmp_path / "a.jpg").astype(int) - scene()).mean() < 3

    @pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_exif_orientation(self, tmp_path: Path, orientation: int, suffix: str) -> None:
        path = tmp_path / f"a{suffix}"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(scene()).save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
        with Image.open(path) as stored:
            expected = np.asarray(ImageOps.exif_transpose(stored))
        photo = read_photo(path)
        np.testing.assert_allclose(photo.astype(int), expected.astype(int), atol=1)
        assert photo.flags.c_contiguous
        assert photo_size(path) == photo.shape[:2]


class TestDamagedPhotos:
    @pytest.mark.parametrize("kind", ["baseline", "progressive", "png"])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.97])
    def test_truncated_files_are_refused(self, tmp_path: Path, kind: str, share: float) -> None:
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        if kind == "png":
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            data = buffer.getvalue()
        else:
            data = jpeg_bytes(image, progressive=kind == "progressive")
        path = tmp_path / "broken.jpg"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(PhotoError, match=r"broken\.jpg.*(again|Convert)"):
            read_photo(path)

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data(), kind=st.sampled_from(["jpg", "png"]))
    def test_flipped_bytes_never_raise_anything_else(
        self, tmp_path: Path, data: st.DataObject, kind: str
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        Image.fromarray(scene(16, 24)).save(buffer, "JPEG" if kind == "jpg" else "PNG", exif=exif)
        content = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path / "flipped"
        path.write_bytes(bytes(content))
        for read in (photo_size, read_photo, read_label):
            with contextlib.suppress(PhotoError):  # anything else fails the test
                read(path)

    @pytest.mark.parametrize("read", [read_photo, photo_size, read_label])
    def test_empty_file(self, tmp_path: Path, read: object) -> None:
        (tmp_path / "none.png").touch()
        with pytest.raises(PhotoError, match=r"none\.png.*0 bytes"):
            read(tmp_path / "none.png")  # type: ignore[operator]

    @pytest.mark.parametrize("read", [read_photo, photo_size, read_label])
    def test_missing_file(self, tmp_path: Path, read: object) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere.png")  # type: ignore[operator]

    def test_not_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "note.jpg").write_text("this is a text file")
        with pytest.raises(PhotoError, match=r"note\.jpg.*JPEG or PNG"):
            read_photo(tmp_path / "note.jpg")

    def test_other_formats_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(scene()).save(tmp_path / "a.png", "TIFF")
        with pytest.raises(PhotoError, match="Convert"):
            read_photo(tmp_path / "a.png")

    def test_large_profiles_and_texts_are_read(self, tmp_path: Path) -> None:
        """Profiles of printers, and what image generators write, exceed Pillow's limit."""
        noise = np.random.default_rng(0).bytes(1_500_000)
        texts = PngImagePlugin.PngInfo()
        texts.add_text("workflow", "x" * 2_000_000, zip=True)
        Image.fromarray(scene()).save(tmp_path / "a.png", icc_profile=noise, pnginfo=texts)
        np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), scene())

    def test_huge_photo_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.fromarray(scene()).save(tmp_path / "huge.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(PhotoError, match=r"huge\.png.*max_megapixels"):
            read_photo(tmp_path / "huge.png")

    @pytest.mark.filterwarnings("error")
    def test_large_photo_is_read_without_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.fromarray(scene()).save(tmp_path / "large.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", scene()[:, :, 0].size - 1)
        np.testing.assert_array_equal(read_photo(tmp_path / "large.png"), scene())


class TestReadLabel:
    ids = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)

    def test_gray(self, tmp_path: Path) -> None:
        Image.fromarray(self.ids).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), self.ids)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_palette_gives_indices(self, tmp_path: Path, bits: int) -> None:
        ids = self.ids & (2**bits - 1)
        label = Image.fromarray(ids, mode="P")
        label.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
        label.save(tmp_path / "a.png", bits=bits)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)

    def test_orientation_is_not_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(self.ids).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), self.ids)

    @pytest.mark.parametrize(
        ("pixels", "reason"),
        [
            (ids.astype(np.uint16), "16 bits"),
            (ids > 100, "1 bits"),
            (np.dstack([ids] * 3), "colour-coded"),
            (np.dstack([ids] * 4), "colour-coded"),
        ],
    )
    def test_other_pngs_are_refused(self, tmp_path: Path, pixels: NDArray[np.generic], reason: str) -> None:
        Image.fromarray(pixels).save(tmp_path / "label.png")
        with pytest.raises(PhotoError, match=rf"label\.png.*{reason}"):
            read_label(tmp_path / "label.png")

    def test_jpeg_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "label.png").write_bytes(jpeg_bytes(Image.fromarray(self.ids)))
        with pytest.raises(PhotoError, match=r"label\.png: not a PNG"):
            read_label(tmp_path / "label.png")

    def test_truncated(self, tmp_path: Path) -> None:
        Image.fromarray(np.random.default_rng(0).integers(0, 7, (64, 64), dtype=np.uint8)).save(
            tmp_path / "a.png"
        )
        data = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
        with pytest.raises(PhotoError, match=r"a\.png: the file is truncated"):
            read_label(tmp_path / "a.png")


class TestFitWithin:
    limit = (400, 300)

    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((600, 800), (300, 400)),
            ((800, 600), (400, 300)),
            ((300, 1600), (75, 400)),
            ((1000, 1000), (300, 300)),
        ],
    )
    def test_reduces_to_the_limit_keeping_the_ratio(
        self, size: tuple[int, int], expected: tuple[int, int]
    ) -> None:
        assert fit_within(scene(*size), self.limit).shape == (*expected, 3)

    @pytest.mark.parametrize("size", [(300, 400), (400, 300), (200, 150), (1, 1)])
    def test_smaller_photos_stay(self, size: tuple[int, int]) -> None:
        photo = scene(*size)
        assert fit_within(photo, self.limit) is photo

    def test_enlarging_is_a_choice(self) -> None:
        assert fit_within(scene(150, 100), self.limit, enlarge=True).shape == (400, 267, 3)

    def test_extreme_ratio_keeps_a_row(self) -> None:
        assert fit_within(scene(2, 4000), self.limit).shape == (1, 400, 3)

    def test_values_are_bilinear(self) -> None:
        photo = scene(600, 800)
        means = photo.reshape(300, 2, 400, 2, 3).mean(
            axis=(1, 3)
        )  # bilinear at half the size is the 2x2 mean
        np.testing.assert_allclose(fit_within(photo, self.limit), means, atol=0.51)

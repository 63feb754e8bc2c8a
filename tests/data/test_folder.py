from __future__ import annotations

import logging
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.audit.faults import match_files
from src.data.classes import ClassMap, Taxonomy
from src.data.folder import DatasetError, FolderSource, SplitFolders, benchmark_folders, find_pairs
from src.data.source import Window
from src.photos import PhotoError

Writer = Callable[..., Path]


def train_folders(root: Path) -> SplitFolders:
    return SplitFolders(root / "images/train", root / "annotations/train")


class TestBenchmarkFolders:
    @pytest.mark.parametrize("images", ["images", "images_pad", "images_copy"])
    def test_every_released_name(
        self, write_dataset: Writer, images: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = write_dataset(images=images)
        with caplog.at_level(logging.INFO):
            folders = benchmark_folders(root, "train")
        assert folders == (root / images / "train", root / "annotations/train")
        assert (str(root / images) in caplog.text) == (images != "images")

    def test_splits_in_different_folders(self, write_dataset: Writer) -> None:
        root = write_dataset({"train": 1, "val": 1}, images="images_pad")
        write_dataset({"test": 1}, images="images")
        assert benchmark_folders(root, "val").images == root / "images_pad/val"
        assert benchmark_folders(root, "test").images == root / "images/test"

    def test_folders_without_photos_are_passed_over(self, write_dataset: Writer) -> None:
        root = write_dataset(images="images_copy")
        (root / "images/train").mkdir(parents=True)
        assert benchmark_folders(root, "train").images == root / "images_copy/train"

    def test_choice_between_two_is_logged(
        self, write_dataset: Writer, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = write_dataset(images="images")
        write_dataset(images="images_pad")
        with caplog.at_level(logging.INFO):
            assert benchmark_folders(root, "val").images == root / "images/val"
        assert f"not used: {root / 'images_pad/val'}" in caplog.text

    @pytest.mark.parametrize("removed", ["", "images", "images/val", "annotations", "annotations/val"])
    def test_missing_folders(self, write_dataset: Writer, removed: str) -> None:
        root = write_dataset()
        shutil.rmtree(root / removed)
        with pytest.raises(DatasetError) as caught:
            benchmark_folders(root, "val")
        message = str(caught.value)
        assert str(root / "annotations/val" if "annotations" in removed else root / "images/val") in message
        assert "images/{train,val,test}/*.jpg" in message
        assert "https://github.com/xiechenxi99/MaSS13K" in message


class TestFindPairs:
    def test_sorted_by_name_with_mixed_suffixes(self, write_dataset: Writer) -> None:
        folders = train_folders(write_dataset())
        Image.new("RGB", (8, 6)).save(folders.images / "a.JPG", "JPEG")
        Image.new("L", (8, 6)).save(folders.labels / "a.PNG")
        (folders.images / "._a.jpg").write_text("left by a file manager")
        (folders.images / "notes.txt").write_text("not a photo")
        pairs = find_pairs(folders)
        assert [pair.name for pair in pairs] == ["a", *(f"photo_{i}" for i in range(5))]
        assert pairs[0].image.name == "a.JPG"
        assert pairs[0].label.name == "a.PNG"

    def test_missing_labels_are_counted_and_five_are_named(self, write_dataset: Writer) -> None:
        folders = train_folders(write_dataset({"train": 9}))
        for index in range(1, 9):
            (folders.labels / f"photo_{index}.png").unlink()
        with pytest.raises(
            DatasetError, match=r"8 of 9 photos.*photo_1\.png.*photo_5\.png and 3 more"
        ) as caught:
            find_pairs(folders)
        assert "photo_6" not in str(caught.value)

    def test_labels_without_photos_are_only_logged(
        self, write_dataset: Writer, caplog: pytest.LogCaptureFixture
    ) -> None:
        folders = train_folders(write_dataset())
        (folders.images / "photo_2.png").unlink()
        assert len(find_pairs(folders)) == 4
        assert "photo_2" in caplog.text

    def test_a_stem_twice(self, write_dataset: Writer) -> None:
        folders = train_folders(write_dataset())
        Image.new("RGB", (8, 6)).save(folders.images / "photo_3.jpg")
        with pytest.raises(DatasetError, match=r"photo_3\.jpg and photo_3\.png"):
            find_pairs(folders)

    @pytest.mark.parametrize("kind", ["images", "annotations"])
    def test_empty_files(self, write_dataset: Writer, kind: str) -> None:
        root = write_dataset()
        (root / kind / "train/photo_1.png").write_bytes(b"")
        with pytest.raises(DatasetError, match=rf"{kind}/train/photo_1\.png.*again"):
            find_pairs(train_folders(root))

    def test_folder_without_photos(self, write_dataset: Writer) -> None:
        folders = train_folders(write_dataset())
        for file in folders.images.iterdir():
            file.rename(file.with_suffix(".tif"))
        with pytest.raises(DatasetError, match=r"images/train: no photo.*\.jpg"):
            find_pairs(folders)

    def test_photos_in_subfolders_are_told(
        self, write_dataset: Writer, caplog: pytest.LogCaptureFixture
    ) -> None:
        folders = train_folders(write_dataset())
        find_pairs(folders)
        assert "sub-folders" not in caplog.text
        (folders.images / "city").mkdir()
        Image.new("RGB", (8, 6)).save(folders.images / "city" / "a.jpg")
        find_pairs(folders)
        assert "1 photos in sub-folders are not used" in caplog.text
        for file in folders.images.glob("*.*"):
            file.unlink()
        with pytest.raises(DatasetError, match=r"no photo in this folder.*1 lie in sub-folders"):
            find_pairs(folders)

    def test_folder_absent(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="nowhere: no such folder"):
            find_pairs(SplitFolders(tmp_path / "nowhere", tmp_path))


class TestFilePhoto:
    def open_one(
        self, folder: Path, taxonomy: Taxonomy, photo: Image.Image, label: np.ndarray, **save: object
    ):  # type: ignore[no-untyped-def]
        for name in ("images", "labels"):
            (folder / name).mkdir()
        photo.save(folder / "images/one.jpg", quality=95, **save)
        Image.fromarray(label).save(folder / "labels/one.png")
        folders = SplitFolders(folder / "images", folder / "labels")
        return FolderSource(find_pairs(folders), ClassMap(taxonomy)).open(0)

    def test_windows_of_an_upright_photo(self, tmp_path: Path, taxonomy: Taxonomy) -> None:
        sideways = np.zeros((40, 60, 3), np.uint8)
        sideways[:, :20] = 255  # the left third, which orientation 6 turns to the top
        exif = Image.Exif()
        exif[0x0112] = 6
        label = np.random.default_rng(0).integers(0, 3, (60, 40), dtype=np.uint8)
        photo = self.open_one(tmp_path, taxonomy, Image.fromarray(sideways), label, exif=exif)
        assert photo.name == "one"
        assert photo.size == (60, 40)
        assert photo.image(Window(0, 0, 16, 40)).min() > 240
        assert photo.image(Window(24, 0, 36, 40)).max() < 15
        np.testing.assert_array_equal(photo.label(Window(5, 7, 11, 13)), label[5:16, 7:20])

    def test_label_of_another_size(self, tmp_path: Path, taxonomy: Taxonomy) -> None:
        photo = self.open_one(tmp_path, taxonomy, Image.new("RGB", (30, 20)), np.zeros((10, 15), np.uint8))
        with pytest.raises(PhotoError, match=r"one\.png.*15x10.*one\.jpg is 30x20"):
            photo.label(Window(0, 0, 5, 5))

    def test_label_of_the_lying_photo(self, tmp_path: Path, taxonomy: Taxonomy) -> None:
        exif = Image.Exif()
        exif[0x0112] = 8
        label = np.zeros((20, 30), np.uint8)
        photo = self.open_one(tmp_path, taxonomy, Image.new("RGB", (30, 20)), label, exif=exif)
        with pytest.raises(PhotoError, match=r"lying on its side.*EXIF"):
            photo.label(Window(0, 0, 5, 5))

    def test_ids_outside_the_map(self, tmp_path: Path, taxonomy: Taxonomy) -> None:
        label = np.full((20, 30), 9, np.uint8)
        photo = self.open_one(tmp_path, taxonomy, Image.new("RGB", (30, 20)), label)
        with pytest.raises(ValueError, match=r"labels/one\.png.*9 \(25 pixels\)"):
            photo.label(Window(0, 0, 5, 5))


def test_accents_match_however_they_are_written(tmp_path: Path) -> None:
    """macOS may write a letter and its accent apart."""
    for kind, form in (("images", "NFD"), ("annotations", "NFC")):
        (tmp_path / kind / "train").mkdir(parents=True)
        name = unicodedata.normalize(form, "Blüte.png")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / kind / "train" / name)
    (pair,) = find_pairs(train_folders(tmp_path))
    assert pair.name == unicodedata.normalize("NFC", "Blüte")
    tasks, faults = match_files("train", train_folders(tmp_path))
    assert not faults
    assert tasks[0].label is not None

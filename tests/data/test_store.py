"""Entries against full decoding, conversion against broken input, the data module with and without a store."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from src.data.classes import ClassMap, Taxonomy
from src.data.crops import RandomCrop, cut_label, is_varied, scaled_size
from src.data.datamodule import SegmentationDataModule
from src.data.device_transforms import boundary_maps, hsv_to_rgb, rgb_to_hsv
from src.data.folder import FilePhoto, FolderSource, Pair, SplitFolders, find_pairs
from src.data.source import Window
from src.data.store import convert
from src.data.store.convert import convert_split, verify_split
from src.data.store.entry import Entry, StoreError, pack_entry
from src.data.store.jpegtran import add_restart_markers, find_jpegtran, with_orientation
from src.data.store.restart_jpeg import check
from src.data.store.source import StoreSource
from src.data.targets import boundary_map
from src.errors import UserError, message_of
from src.photos import PhotoError, read_photo, upright

pytestmark = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="needs jpegtran (libjpeg-turbo-progs)"
)

CLASSES = {"background": [0, 0, 0], "person": [255, 0, 0], "sky": [0, 0, 255]}
CLASS_MAP = ClassMap(Taxonomy.from_mapping(CLASSES))


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def regions(height: int, width: int, seed: int = 0) -> np.ndarray:
    label = (smooth(height, width, seed + 1)[..., 0] > 128).astype(np.uint8)
    label[: height // 3, : width // 2] = 2
    label[-height // 8 :] = 255
    return label


def write_pair(folder: Path, name: str, jpeg: bytes, label: np.ndarray) -> Pair:
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(name, folder / f"{name}.jpg", folder / f"{name}.png")
    pair.image.write_bytes(jpeg)
    Image.fromarray(label).save(pair.label)
    return pair


def encode(pixels: np.ndarray, subsampling: str, orientation: int = 1, progressive: bool = False) -> bytes:
    if subsampling == "Gray":
        image = Image.fromarray(pixels[..., 0])
    elif subsampling in ("440", "411"):
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 88, "RGB", subsampling)
        return with_orientation(data, orientation)
    else:
        image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chroma = {} if subsampling == "Gray" else {"subsampling": {"444": 0, "422": 1, "420": 2}[subsampling]}
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88, exif=exif, progressive=progressive, **chroma)
    return file.getvalue()


def make(pairs: list[Pair], folder: Path) -> convert.Conversion:
    return convert_split(pairs, folder, CLASS_MAP, 2, lambda _: None)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize(("size", "orientation"), [((150, 203), 1), ((97, 640), 6), ((321, 256), 3)])
def test_windows_equal_full_decoding(
    tmp_path: Path, subsampling: str, size: tuple[int, int], orientation: int
) -> None:
    progressive = orientation == 3 and subsampling in ("420", "444")
    upright = size[::-1] if orientation == 6 else size
    label = regions(*upright)
    pair = write_pair(tmp_path, "a", encode(smooth(*size), subsampling, orientation, progressive), label)
    result = make([pair], tmp_path / "store")
    assert not result.manifest.failed
    assert result.manifest.entries["a"].encoding == "lossless"
    photo = StoreSource(tmp_path / "store", CLASS_MAP).open(0)
    whole = read_photo(pair.image)
    assert photo.size == whole.shape[:2] == upright
    rng = np.random.default_rng(0)
    height, width = photo.size
    windows = [Window(0, 0, height, width), Window(height - 1, width - 1, 1, 1), Window(0, 0, 1, 1)]
    for _ in range(25):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        at_border = rng.random() < 0.3
        bottom = height if at_border else int(rng.integers(top, height)) + 1
        right = width if at_border else int(rng.integers(left, width)) + 1
        windows.append(Window(top, left, bottom - top, right - left))
    for window in windows:
        np.testing.assert_array_equal(photo.image(window), whole[window.slices])
        np.testing.assert_array_equal(photo.label(window), label[window.slices])


def entry_of(jpeg: bytes, orientation: int, label: np.ndarray) -> Entry:
    rewritten = with_orientation(add_restart_markers(jpeg, find_jpegtran()), orientation)
    content = pack_entry(rewritten, orientation, label, "lossless", {})
    return Entry(lambda offset, length: content[offset : offset + length], len(content), "a.jpg")


def along(data: st.DataObject, edge: int) -> tuple[int, int]:
    """A range of pixels; often at a border or around a multiple of a block."""
    special = [at for at in (0, 1, 8, 16, 31, 64, 128, 129, edge - 2, edge - 1) if 0 <= at < edge]
    start = data.draw(st.one_of(st.integers(0, edge - 1), st.sampled_from(special)))
    return start, data.draw(st.one_of(st.integers(1, edge - start), st.just(edge - start), st.just(1)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_window_of_any_jpeg_equals_full_decoding(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 600))
    subsampling = data.draw(st.sampled_from(["444", "422", "420", "440", "411", "Gray"]))
    orientation = data.draw(st.integers(1, 8))
    progressive = data.draw(st.booleans())
    seed = data.draw(st.integers(0, 99))
    jpeg = encode(smooth(height, width, seed), subsampling, orientation, progressive)
    whole = upright(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"), orientation)
    label = np.random.default_rng(seed).integers(0, 256, whole.shape[:2], dtype=np.uint8)
    entry = entry_of(jpeg, orientation, label)
    assert entry.info.size == label.shape
    for _ in range(8):
        (top, high), (left, wide) = along(data, label.shape[0]), along(data, label.shape[1])
        window = Window(top, left, high, wide)
        np.testing.assert_array_equal(entry.image(window), whole[window.slices])
        np.testing.assert_array_equal(entry.label(window), label[window.slices])


@pytest.mark.parametrize(
    "options", ["-arithmetic", "-rgb", "-restart 1", "-sample 4x1", "-sample 1x4", "-sample 2x2,1x2,1x2"]
)
def test_jpegs_of_unusual_coding(options: str) -> None:
    if shutil.which("cjpeg") is None:
        pytest.skip("cjpeg is not installed")
    ppm = io.BytesIO()
    Image.fromarray(smooth(97, 301)).save(ppm, "PPM")
    jpeg = subprocess.run(
        ["cjpeg", *options.split()], input=ppm.getvalue(), capture_output=True, check=True
    ).stdout
    whole = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    entry = entry_of(jpeg, 1, regions(97, 301))
    for window in (
        Window(0, 0, 97, 301),
        Window(31, 64, 33, 65),
        Window(96, 0, 1, 301),
        Window(0, 300, 97, 1),
    ):
        np.testing.assert_array_equal(entry.image(window), whole[window.slices])


@pytest.mark.parametrize("sampling", ["3x1", "2x1,2x1,1x1"])
def test_rare_chroma_samplings_are_encoded_once(tmp_path: Path, sampling: str) -> None:
    if shutil.which("cjpeg") is None:
        pytest.skip("cjpeg is not installed")
    pixels, ppm = smooth(97, 301), io.BytesIO()
    Image.fromarray(pixels).save(ppm, "PPM")
    command = ["cjpeg", "-quality", "95", "-sample", sampling]
    jpeg = subprocess.run(command, input=ppm.getvalue(), capture_output=True, check=True).stdout
    pair = write_pair(tmp_path, "a", jpeg, regions(97, 301))
    whole, window = read_photo(pair.image), Window(11, 23, 60, 41)
    assert np.abs(whole.astype(int) - pixels).mean() < 4
    np.testing.assert_array_equal(FilePhoto(pair, CLASS_MAP).image(window), whole[window.slices])
    result = make([pair], tmp_path / "store")
    assert result.manifest.entries["a"].encoding == "jpeg 95 4:4:4"
    photo = StoreSource(tmp_path / "store", CLASS_MAP).open(0)
    assert np.abs(photo.image(window).astype(int) - whole[window.slices]).mean() < 2
    pair.image.write_bytes(jpeg[: len(jpeg) // 2])
    with pytest.raises(PhotoError, match=r"a\.jpg: the file is truncated or damaged"):
        read_photo(pair.image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_and_viewers(tmp_path: Path, orientation: int) -> None:
    pixels = smooth(90, 140)
    label = regions(*(pixels.shape[:2] if orientation < 5 else pixels.shape[1::-1]))
    pair = write_pair(tmp_path, "a", encode(pixels, "420", orientation), label)
    make([pair], tmp_path / "store")
    photo = StoreSource(tmp_path / "store", CLASS_MAP).open(0)
    window = Window(11, 23, 60, 41)
    np.testing.assert_array_equal(photo.image(window), read_photo(pair.image)[window.slices])
    # The entry itself is an ordinary photo that shows upright.
    np.testing.assert_array_equal(read_photo(tmp_path / "store/a.jpg"), read_photo(pair.image))


def test_png_is_encoded_once(tmp_path: Path) -> None:
    pixels, label = smooth(70, 90), regions(70, 90)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    pair = Pair("a", tmp_path / "a.png", tmp_path / "label.png")
    result = make([pair], tmp_path / "store")
    assert result.manifest.entries["a"].encoding == "jpeg 95 4:4:4"
    photo = StoreSource(tmp_path / "store", CLASS_MAP).open(0)
    assert np.abs(photo.image(Window(0, 0, 70, 90)).astype(int) - pixels).mean() < 2


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.0]), st.sampled_from([0.5, 0.75, 0.9]))
def test_preview_never_contradicts_the_label_map(seed: int, scale: float, share: float) -> None:
    from src.data.preview import MIXED, LabelPreview, preview_blocks

    rng = np.random.default_rng(seed)
    label = cv2.resize(
        rng.integers(0, 3, (6, 7), dtype=np.uint8), (233, 190), interpolation=cv2.INTER_NEAREST
    )
    label[rng.integers(100) :][:30] = rng.choice([0, 255])
    blocks, mixed = preview_blocks(label)
    blocks[mixed] = MIXED
    photo = FakePhoto(label)
    size = scaled_size(photo.size, None, scale, None)
    edge = min(64, *size)
    window = Window(int(rng.integers(size[0] - edge + 1)), int(rng.integers(size[1] - edge + 1)), edge, edge)
    from src.data.crops import _label_grid

    decided = LabelPreview(blocks).is_varied(*_label_grid(photo, size, window), share)
    assert decided in (None, is_varied(cut_label(photo, size, window), share))


class FakePhoto:
    name = "fake"
    preview = None

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        self.size: tuple[int, int] = ids.shape

    def label(self, window: Window) -> np.ndarray:
        return self.ids[window.slices]

    def image(self, window: Window) -> np.ndarray:
        raise AssertionError


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Four photos of two sizes in the benchmark's layout."""
    root = tmp_path / "data"
    made = []
    for folder in ("images/train", "annotations/train", "images/val", "annotations/val"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        for index in range(4):
            size = (200, 300) if index % 2 else (260, 190)
            orientation = (1, 3, 6, 1)[index]
            pair = Pair(
                f"p{index}", root / f"images/{split}/p{index}.jpg", root / f"annotations/{split}/p{index}.png"
            )
            pair.image.write_bytes(encode(smooth(*size, index), "420", orientation))
            label = regions(*(size[::-1] if orientation == 6 else size), index)
            Image.fromarray(label).save(pair.label)
            made.append(pair)
    return made[:4]


def datamodule(root: Path, **changes: Any) -> SegmentationDataModule:
    arguments: dict[str, Any] = {"crop_size": 64, "batch_size": 2, "scales": [0.5, 1.0, 1.5]}
    return SegmentationDataModule(str(root), CLASSES, **(arguments | changes))


def test_same_crops_from_store_and_folder(pairs: list[Pair], tmp_path: Path) -> None:
    make(pairs, tmp_path / "store")
    store, folder = StoreSource(tmp_path / "store", CLASS_MAP), FolderSource(pairs, CLASS_MAP)
    assert store.names == folder.names
    crop = RandomCrop(64, [0.5, 0.8, 1.0, 1.7], max_class_share=0.6)
    for seed in range(60):
        a, b = (crop(source.open(seed % 4), np.random.default_rng(seed)) for source in (store, folder))
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


def test_same_batches_from_worker_device_and_store(pairs: list[Pair], tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    for split in ("train", "val"):
        folders = SplitFolders(root / "images" / split, root / "annotations" / split)
        make(find_pairs(folders), store / split)
    batches = []
    for changes in ({}, {"store": str(store)}, {"store": str(store), "augment_on": "device"}):
        data = datamodule(root, samples_per_epoch=16, **changes)
        data.setup("fit")
        batches.append([data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()])
        items = list(data.val_dataloader())
        assert len(items) == 4
    for plain, *others in zip(*batches, strict=True):
        for other in others:
            torch.testing.assert_close(other.images, plain.images, rtol=0, atol=0)
            assert torch.equal(other.targets.labels, plain.targets.labels)
            assert torch.equal(other.targets.boundaries, plain.targets.boundaries)


def test_resuming_converts_only_what_is_missing(pairs: list[Pair], tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert make(pairs, store).converted == 4
    assert make(pairs, store).converted == 0
    (store / "manifest.json").unlink()  # as an interrupted run leaves it
    (store / "p1.jpg").unlink()
    assert make(pairs, store).converted == 1
    entry = (store / "p2.jpg").read_bytes()
    (store / "p2.jpg").write_bytes(entry[:-100])
    assert make(pairs, store).converted == 1
    assert (store / "p2.jpg").read_bytes() == entry
    assert verify_split(pairs, store, 1.0, 2, lambda _: None) == {}


def test_bad_input_is_listed_and_the_rest_converted(pairs: list[Pair], tmp_path: Path) -> None:
    pairs[0].image.write_bytes(pairs[0].image.read_bytes()[:3000])
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(pairs[1].label)
    Image.fromarray(np.full((190, 260), 9, np.uint8)).save(pairs[2].label)
    result = make(pairs, tmp_path / "store")
    assert sorted(result.manifest.failed) == ["p0", "p1", "p2"]
    assert "p0.jpg: the file is truncated" in result.manifest.failed["p0"]
    assert "outside the class map: 9" in result.manifest.failed["p2"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["manifest.json", "p3.jpg"]
    assert StoreSource(tmp_path / "store", CLASS_MAP).names == ("p3",)


def test_changed_source_is_detected(
    pairs: list[Pair], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    make(pairs, tmp_path / "store")
    source = StoreSource(tmp_path / "store", CLASS_MAP)
    source.check_source(pairs)
    assert not caplog.text
    pairs[0].label.touch()
    source.check_source(pairs)  # the same content
    assert "1 photos have other dates" in caplog.text
    caplog.clear()
    assert make(pairs, tmp_path / "store").converted == 0
    StoreSource(tmp_path / "store", CLASS_MAP).check_source(pairs)
    assert not caplog.text
    label = np.array(Image.open(pairs[0].label))
    Image.fromarray(label[::-1]).save(pairs[0].label)
    with pytest.raises(StoreError, match=r"changed.*p0.*src\.prepare"):
        source.check_source(pairs)
    with pytest.raises(StoreError, match="p3"):
        StoreSource(tmp_path / "store", CLASS_MAP).check_source(pairs[:3])
    assert make(pairs, tmp_path / "store").converted == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_entries_are_named_and_never_give_other_pixels(
    entry_bytes: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(entry_bytes) - 1))
    cut = data.draw(st.booleans())
    damaged = bytearray(entry_bytes)
    if cut:
        del damaged[position:]
    else:
        damaged[position] ^= data.draw(st.integers(1, 255))
    message = "x/name.jpg: "
    try:
        found = everything(bytes(damaged))
    except StoreError as error:
        message = str(error)
    else:  # zstd has bits that mean nothing
        for ours, theirs in zip(found, everything(entry_bytes), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert message.startswith("x/name.jpg: ")


def test_a_damaged_photo_is_named(entry_bytes: bytes) -> None:
    for position in range(0, len(entry_bytes), 97):
        with pytest.raises(StoreError, match=r"x/name\.jpg: "):
            everything(entry_bytes[:position])


def test_every_bit_of_the_footer_counts(entry_bytes: bytes) -> None:
    for bit in range(128):
        damaged = bytearray(entry_bytes)
        damaged[-1 - bit // 8] ^= 1 << bit % 8
        with pytest.raises(StoreError, match=r"x/name\.jpg: "):
            everything(bytes(damaged))


def everything(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Label map and photo."""
    entry = Entry(lambda offset, length: content[offset : offset + length], len(content), "x/name.jpg")
    whole = Window(0, 0, *entry.info.size)
    entry.preview()
    return entry.label(whole), entry.image(whole)


@pytest.fixture(scope="module")
def entry_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("entry")
    pair = write_pair(folder, "a", encode(smooth(100, 150), "420"), regions(100, 150))
    make([pair], folder / "store")
    return (folder / "store/a.jpg").read_bytes()


@pytest.mark.parametrize(("version", "cure"), [(1, "Delete the store"), (3, "Update the program")])
def test_other_versions_are_refused(pairs: list[Pair], tmp_path: Path, version: int, cure: str) -> None:
    make(pairs, tmp_path / "store")
    entry = bytearray((tmp_path / "store/p0.jpg").read_bytes())
    entry[-8:-6] = version.to_bytes(2, "little")
    (tmp_path / "store/p0.jpg").write_bytes(entry)
    with pytest.raises(StoreError, match=rf"p0\.jpg: written in format {version}.*{cure}"):
        StoreSource(tmp_path / "store", CLASS_MAP).open(0)
    manifest = tmp_path / "store/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', f'"version": {version}'))
    with pytest.raises(StoreError, match=f"format {version}; this program reads format 2.*{cure}"):
        StoreSource(tmp_path / "store", CLASS_MAP)


def test_full_disk_stops_cleanly(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        path.write_bytes(content)

    monkeypatch.setattr(convert, "write_atomically", write)
    with pytest.raises(UserError, match=r"disk is full.*continues"):
        make(pairs, tmp_path / "store")
    monkeypatch.undo()
    assert make(pairs, tmp_path / "store").converted == 2


def test_what_no_jpeg_can_hold_is_listed(pairs: list[Pair], tmp_path: Path) -> None:
    Image.new("RGB", (66000, 2)).save(pairs[0].image, "PNG")
    Image.new("L", (66000, 2)).save(pairs[0].label)
    result = make(pairs, tmp_path / "store")
    assert sorted(result.manifest.entries) == ["p1", "p2", "p3"]
    assert "cannot be stored as a JPEG" in result.manifest.failed["p0"]


def test_names_may_be_as_long_as_the_system_allows(pairs: list[Pair], tmp_path: Path) -> None:
    name = "x" * 251
    pair = Pair(name, pairs[0].image.with_stem(name), pairs[0].label.with_stem(name))
    pairs[0].image.rename(pair.image)
    pairs[0].label.rename(pair.label)
    assert list(make([pair], tmp_path / "store").manifest.entries) == [name]


def test_tables_and_tiles_larger_than_they_can_be_are_not_unpacked(
    entry_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    for part in ("blocks", "mixed", "segments", "running", "tile"):
        label, jpeg = regions(100, 150), entry_bytes[: entry_bytes.rindex(b"\xff\xd9") + 2]
        with monkeypatch.context() as patch:
            if part == "tile":
                patch.setattr("src.data.store.entry.encode_tiles", lambda _: [bomb])
            else:
                read = Entry._read
                place = Entry(reading(entry_bytes), len(entry_bytes), "x")._tables[part]

                def swapped(
                    entry: Entry, offset: int, length: int, read: Any = read, place: Any = place
                ) -> bytes:
                    return bomb if (offset, length) == place else read(entry, offset, length)

                patch.setattr(Entry, "_read", swapped)
            content = pack_entry(jpeg, 1, label, "lossless", {}) if part == "tile" else entry_bytes
            tracemalloc.start()
            with pytest.raises(StoreError, match=r"larger than it can be|does not hold 150x100 ids"):
                everything(content)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 20_000_000, part


@pytest.mark.parametrize("size", [[100, 700], [0, 150], [-600, -600]])
def test_a_size_that_the_tiles_do_not_make_is_refused(entry_bytes: bytes, size: list[int]) -> None:
    length = int.from_bytes(entry_bytes[-4:], "little")
    directory = json.loads(entry_bytes[-16 - length : -16])
    changed = json.dumps(directory | {"size": size}, separators=(",", ":")).encode()
    footer = struct.pack("<8sHHI", b"MaSSentr", 2, check(changed), len(changed))
    with pytest.raises(StoreError, match="its label tiles are not those of"):
        everything(entry_bytes[: -16 - length] + changed + footer)


def reading(content: bytes) -> Any:
    return lambda offset, length: content[offset : offset + length]


def test_unreadable_sources_are_listed(pairs: list[Pair], tmp_path: Path) -> None:
    pairs[0].image.unlink()
    pairs[1].label.unlink()
    pairs[1].label.mkdir()  # reading it fails, whoever asks
    result = make(pairs, tmp_path / "store")
    assert sorted(result.manifest.entries) == ["p2", "p3"]
    assert f"{pairs[0].image}: it cannot be read" in result.manifest.failed["p0"]
    assert f"{pairs[1].label}: it cannot be read" in result.manifest.failed["p1"]


def test_leftovers_of_killed_runs_are_removed(pairs: list[Pair], tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(pairs[:2], store)
    old, young, foreign = store / ".unfinished-x1", store / ".unfinished-y2", store / ".keep"
    for path in (old, young, foreign):
        path.write_bytes(b"half an entry")
    os.utime(old, (1, 1))
    os.utime(young, (2**32, 2**32))  # of a run beside this one
    make(pairs, store)
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()


def test_damaged_entries_are_named_by_workers(pairs: list[Pair], tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "store"
    for split in ("train", "val"):
        folders = SplitFolders(root / "images" / split, root / "annotations" / split)
        make(find_pairs(folders), store / split)
    entry = store / "train/p2.jpg"
    content = bytearray(entry.read_bytes())
    start = content.index(b"\xff\xda") + 20
    content[start : start + 200] = bytes(200)
    entry.write_bytes(content)
    data = datamodule(root, store=str(store), num_workers=1, scales=[1.0], crop_size=300)
    data.setup("fit")
    with pytest.raises(StoreError) as caught:
        list(data.train_dataloader())
    message = message_of(caught.value)
    assert message.startswith(f"{entry}: this store entry is damaged (photo: ")
    assert message.endswith("Delete the file and run src.prepare again: it makes the missing entries.")


def test_jpegtran_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="libjpeg-turbo-progs"):
        make([], tmp_path / "store")


def test_colour_conversions_equal_opencv() -> None:
    levels = np.arange(256, dtype=np.uint8)
    for fixed in range(0, 180, 11):
        pixels = np.stack([np.full((256, 256), fixed, np.uint8), *np.meshgrid(levels, levels)], -1)
        planes = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
        hsv = torch.stack(rgb_to_hsv(planes), -1)[0]
        np.testing.assert_array_equal(hsv.numpy(), cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
        rgb = hsv_to_rgb(*planes.unbind(1))[0].permute(1, 2, 0)
        np.testing.assert_array_equal(rgb.numpy(), cv2.cvtColor(pixels, cv2.COLOR_HSV2RGB))


def test_boundary_maps_on_the_device() -> None:
    labels = np.stack([regions(40, 60, seed) for seed in range(3)])
    expected = np.stack([boundary_map(label) for label in labels])
    np.testing.assert_array_equal(boundary_maps(torch.from_numpy(labels)).numpy(), expected)
